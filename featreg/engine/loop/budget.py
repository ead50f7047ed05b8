"""How much several threads may hold at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Budget"]


class Budget:
    """A number of bytes that threads share; one that needs more than all of them has them to itself."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._returned = threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Wait until ``size`` bytes are free, and hold them as long as the block lasts; not to be nested."""
        needed = min(size, self._size)
        with self._returned:
            self._returned.wait_for(lambda: needed <= self._free)
            self._free -= needed
        try:
            yield
        finally:
            with self._returned:
                self._free += needed
                self._returned.notify_all()
