"""The one loop that reads, crops, extracts and writes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, TypeAlias

import attrs
import numpy as np

from featreg.engine.loader import Loaded, load_crops, load_texts
from featreg.errors import BackendError, FeatregError, StoreError
from featreg.extractor import Extractor
from featreg.images import Pixels
from featreg.preprocess import crop_size
from featreg.sources import Sample, Source
from featreg.spec import Layer, Preprocess
from featreg.stores.index import Index
from featreg.stores.layout import LayerRecord, Task
from featreg.stores.writer import StoreWriter

__all__ = ["Committed", "Options", "run_tasks"]

Floats: TypeAlias = np.ndarray[Any, Any]
Committed: TypeAlias = Callable[[Task, int, bool], object]
"""Told of each task that has its receipt: how many of its rows failed, and whether it is this worker's."""


@attrs.frozen
class Options:
    """How a run works; none of it changes a value.

    ``raise_errors`` stops at the first row that fails, in place of recording it.
    """

    batch_size: int = 32
    threads: int = 1
    raise_errors: bool = False


def run_tasks(
    tasks: Iterable[Task],
    source: Source,
    extractor: Extractor,
    writer: StoreWriter,
    options: Options,
    *,
    committed: Committed = lambda *_: None,
) -> None:
    """Compute and commit the tasks that have no receipt yet, one after the other.

    A batch never crosses a task, and a row that fails keeps its place in its batch as a black image, so that the
    features of the others do not depend on it. Held in memory are one task's features and two batches of crops.
    """
    begun: deque[Task] = deque()
    rows = _samples(_unfinished(tasks, writer, begun), Index(writer.place, writer.manifest.index))
    ahead = 2 * max(options.batch_size, options.threads)
    with closing(_load(source, rows, extractor, options.threads, ahead)) as loaded:
        for first in loaded:
            task = begun.popleft()
            block = _Block(writer.manifest.passes[task.pass_number].layers, task, options)
            block.fill_all(first, loaded, extractor)
            own = writer.commit(task, block.features, block.errors)
            committed(task, len(block.errors), own)


def _unfinished(tasks: Iterable[Task], writer: StoreWriter, begun: deque[Task]) -> Iterator[Task]:
    """The tasks that still have no receipt when their turn comes, which others may have given them meanwhile."""
    for task in tasks:
        if not writer.is_finished(task):
            begun.append(task)
            yield task


def _samples(tasks: Iterable[Task], index: Index) -> Iterator[Sample]:
    for task in tasks:
        rows = index.rows(task.start, task.stop)
        columns = (rows[name].to_pylist() for name in ("key", "uri", "target", "size"))
        yield from (Sample(*values) for values in zip(*columns, strict=True))


def _load(source: Source, rows: Iterable[Sample], extractor: Extractor, threads: int, ahead: int) -> Any:
    if extractor.takes_text:
        return load_texts(source, rows, threads=threads, ahead=ahead)
    return load_crops(source, rows, extractor.preprocess, threads=threads, ahead=ahead)


class _Block:
    """The features and the errors of one task while it is computed."""

    def __init__(self, layers: Sequence[LayerRecord], task: Task, options: Options) -> None:
        self._task = task
        self._options = options
        self.features: dict[Layer, Floats] = {
            layer.key: np.full((task.rows, *layer.shape), np.nan, layer.dtype) for layer in layers
        }
        self.errors: dict[int, str] = {}

    def fill_all(self, first: Loaded, loaded: Iterator[Loaded], extractor: Extractor) -> None:
        """Extract all rows of the task, ``first`` and those that follow."""
        size = self._options.batch_size
        for start in range(0, self._task.rows, size):
            head = [first] if start == 0 else []
            batch = [*head, *islice(loaded, min(size, self._task.rows - start) - len(head))]
            self._fill(start, batch, extractor)

    def _fill(self, start: int, batch: Sequence[Loaded], extractor: Extractor) -> None:
        """Extract a batch into the rows from ``start``, counted from the first of the task."""
        failed: dict[int, FeatregError] = {
            place: loaded for place, loaded in enumerate(batch) if isinstance(loaded, FeatregError)
        }
        self._raise_first(failed, start)
        if len(failed) < len(batch):
            for layer, values in extractor(_stack(batch, extractor)).items():
                for place in _store(self.features[layer][start : start + len(batch)], values, layer):
                    failed.setdefault(place, _overflow(layer, self.features[layer].dtype))
        self._raise_first(failed, start)
        for place, error in failed.items():
            self.errors[self._task.start + start + place] = f"{type(error).__name__}: {error}"
            for features in self.features.values():
                features[start + place] = np.nan

    def _raise_first(self, failed: dict[int, FeatregError], start: int) -> None:
        if failed and self._options.raise_errors:
            place = min(failed)
            failed[place].add_note(f"row {self._task.start + start + place}")
            raise failed[place]


def _stack(batch: Sequence[Loaded], extractor: Extractor) -> Any:
    """The batch as the model takes it, empty where a sample failed: texts, or crops as (N, 3, h, w)."""
    if extractor.takes_text:
        return [loaded if isinstance(loaded, str) else "" for loaded in batch]
    return _stack_crops(batch, extractor.preprocess)


def _stack_crops(batch: Sequence[Loaded], preprocess: Preprocess) -> Pixels:
    stacked = np.zeros((len(batch), 3, *(crop_size(preprocess) or ())), np.uint8)
    for place, loaded in enumerate(batch):
        if isinstance(loaded, np.ndarray):
            stacked[place] = loaded.transpose(2, 0, 1)
    return stacked


def _store(rows: Floats, values: Floats, layer: Layer) -> list[int]:
    """Copy a batch of features to where they are kept; the places that did not fit into a narrower type."""
    if values.shape != rows.shape:
        raise BackendError(f"{layer!r} has another shape than was predicted", str(rows.shape), str(values.shape))
    with np.errstate(over="ignore"):
        rows[:] = values
    if rows.dtype.itemsize >= values.dtype.itemsize:
        return []
    lost = np.isinf(rows) & np.isfinite(values)
    return [int(place) for place in np.flatnonzero(lost.reshape(len(rows), -1).any(axis=1))]


def _overflow(layer: Layer, dtype: np.dtype[Any]) -> StoreError:
    return StoreError(f"the features of {layer!r} exceed the range of {dtype}", remedy="dtype='float32'")
