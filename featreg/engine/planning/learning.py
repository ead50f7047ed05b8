"""What the recipes of a run learn from its samples, before the first row is stored."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, TypeAlias

import attrs
import numpy as np

from featreg.derived import FittedRecipe, Rows, Sweep, fit_together
from featreg.engine.loop.batching import Batching
from featreg.engine.loop.block import extract_batch
from featreg.engine.loop.keeping import shapes_of
from featreg.engine.loop.loader import Loaded, load_crops, load_texts
from featreg.engine.loop.options import Options
from featreg.engine.monitoring.monitor import Monitor
from featreg.engine.monitoring.progress import progress_teller
from featreg.engine.planning.outputs import Outputs
from featreg.engine.planning.passes import crop_infos, make_plan, model_inputs
from featreg.engine.planning.sorts import check_sort
from featreg.errors import FeatregError
from featreg.extractor import Extractor
from featreg.recipe import Recipe
from featreg.registry import Registry
from featreg.sources import Sample, Source
from featreg.spec import Layer
from featreg.stores.fits import write_fit
from featreg.stores.index import BLOCK_ROWS, Index
from featreg.stores.layout import IndexPart, InputRecord, SourceRecord
from featreg.stores.places.place import Place
from featreg.stores.writer import Plan, Planner

__all__ = ["Lesson", "make_planner", "write_fits"]

Integers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Floats: TypeAlias = np.ndarray[Any, Any]


def make_planner(
    record: SourceRecord | Callable[[], SourceRecord],
    source: Source,
    extractor: Extractor,
    registry: Registry,
    *,
    outputs: Outputs,
    options: Options,
    taken: Sequence[str] = (),
    progress: bool = False,
) -> Planner:
    """What plans a pass once its samples are known: the recipes learn from them first, and their fits are written.

    ``options.batch_size`` is what the pass records; ``progress`` shows how far the learning is. Raises as
    :func:`~featreg.engine.planning.passes.make_plan`, at once, and SourceError for samples that are not what the model
    takes; when it plans, as :func:`~featreg.derived.fit` does.
    """
    check_sort(source, extractor)
    fields: dict[str, Any] = {"batch_size": options.batch_size, "taken": taken, "outputs": outputs}
    make_plan(record, extractor, registry, **fields, fitted=outputs.fits)  # whatever speaks against it is said now

    def plan(place: Place, parts: Sequence[IndexPart]) -> Plan:
        infos, size = crop_infos(extractor)
        lesson = Lesson(
            Index(place, parts), parts[-1].stop, model_inputs(outputs, infos, size), source, options, progress
        )
        fitted = {**outputs.fits, **lesson.learn(outputs.to_fit, extractor)}
        write_fits(place, fitted)
        return make_plan(record, extractor, registry, **fields, fitted=fitted)

    return plan


def write_fits(place: Place, fitted: Mapping[str, FittedRecipe]) -> None:
    """Write what was learnt; what needed nothing has no file."""
    for one in fitted.values():
        if one.recipe.passes:
            write_fit(place, one)


@attrs.frozen
class Lesson:
    """The samples that recipes learn from: all ``count`` rows of an index, or those that each draws of them.

    ``given`` is what the model gives to recipes. ``progress`` shows a bar for each run over them. A sample that fails
    is left out, or stops it with ``options.raise_errors``.
    """

    index: Index
    count: int
    given: tuple[InputRecord, ...]
    source: Source
    options: Options
    progress: bool = False

    def learn(self, recipes: Sequence[Recipe], extractor: Extractor) -> dict[str, FittedRecipe]:
        """The recipes fitted, by their names, in as many runs over the samples as the one that needs most."""
        shapes = {recipe.name: shapes_of(recipe, self.given) for recipe in recipes}
        return fit_together(recipes, shapes, self.count, self._sweep(extractor))

    def _sweep(self, extractor: Extractor) -> Sweep:
        infos = {one.key: one.info for one in self.given}
        pooled = frozenset(one.key for one in self.given if one.pooled)

        def sweep(numbers: Integers | None) -> Iterator[Rows]:
            with self._monitor(numbers) as monitor, closing(self._load(numbers, extractor, monitor)) as loaded:
                model = Batching(extractor, self.options.batch_size, stages=monitor.stages, computed=monitor.computed)
                for some in _batches(self.count, numbers, self.options.batch_size):
                    features = self._features(some, list(islice(loaded, len(some))), model)
                    if features is not None:
                        yield Rows(some, features, infos, pooled)

        return sweep

    def _features(self, numbers: Integers, batch: Sequence[Loaded], model: Batching) -> dict[Layer, Floats] | None:
        """The inputs of a batch, NaN where a sample failed; None where all did."""
        failed = self._failed(numbers, batch)
        if len(failed) == len(batch):
            return None
        given, batch = extract_batch(batch, model)
        failed = self._failed(numbers, batch)
        features = {one.key: np.array(given[one.key]) for one in self.given}
        for values in features.values():
            values[failed] = np.nan
        return features

    def _failed(self, numbers: Integers, batch: Sequence[Loaded]) -> list[int]:
        """The places of the samples that failed, where the first of them does not stop the run."""
        failed = [place for place, loaded in enumerate(batch) if isinstance(loaded, FeatregError)]
        if failed and self.options.raise_errors:
            error = batch[failed[0]]
            assert isinstance(error, FeatregError)
            error.add_note(f"row {numbers[failed[0]]}")
            raise error
        return failed

    def _monitor(self, numbers: Integers | None) -> Monitor:
        rows = self.count if numbers is None else len(numbers)
        tellers = [progress_teller(rows, 0)] if self.progress else []
        return Monitor(rows, batch_size=self.options.batch_size, tellers=tellers)

    def _load(self, numbers: Integers | None, extractor: Extractor, monitor: Monitor) -> Generator[Loaded, None, None]:
        stages = monitor.stages
        threads, samples = self.options.threads, self._samples(numbers)
        ahead = 2 * max(self.options.batch_size, threads)
        if extractor.takes_text:
            return load_texts(self.source, samples, threads=threads, ahead=ahead, stages=stages)
        preprocess = extractor.preprocess
        return load_crops(self.source, samples, preprocess, threads=threads, ahead=ahead, stages=stages)

    def _samples(self, numbers: Integers | None) -> Iterator[Sample]:
        """The samples of some rows, a block of the index at a time."""
        for some in _index_blocks(self.count, numbers):
            rows = self.index.rows(int(some[0]), int(some[-1]) + 1).take(some - some[0])
            columns = (rows[name].to_pylist() for name in ("key", "uri", "target", "size"))
            yield from (Sample(*values) for values in zip(*columns, strict=True))


def _index_blocks(count: int, numbers: Integers | None) -> Iterator[Integers]:
    """Ascending row numbers, or all, those together that lie in one block of the index."""
    if numbers is None:
        yield from _batches(count, None, BLOCK_ROWS)
    else:
        yield from np.split(numbers, np.flatnonzero(np.diff(numbers // BLOCK_ROWS)) + 1)


def _batches(count: int, numbers: Integers | None, size: int) -> Iterator[Integers]:
    """Ascending row numbers, or all, ``size`` at a time."""
    for start in range(0, count if numbers is None else len(numbers), size):
        yield np.arange(start, min(start + size, count)) if numbers is None else numbers[start : start + size]
