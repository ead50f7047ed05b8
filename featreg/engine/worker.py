"""The one loop that reads, crops, extracts and writes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, TypeAlias

import numpy as np

from featreg.engine.loader import Loaded, load_crops
from featreg.errors import BackendError, FeatregError, StoreError
from featreg.extractor import Extractor
from featreg.images import Pixels
from featreg.preprocess import crop_size
from featreg.sources import Sample, Source
from featreg.spec import Layer, Preprocess
from featreg.stores.layout import Manifest, Task
from featreg.stores.writer import StoreWriter

__all__ = ["Advance", "run_tasks"]

Floats: TypeAlias = np.ndarray[Any, Any]
Advance: TypeAlias = Callable[[int], object]
"""Told of finished rows, by their number."""


def run_tasks(
    tasks: Sequence[Task],
    source: Source,
    samples: Sequence[Sample],
    extractor: Extractor,
    writer: StoreWriter,
    *,
    batch_size: int,
    threads: int,
    advance: Advance,
) -> None:
    """Compute and commit tasks one after the other; ``advance`` is told of every batch, in rows.

    ``samples`` is the whole index. A batch never crosses a task, and a row that fails keeps its place in its batch as a
    black image, so that the features of the others do not depend on it. Held in memory are one task's features and two
    batches of crops.
    """
    rows = itertools.chain.from_iterable(samples[task.start : task.stop] for task in tasks)
    ahead = 2 * max(batch_size, threads)
    with closing(load_crops(source, rows, extractor.preprocess, threads=threads, ahead=ahead)) as crops:
        for task in tasks:
            block = _Block(writer.manifest, task)
            for start in range(0, task.rows, batch_size):
                batch = list(itertools.islice(crops, min(batch_size, task.rows - start)))
                block.fill(start, batch, extractor)
                advance(len(batch))
            writer.commit(task, block.features, block.errors)


class _Block:
    """The features and the errors of one task while it is computed."""

    def __init__(self, manifest: Manifest, task: Task) -> None:
        self._first_row = task.start
        self.features: dict[Layer, Floats] = {
            layer.key: np.full((task.rows, *layer.shape), np.nan, layer.dtype) for layer in manifest.layers
        }
        self.errors: dict[int, str] = {}

    def fill(self, start: int, batch: Sequence[Loaded], extractor: Extractor) -> None:
        """Extract a batch into the rows from ``start``, counted from the first of the task."""
        failed: dict[int, FeatregError] = {
            place: loaded for place, loaded in enumerate(batch) if isinstance(loaded, FeatregError)
        }
        if len(failed) < len(batch):
            for layer, values in extractor(_stack(batch, extractor.preprocess)).items():
                for place in _store(self.features[layer][start : start + len(batch)], values, layer):
                    failed.setdefault(place, _overflow(layer, self.features[layer].dtype))
        for place, error in failed.items():
            self.errors[self._first_row + start + place] = f"{type(error).__name__}: {error}"
            for features in self.features.values():
                features[start + place] = np.nan


def _stack(batch: Sequence[Loaded], preprocess: Preprocess) -> Pixels:
    """The crops as (N, 3, h, w), black where an image failed."""
    size = crop_size(preprocess)
    stacked = np.zeros((len(batch), 3, *(size or ())), np.uint8)
    for place, loaded in enumerate(batch):
        if not isinstance(loaded, FeatregError):
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
