"""How a worker goes about its tasks."""

from __future__ import annotations

import attrs

__all__ = ["Options"]


@attrs.frozen
class Options:
    """How a run works; none of it changes a value.

    ``raise_errors`` stops at the first row that fails, in place of recording it.
    """

    batch_size: int = 32
    threads: int = 1
    raise_errors: bool = False
