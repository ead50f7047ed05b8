"""Which tasks of a pass are still to be done, as the process that started a run knows it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from featreg.engine.loop.worker import Committed
from featreg.engine.monitoring.stages import Stages
from featreg.engine.ray.chunks import Numbers, task_at
from featreg.engine.ray.outcomes import Outcome
from featreg.stores.layout import Pass
from featreg.stores.receipts import finished_tasks, read_receipt
from featreg.stores.writer import StoreWriter

__all__ = ["Ledger"]


class Ledger:
    """Which tasks of a pass are open; tells of each that is not any more, once."""

    def __init__(
        self, writer: StoreWriter, part: Pass, done: Collection[int], committed: Committed, stages: Stages
    ) -> None:
        self._writer = writer
        self._part = part
        self._committed = committed
        self._stages = stages
        self._first = part.task(0).number
        self._is_open = np.ones(part.count, bool)  # a byte for each task, of which there may be millions
        self._is_open[np.fromiter(done, np.int64, len(done)) - self._first] = False

    def open(self) -> Numbers:
        """The numbers of the open tasks, in order; 8 bytes each."""
        return np.flatnonzero(self._is_open) + self._first

    def receipts(self) -> int:
        """How many tasks of the pass have a receipt."""
        return len(finished_tasks(self._writer.place, self._part))

    def settle(self, outcome: Outcome) -> None:
        """A worker has told of a task; raises what it raised there."""
        if outcome.raised is not None:
            outcome.raised.throw()
        if self._is_open[outcome.number - self._first]:
            self._is_open[outcome.number - self._first] = False
            self._stages.add(outcome.seconds, outcome.waited)
            self._committed(task_at(self._part, outcome.number), outcome.failed, outcome.own)

    def recount(self) -> int:
        """How many open tasks have their receipt all the same: those whose answers were lost, or other workers'."""
        done = finished_tasks(self._writer.place, self._part)
        found = [number for number in self.open().tolist() if number in done]
        for number in found:
            receipt = read_receipt(self._writer.place, task_at(self._part, number))
            self.settle(Outcome(number, 0 if receipt is None else len(receipt.errors), False, ""))
        return len(found)
