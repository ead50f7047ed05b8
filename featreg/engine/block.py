"""The features of one task while they are computed: batches in, the rows of every kept layer out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from featreg.engine.loader import Loaded
from featreg.engine.options import Options
from featreg.errors import BackendError, FeatregError, StoreError
from featreg.extractor import Extractor
from featreg.images import Pixels
from featreg.preprocess import crop_size
from featreg.spec import Layer, Preprocess
from featreg.stores.layout import LayerRecord, Task

__all__ = ["Block"]

Floats: TypeAlias = np.ndarray[Any, Any]


class Block:
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
