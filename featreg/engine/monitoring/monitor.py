"""What a worker counts while it goes through a pass, and whom it tells."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from featreg.engine.monitoring.facts import Facts, Teller
from featreg.engine.monitoring.stages import Stages

__all__ = ["Monitor"]


class Monitor:
    """Counts the rows of a pass and the seconds of its stages; as a context manager it tells the last facts at its end.

    ``rows`` are those of the pass, ``there`` those that are done already. Used by one thread, but for ``stages``.
    """

    def __init__(
        self,
        rows: int = 0,
        there: int = 0,
        *,
        batch_size: int = 1,
        tellers: Sequence[Teller] = (),
        stages: Stages | None = None,
    ) -> None:
        self.stages = Stages() if stages is None else stages
        self.batch_size = batch_size
        self._rows = rows
        self._there = there
        self._committed = self._waiting = self._under_way = self._failed = 0
        self._tellers = tellers
        self._started = self.stages.clock()

    def begin(self) -> None:
        """The first sample is asked for: the time until now, as of opening a model, is none of the run's rate."""
        self._started = self.stages.clock()

    @property
    def facts(self) -> Facts:
        """How far it is by now."""
        return Facts(
            rows=self._rows,
            there=self._there,
            done=self._committed + self._waiting + self._under_way,
            failed=self._failed,
            elapsed=self.stages.clock() - self._started,
            batch_size=self.batch_size,
            seconds=self.stages.seconds,
            waited=self.stages.waited,
            bottleneck=self.stages.bottleneck,
        )

    def computed(self, rows: int) -> None:
        """So many rows of the task under way have gone through the model."""
        self._under_way += rows
        self._tell()

    def finished(self, rows: int) -> None:
        """The task under way is computed, all its rows: some that failed went through no model, or through it twice."""
        self._waiting += rows
        self._under_way = 0

    def committed(self, rows: int, failed: int) -> None:
        """A task of so many rows has its receipt, and so many of them failed."""
        self._committed += rows
        self._waiting = max(self._waiting - rows, 0)  # a task that another process computes was none of ours before
        self._failed += failed
        self._tell()

    def found(self, rows: int) -> None:
        """Another worker has done a task of so many rows."""
        self._there += rows

    def _tell(self) -> None:
        if self._tellers:
            facts = self.facts
            for teller in self._tellers:
                teller.tell(facts)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        facts = self.facts
        for teller in self._tellers:
            teller.close(facts)
