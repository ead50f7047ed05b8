"""Rows of a store in batches, in order or shuffled by blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import numpy as np

from featreg.spec import Layer

if TYPE_CHECKING:
    from featreg.stores.reading.rows import Rows

__all__ = ["BUFFER_BYTES", "Batch", "block_rows", "iter_batches", "read_batch"]

Integers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Values: TypeAlias = np.ndarray[Any, Any]

Span: TypeAlias = tuple[int, int]
"""The first of some rows, and the first after them."""

BUFFER_BYTES = 256 * 2**20
"""What the buffer of a shuffle may weigh by default."""


@attrs.frozen(eq=False)
class Batch:
    """Some rows: their numbers in the store, the features (n, ...) of each layer, and the targets.

    ``batch["C5"]`` is ``batch.features["C5"]``. A target is -1 where a row has none, and ``targets`` None where no row
    of the store has one.
    """

    rows: Integers
    features: Mapping[Layer, Values]
    targets: Integers | None

    def __getitem__(self, layer: Layer) -> Values:
        return self.features[layer]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: Integers) -> Batch:
        """Some of the rows, as a copy."""
        features = {layer: values[positions] for layer, values in self.features.items()}
        return Batch(self.rows[positions], features, None if self.targets is None else self.targets[positions])


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
    """Every row once, ``size`` at a time; see :meth:`featreg.stores.reading.rows.Rows.batches`."""
    buffers = _buffers(rows, layers, shuffle=shuffle, seed=seed, buffer=buffer)
    pieces: list[Batch] = []
    for piece in _pieces(rows, size, buffers, layers, flatten):
        pieces.append(piece)
        if sum(map(len, pieces)) == size:
            yield _joined(pieces)
            pieces = []
    if pieces:
        yield _joined(pieces)


def _pieces(
    rows: Rows, size: int, buffers: Iterator[tuple[list[Span], Integers]], layers: Sequence[Layer], flatten: bool
) -> Iterator[Batch]:
    """The batches, cut where one buffer ends and the next begins; what is given out keeps no buffer in memory."""
    missing = size
    for spans, order in buffers:
        loaded = _load(rows, spans, layers, flatten)
        start = 0
        while start < len(order):
            taken = order[start : start + missing]
            yield loaded.take(taken)
            start += len(taken)
            missing = missing - len(taken) or size
        del loaded  # before the next one is loaded


def _buffers(
    rows: Rows, layers: Sequence[Layer], *, shuffle: bool, seed: int, buffer: int | None
) -> Iterator[tuple[list[Span], Integers]]:
    """What is read at once, and in which order its rows go out."""
    block = block_rows(rows, layers)
    starts = np.arange(0, len(rows), block)
    generator = np.random.default_rng(seed)
    together = 1
    if shuffle:
        generator.shuffle(starts)
        buffer = _fitting(rows, layers) if buffer is None else buffer
        together = len(starts) if buffer >= len(rows) else max(buffer // block, 1)
    for first in range(0, len(starts), max(together, 1)):
        spans = [(start, min(start + block, len(rows))) for start in starts[first : first + together].tolist()]
        count = sum(stop - start for start, stop in spans)
        yield spans, generator.permutation(count) if shuffle else np.arange(count)


def _load(rows: Rows, spans: Sequence[Span], layers: Sequence[Layer], flatten: bool) -> Batch:
    """The rows of several spans, one after the other."""
    positions = np.concatenate([np.arange(start, stop) for start, stop in spans])
    features = {layer: np.empty((len(positions), *rows[layer].shape[1:]), rows[layer].dtype) for layer in layers}
    read = 0
    for start, stop in spans:
        for layer, values in features.items():
            values[read : read + stop - start] = rows[layer][start:stop]
        read += stop - start
    shaped = {layer: _shaped(values, flatten) for layer, values in features.items()}
    targets = rows.targets
    return Batch(rows.row_numbers(positions), shaped, None if targets is None else targets[positions])


def _fitting(rows: Rows, layers: Sequence[Layer]) -> int:
    """How many rows fit into the buffer of a shuffle."""
    weight = sum(math.prod(rows[layer].shape[1:]) * rows[layer].dtype.itemsize for layer in layers)
    return BUFFER_BYTES // max(weight, 1)


def _joined(pieces: Sequence[Batch]) -> Batch:
    if len(pieces) == 1:
        return pieces[0]
    features = {layer: np.concatenate([piece[layer] for piece in pieces]) for layer in pieces[0].features}
    targets = [piece.targets for piece in pieces if piece.targets is not None]
    rows = np.concatenate([piece.rows for piece in pieces])
    return Batch(rows, features, np.concatenate(targets) if targets else None)


def _shaped(values: Values, flatten: bool) -> Values:
    return values.reshape(len(values), math.prod(values.shape[1:])) if flatten else values
