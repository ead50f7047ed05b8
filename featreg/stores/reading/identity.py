"""Which store a path held when it was opened."""

from __future__ import annotations

from contextlib import suppress

from featreg.errors import StoreError
from featreg.stores.layout import pass_name
from featreg.stores.places.place import Place, read_errors

__all__ = ["Identity"]

_FIRST = pass_name(0)


class Identity:
    """A store as against any other one that its path may hold later, as after ``overwrite``.

    The document of its first pass never changes as long as it lives.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._stamp: object = None
        self._sha256: str | None = None
        with suppress(OSError):  # what is wrong with it, the manifest says as it is read
            self._stamp, self._sha256 = place.stamp(_FIRST), place.sha256(_FIRST)

    def check(self) -> None:
        """Raise StoreError where the path holds another store by now; costs one look at a file."""
        found: str | None = None
        with read_errors(self._place, _FIRST), suppress(FileNotFoundError):
            stamp = self._place.stamp(_FIRST)
            if stamp == self._stamp:
                return
            found = self._place.sha256(_FIRST)
            if found == self._sha256:
                self._stamp = stamp
                return
        raise StoreError(
            f"the store {self._place.uri!r} was replaced or deleted since it was opened",
            "the store that was opened",
            "nothing" if found is None else "another one",
            remedy="open it again: its rows may be others",
        )
