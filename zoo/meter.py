"""CPU seconds by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import attrs

__all__ = ["Meter"]

T = TypeVar("T")


@attrs.frozen
class Meter:
    """What featreg, the oracle and opening took; they run in turn in one thread."""

    seconds: dict[str, float] = attrs.field(factory=lambda: {"featreg": 0.0, "oracle": 0.0, "opening": 0.0})

    def run(self, side: str, call: Callable[..., T], *arguments: object) -> T:
        """What the call gives, its time added to a side."""
        start = time.process_time()
        try:
            return call(*arguments)
        finally:
            self.seconds[side] += time.process_time() - start
