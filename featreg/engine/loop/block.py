"""The features of one task while they are computed: batches in, the rows of every kept layer out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from featreg.derived import FittedRecipe
from featreg.engine.loop.batching import Model
from featreg.engine.loop.keeping import Keeper
from featreg.engine.loop.loader import Loaded
from featreg.engine.loop.options import Options
from featreg.errors import BackendError, FeatregError, InputError, StoreError
from featreg.images import Pixels
from featreg.preprocess import crop_size
from featreg.spec import Layer, Preprocess
from featreg.stores.layout import Pass, Task

__all__ = ["Block", "extract_batch", "stack_batch"]

Floats: TypeAlias = np.ndarray[Any, Any]


class Block:
    """The features and the errors of one task of a pass while it is computed.

    ``fitted`` is what the derived layers of the pass have learnt, as
    :meth:`~featreg.stores.writer.StoreWriter.fitted` gives it.
    """

    def __init__(
        self, part: Pass, task: Task, options: Options, fitted: Mapping[str, FittedRecipe] | None = None
    ) -> None:
        self._task = task
        self._options = options
        self._keeper = Keeper(part, fitted)
        self.features: dict[Layer, Floats] = {
            layer.key: np.full((task.rows, *layer.shape), np.nan, layer.dtype) for layer in part.layers
        }
        self.errors: dict[int, str] = {}
        self.stopped_at: int | None = None
        """The row whose error was raised."""

    def fill_all(self, first: Loaded, loaded: Iterator[Loaded], extractor: Model) -> None:
        """Extract all rows of the task, ``first`` and those that follow."""
        size = self._options.batch_size
        for start in range(0, self._task.rows, size):
            head = [first] if start == 0 else []
            batch = [*head, *islice(loaded, min(size, self._task.rows - start) - len(head))]
            self._fill(start, batch, extractor)

    def put(self, start: int, features: Mapping[Layer, Floats], failed: Mapping[int, str]) -> None:
        """Store rows that a store has already, from ``start`` on, counted from the first of the task.

        ``failed`` are the errors of those that failed there, by their places among these rows.
        """
        errors = {place: _message(error) for place, error in self._keep(start, features).items()}
        self._fail(start, {**errors, **failed})

    def _fill(self, start: int, batch: Sequence[Loaded], extractor: Model) -> None:
        """Extract a batch into the rows from ``start``, counted from the first of the task."""
        failed = _failures(batch)
        self._raise_first(failed, start)
        if len(failed) < len(batch):
            features, batch = extract_batch(batch, extractor)
            failed = self._keep(start, features) | _failures(batch)
        self._raise_first(failed, start)
        self._fail(start, {place: _message(error) for place, error in failed.items()})

    def _keep(self, start: int, features: Mapping[Layer, Floats]) -> dict[int, FeatregError]:
        """Store a batch, failed rows too, and tell why which rows cannot be stored."""
        failed: dict[int, FeatregError] = {}
        for record, values in self._keeper.rows(features):
            rows = self.features[record.key][start : start + len(values)]
            for place in _store(rows, values, record.key):
                failed.setdefault(place, _overflow(record.key, rows.dtype))
            if record.recipe is not None:
                for place in np.flatnonzero(np.isnan(values).any(axis=1)):
                    failed.setdefault(int(place), _not_finite(record.key))
        return failed

    def _fail(self, start: int, failed: Mapping[int, str]) -> None:
        for place in sorted(failed):
            self.errors[self._task.start + start + place] = failed[place]
            for features in self.features.values():
                features[start + place] = np.nan

    def _raise_first(self, failed: dict[int, FeatregError], start: int) -> None:
        if failed and self._options.raise_errors:
            place = min(failed)
            self.stopped_at = self._task.start + start + place
            failed[place].add_note(f"row {self.stopped_at}")
            raise failed[place]


def extract_batch(batch: Sequence[Loaded], extractor: Model) -> tuple[Mapping[Layer, Any], list[Loaded]]:
    """The features of a batch, and the batch with an error for each text that the model refuses, as one too long.

    Such a text goes along as an empty one, so that its neighbours are as they would be without it.
    """
    try:
        return extractor(stack_batch(batch, extractor)), list(batch)
    except InputError:
        if not extractor.takes_text:
            raise
    told = [_refusal(loaded, extractor) or loaded for loaded in batch]
    return extractor(stack_batch(told, extractor)), told


def _refusal(loaded: Loaded, extractor: Model) -> InputError | None:
    try:
        if isinstance(loaded, str):
            extractor([loaded])
    except InputError as error:
        return error
    return None


def _failures(batch: Sequence[Loaded]) -> dict[int, FeatregError]:
    return {place: loaded for place, loaded in enumerate(batch) if isinstance(loaded, FeatregError)}


def stack_batch(batch: Sequence[Loaded], extractor: Model) -> Any:
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
    return StoreError(
        f"the features of {layer!r} exceed the range of {dtype}", remedy="store_dtype='float32', or dtype='float32'"
    )


def _not_finite(layer: Layer) -> StoreError:
    return StoreError(f"{layer!r} cannot be derived", "finite features", "NaN or infinity from the model")


def _message(error: FeatregError) -> str:
    return f"{type(error).__name__}: {error}"
