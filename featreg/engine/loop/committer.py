"""The thread that writes one task while the loop computes the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeAlias

import attrs
import numpy as np

from featreg.engine.monitoring.stages import Stages
from featreg.spec import Layer
from featreg.stores.layout import Task
from featreg.stores.writer import StoreWriter

__all__ = ["Committed", "Committer"]

Committed: TypeAlias = Callable[[Task, int, bool], object]
"""Told of each task that has its receipt: how many of its rows failed, and whether it is this worker's."""


@attrs.frozen
class _UnderWay:
    task: Task
    failed: int
    own: Future[bool]


class Committer:
    """Commits the tasks of a run in order, one at a time; ``committed`` is told of each by the thread that computes.

    Held are the features of the task that is being written and no others: :meth:`put` waits for the one before. What
    goes wrong with a task is raised by the next :meth:`put`, or at the end of the context: before anything that went
    wrong with a later task. An interrupted run, too, ends only when the task that is being written is.
    """

    def __init__(self, writer: StoreWriter, committed: Committed, stages: Stages) -> None:
        self._writer = writer
        self._committed = committed
        self._stages = stages
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="featreg-write")
        self._under_way: _UnderWay | None = None

    def put(self, task: Task, features: Mapping[Layer, np.ndarray[Any, Any]], errors: Mapping[int, str]) -> None:
        """Commit a task as :meth:`StoreWriter.commit` does; raises what it raised for the task before."""
        self._settle()
        self._under_way = _UnderWay(task, len(errors), self._pool.submit(self._commit, task, features, errors))

    def _commit(self, task: Task, features: Mapping[Layer, np.ndarray[Any, Any]], errors: Mapping[int, str]) -> bool:
        with self._stages.timed("write"):
            return self._writer.commit(task, features, errors)

    def _settle(self) -> None:
        """Wait for the task that is being written, and tell of it."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            with self._stages.waiting("write"):
                own = under_way.own.result()
            self._committed(under_way.task, under_way.failed, own)

    def __enter__(self) -> Committer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None or issubclass(kind, Exception):  # an interrupt is told of whatever else went wrong
                self._settle()
        finally:
            self._pool.shutdown(wait=True)
