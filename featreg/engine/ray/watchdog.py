"""Notices that a run stands still: no task has got its receipt for too long."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from featreg.errors import EngineError

__all__ = ["Watchdog"]

POLL = 5.0
"""Seconds between two looks at the clock."""


class Watchdog:
    """Counts the time since a task was last known to be committed.

    Told of each by :meth:`fed`, it looks at nothing else; where it was not told for ``patience`` seconds, it counts the
    receipts of the store, since others may be at work on it too, or an answer may be late. ``receipts`` counts those,
    ``clock`` gives seconds since any fixed moment.
    """

    def __init__(self, patience: float, receipts: Callable[[], int], clock: Callable[[], float]) -> None:
        self.patience = patience
        self._receipts = receipts
        self._clock = clock
        self._count = receipts()
        self._fed = clock()
        self._workers: dict[str, float] = {}

    @property
    def wait(self) -> float:
        """For how many seconds an answer may be waited for before the next look."""
        return min(POLL, self.patience)

    def fed(self, worker: str) -> None:
        """A worker has told of a task."""
        self._fed = self._workers[worker] = self._clock()

    def is_hungry(self, patience: float = math.inf) -> bool:
        """Whether no task got its receipt for as long as the patience lasts, or a shorter one."""
        if self._clock() - self._fed < min(patience, self.patience):
            return False
        before, self._count = self._count, self._receipts()
        if self._count > before:
            self._fed = self._clock()
            return False
        return True

    def error(self, left: Sequence[int], cluster: str) -> EngineError:
        """What hangs: the tasks ``left``, the workers by their last answer, and the state of the cluster."""
        now = self._clock()
        workers = [f"{name} {now - told:.0f} s ago" for name, told in sorted(self._workers.items())]
        first = ", ".join(map(str, left[:5])) + (", ..." if len(left) > 5 else "")
        return EngineError(
            f"the run on Ray hangs: {len(left)} tasks have no receipt, among them {first}",
            f"a receipt at least every {self.patience:g} s",
            f"none for {now - self._fed:.0f} s; workers answered: {', '.join(workers) or 'none ever'}; {cluster}",
            remedy="look at the cluster (ray status), then run it again, on Ray or without: what is finished is kept",
        )
