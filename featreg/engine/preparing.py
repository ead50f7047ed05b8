"""A run that is about to begin: its samples are counted, its disk is looked at, and its first pass is planned."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from featreg.derived import check_enough
from featreg.engine.loop.batching import settle_batch_size
from featreg.engine.loop.options import Options
from featreg.engine.monitoring.stages import Clock
from featreg.engine.planning.estimate import Estimate, estimate_plan
from featreg.engine.planning.learning import make_planner
from featreg.engine.planning.outputs import Outputs
from featreg.engine.planning.passes import make_plan, source_record
from featreg.engine.planning.probe import Probe, Spread, probe
from featreg.engine.planning.selection import Selection
from featreg.engine.run import MAX_THREADS, Run
from featreg.errors import SourceError
from featreg.extractor import Extractor
from featreg.registry import Registry
from featreg.sources import Sample, Source
from featreg.stores.layout import IndexPart, SourceRecord
from featreg.stores.places.place import Place
from featreg.stores.writer import Plan, Planner

__all__ = ["BATCH_SIZE", "PROBE_SECONDS", "PROBE_SHARE", "Job"]

BATCH_SIZE = 32

PROBE_SECONDS = 10.0
"""How long a probe may take, more or less: a single batch of a slow model may take longer."""

PROBE_SHARE = 100
"""Of so many samples a run tries out one at most before it begins; fewer samples than that are simply extracted."""


@attrs.frozen
class Job:
    """The samples, the model and what is kept of it: all that decides the rows and the values of a store."""

    source: Source
    extractor: Extractor
    registry: Registry
    outputs: Outputs
    selection: Selection
    run: Run
    _seen: Spread[Sample] = attrs.field(factory=lambda: Spread(BATCH_SIZE), init=False, eq=False, repr=False)

    def index(self) -> Iterator[Sample]:
        """The samples that are taken, some of which are remembered; raises SourceError where there is none."""
        yield from self._seen.watch(self.selection.of(self.source.index()))
        if not self._seen.count:
            raise self._no_samples()

    def planner(self, uri: str, on_estimate: Callable[[Estimate], object] | None = None) -> Planner:
        """What plans the first pass of the store at ``uri`` once the index lies aside and its rows are counted.

        The estimate is told then, with a probe that takes a bounded share of the run, and StoreFullError is raised
        where there is no room; nothing of the store is in its place yet. Raises as
        :func:`~featreg.engine.planning.learning.make_planner`.
        """
        draft = self._draft()
        size = settle_batch_size(self.run.batch_size or BATCH_SIZE, self.extractor, draft.task_rows)
        options = Options(size, self._threads, self.run.raise_errors)
        make = make_planner(
            self._record,
            self.source,
            self.extractor,
            self.registry,
            outputs=self.outputs,
            options=options,
            progress=self.run.progress,
        )

        def plan(place: Place, parts: Sequence[IndexPart]) -> Plan:
            rows = parts[-1].stop
            check_enough(self.outputs.to_fit, rows)
            probed = None if on_estimate is None else self._probe(rows // PROBE_SHARE, time.perf_counter)
            found = estimate_plan(uri, draft, rows, extractor=self.extractor, probed=probed, free=place.free_bytes())
            if on_estimate is not None:
                on_estimate(found)
            found.check_room()
            return make(place, parts)

        return plan

    def estimate(self, uri: str, free: int | None, clock: Clock) -> Estimate:
        """What a new store at ``uri`` would take; the index is read once, and nothing is written."""
        draft = self._draft()
        rows = sum(1 for _ in self.index())
        check_enough(self.outputs.to_fit, rows)
        probed = self._probe(BATCH_SIZE, clock)
        return estimate_plan(uri, draft, rows, extractor=self.extractor, probed=probed, free=free)

    @property
    def _threads(self) -> int:
        return self.run.num_workers or min(MAX_THREADS, os.cpu_count() or 1)

    def _record(self) -> SourceRecord:
        return source_record(self.source, self.selection)

    def _draft(self) -> Plan:
        """The plan but for what is still to be learnt: it says how much there is to write."""
        fields: dict[str, Any] = {"outputs": self.outputs, "fitted": self.outputs.fits}
        return make_plan(self._record, self.extractor, self.registry, batch_size=BATCH_SIZE, **fields)

    def _probe(self, most: int, clock: Clock) -> Probe | None:
        samples = self._seen.some(min(most, BATCH_SIZE))
        return probe(self.source, samples, self.extractor, threads=self._threads, seconds=PROBE_SECONDS, clock=clock)

    def _no_samples(self) -> SourceError:
        if self.selection.fraction is None:
            return SourceError(f"no images found in {self.source.uri!r}", "at least one sample", "an empty index")
        return SourceError(
            f"fraction={self.selection.fraction:g} draws no sample of {self.source.uri!r}",
            "at least one sample",
            "none",
            remedy="a larger fraction, or another seed",
        )
