"""Rows of a store in batches, in order or shuffled by blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import numpy as np

from featreg.spec import Layer

if TYPE_CHECKING:
    from featreg.stores.rows import Rows

__all__ = ["BUFFER_BYTES", "Batch", "block_rows", "iter_batches", "read_batch"]

Integers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Values: TypeAlias = np.ndarray[Any, Any]

BUFFER_BYTES = 256 * 2**20
"""What the buffer of a shuffle may weigh by default."""


@attrs.frozen(eq=False)
class Batch:
    """Some rows: their numbers in the store, the features (n, ...) of each layer, and the targets where there are any.

    ``batch["C5"]`` is ``batch.features["C5"]``.
    """

    rows: Integers
    features: Mapping[Layer, Values]
    targets: Integers | None

    def __getitem__(self, layer: Layer) -> Values:
        return self.features[layer]

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, start: int, stop: int) -> Batch:
        """The rows from ``start`` to before ``stop``, without a copy."""
        features = {layer: values[start:stop] for layer, values in self.features.items()}
        return Batch(self.rows[start:stop], features, None if self.targets is None else self.targets[start:stop])


def block_rows(rows: Rows, layers: Sequence[Layer]) -> int:
    """How many rows are best read at once: those of a shard, the largest one where layers differ."""
    arrays = [rows[layer].array for layer in layers]
    return max((array.shards or array.chunks)[0] for array in arrays)


def read_batch(rows: Rows, positions: Integers, layers: Sequence[Layer], *, flatten: bool) -> Batch:
    """The rows at ascending positions."""
    features = {layer: _shaped(np.asarray(rows[layer][positions]), flatten) for layer in layers}
    targets = rows.targets
    return Batch(rows.row_numbers(positions), features, None if targets is None else targets[positions])


def iter_batches(
    rows: Rows, size: int, layers: Sequence[Layer], *, shuffle: bool, seed: int, buffer: int | None, flatten: bool
) -> Iterator[Batch]:
    """Every row once, ``size`` at a time; see :meth:`featreg.stores.rows.Rows.batches`."""
    waiting: Batch | None = None
    for loaded in _buffers(rows, layers, shuffle=shuffle, seed=seed, buffer=buffer, flatten=flatten):
        start = 0
        if waiting is not None:
            start = min(size - len(waiting), len(loaded))
            waiting = _joined(waiting, loaded.part(0, start))
            if len(waiting) < size:
                continue
            yield waiting
        whole = start + (len(loaded) - start) // size * size
        for first in range(start, whole, size):
            yield loaded.part(first, first + size)
        waiting = loaded.part(whole, len(loaded)) if whole < len(loaded) else None
    if waiting is not None:
        yield waiting


def _buffers(
    rows: Rows, layers: Sequence[Layer], *, shuffle: bool, seed: int, buffer: int | None, flatten: bool
) -> Iterator[Batch]:
    """The rows in the order in which they go out, as many at a time as are held in memory."""
    block = block_rows(rows, layers)
    starts = np.arange(0, len(rows), block)
    generator = np.random.default_rng(seed)
    together = 1
    if shuffle:
        generator.shuffle(starts)
        together = max((buffer or _fitting(rows, layers)) // block, 1)
    for first in range(0, len(starts), together):
        spans = [(start, min(start + block, len(rows))) for start in starts[first : first + together].tolist()]
        count = sum(stop - start for start, stop in spans)
        yield _load(rows, spans, layers, generator.permutation(count) if shuffle else np.arange(count), flatten)


def _load(
    rows: Rows, spans: Sequence[tuple[int, int]], layers: Sequence[Layer], places: Integers, flatten: bool
) -> Batch:
    """The rows of several spans, each at its place in the buffer."""
    positions = np.empty(len(places), np.int64)
    features = {layer: np.empty((len(places), *rows[layer].shape[1:]), rows[layer].dtype) for layer in layers}
    read = 0
    for start, stop in spans:
        here = places[read : read + stop - start]
        read += stop - start
        positions[here] = np.arange(start, stop)
        for layer, values in features.items():
            values[here] = rows[layer][start:stop]
    shaped = {layer: _shaped(values, flatten) for layer, values in features.items()}
    targets = rows.targets
    return Batch(rows.row_numbers(positions), shaped, None if targets is None else targets[positions])


def _fitting(rows: Rows, layers: Sequence[Layer]) -> int:
    """How many rows fit into the buffer of a shuffle."""
    weight = sum(math.prod(rows[layer].shape[1:]) * rows[layer].dtype.itemsize for layer in layers)
    return BUFFER_BYTES // max(weight, 1)


def _joined(first: Batch, second: Batch) -> Batch:
    features = {layer: np.concatenate([values, second[layer]]) for layer, values in first.features.items()}
    targets = None
    if first.targets is not None and second.targets is not None:
        targets = np.concatenate([first.targets, second.targets])
    return Batch(np.concatenate([first.rows, second.rows]), features, targets)


def _shaped(values: Values, flatten: bool) -> Values:
    return values.reshape(len(values), math.prod(values.shape[1:])) if flatten else values
