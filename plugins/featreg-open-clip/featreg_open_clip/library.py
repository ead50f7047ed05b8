"""open_clip as this backend uses it: without its log records, and as Any, since most of its functions have no types."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["muted", "open_clip"]

open_clip: Any = importlib.import_module("open_clip")


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Drop what open_clip logs inside.

    It logs on the root logger, whose first record would configure logging for the whole process, and it warns of random
    weights also where they are about to be replaced. What other libraries log goes its way.
    """
    package = Path(open_clip.__file__).parent

    def is_foreign(record: logging.LogRecord) -> bool:
        return not Path(record.pathname).is_relative_to(package)

    root = logging.getLogger()
    sink = logging.NullHandler()
    root.addHandler(sink)
    root.addFilter(is_foreign)
    try:
        yield
    finally:
        root.removeFilter(is_foreign)
        root.removeHandler(sink)
