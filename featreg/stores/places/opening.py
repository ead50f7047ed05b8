"""From a path or a URL to the place that it means."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from featreg.errors import SpecError, StoreError
from featreg.stores.places.place import LocalPlace, Place

__all__ = ["place_at"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one letter is a drive; pathlib makes one slash of two


def place_at(path: str | os.PathLike[str]) -> Place:
    """Where a store is, or would be: a resolved path, or a URL that fsspec opens.

    Raises SpecError for what is no path, and StoreError for one that cannot be.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise SpecError("the path of a store is not a path", "a string or a pathlib.Path", repr(path)[:80])
    if not text or "\0" in text:
        raise StoreError("the path of a store is empty or holds a NUL", "the path of a folder, or a URL", repr(text))
    if text.startswith(("file://", "local://")):  # fsspec knows both
        text = url2pathname(urlsplit(text).path)
    if not _URL.match(text):
        return LocalPlace(Path(os.path.realpath(text)))
    from featreg.stores.places.remote import FsspecPlace

    return FsspecPlace(_whole_url(text))


def _whole_url(text: str) -> str:
    """A URL with the two slashes of which pathlib makes one."""
    scheme, _, rest = text.partition(":")
    return f"{scheme}://{rest.lstrip('/')}"
