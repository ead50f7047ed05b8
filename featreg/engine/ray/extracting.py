"""The other part of a run on Ray: crops in, features committed to the store, task by task."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import attrs

from featreg.engine.loop.batching import Batching
from featreg.engine.loop.block import Block
from featreg.engine.loop.loader import Loaded
from featreg.engine.loop.options import Options
from featreg.engine.loop.worker import fill_block
from featreg.engine.monitoring.stages import Stages
from featreg.engine.nothing import Nothing
from featreg.engine.ray.chunks import task_at
from featreg.engine.ray.crops import Decoded, decoded_rows
from featreg.engine.ray.outcomes import Outcome, Raised, outcome_table
from featreg.engine.run import Work
from featreg.registry import default_registry
from featreg.stores.layout import Pass
from featreg.stores.places.opening import place_at
from featreg.stores.receipts import read_receipt
from featreg.stores.writer import StoreWriter

__all__ = ["Job", "TaskExtractor"]


@attrs.frozen
class Job:
    """What a worker has to know of a pass: names and numbers; the rest it reads in the store."""

    uri: str
    pass_number: int
    options: Options
    device: str | None


class TaskExtractor:
    """A worker of the pool: computes and commits the tasks that it is handed, and says what became of each.

    The model is opened with the first task, so that what goes wrong then is told as anything else is.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._name = f"{socket.gethostname()}-{os.getpid()}"
        self._stack = ExitStack()
        self._stages = Stages()
        self._idle_since: float | None = None

    def __call__(self, table: Any) -> Any:
        """Outcomes of the tasks in a table, as an Arrow table."""
        return outcome_table([self._timed(decoded) for decoded in decoded_rows(table)])

    def _timed(self, decoded: Decoded) -> Outcome:
        """The outcome of a task with what it took here and where it was decoded."""
        started, before = self._stages.clock(), self._stages.seconds
        idle = 0.0 if self._idle_since is None else started - self._idle_since
        outcome = self._do(decoded)
        spent = {stage: passed - before[stage] for stage, passed in self._stages.seconds.items()}
        seconds = {stage: passed + decoded.seconds.get(stage, 0.0) for stage, passed in spent.items()}
        self._idle_since = self._stages.clock()
        return attrs.evolve(outcome, seconds=seconds, waited={"load": idle, "write": spent["write"]})

    def _do(self, decoded: Decoded) -> Outcome:
        if isinstance(decoded.samples, Raised):
            return Outcome(decoded.number, 0, False, self._name, decoded.samples)
        try:
            failed, own = self._extract(decoded.number, decoded.samples)
        except Exception as error:  # noqa: BLE001  (it is raised where the run was started)
            return Outcome(decoded.number, 0, False, self._name, Raised.of(error))
        return Outcome(decoded.number, failed, own, self._name)

    def _extract(self, number: int, samples: Sequence[Loaded]) -> tuple[int, bool]:
        """How many rows failed, and whether this worker wrote the receipt; a task that has one is left alone."""
        task = task_at(self._part, number)
        receipt = read_receipt(self._writer.place, task)
        if receipt is not None:  # another worker's, or our own from before this task was handed out again
            return len(receipt.errors), False
        loaded = iter(samples)
        block = Block(self._part, task, self._job.options, self._writer.fitted(self._part))
        fill_block(block, next(loaded), loaded, self._model, place=self._writer.place, task=task)
        with self._stages.timed("write"):
            own = self._writer.commit(task, block.features, block.errors)
        return len(block.errors), own

    @cached_property
    def _writer(self) -> StoreWriter:
        return StoreWriter(place_at(self._job.uri))

    @cached_property
    def _part(self) -> Pass:
        return self._writer.manifest.passes[self._job.pass_number]

    @cached_property
    def _model(self) -> Batching:
        work = Work(Nothing(), default_registry(), device=self._job.device)
        extractor = self._stack.enter_context(work.opened(self._part))
        return Batching(extractor, self._job.options.batch_size, stages=self._stages)
