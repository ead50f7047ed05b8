"""Mutants that lose the end of a large batch, or that remember earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from featreg.arrays import Array, to_numpy
from featreg.conformance.mutants.base import DoubleExtractor, like, mutant
from featreg.plugin import BackendExtractor
from featreg.spec import ExtractionRequest


class _InPieces(DoubleExtractor):
    """Fills the features of a batch piece by piece, but for the piece that is not whole."""

    piece: ClassVar[int]

    def forward(self, batch: Array) -> Sequence[Array]:
        outputs, count = self.inner.forward(batch), len(batch)
        if count <= self.piece:
            return outputs
        whole = np.arange(count) < count // self.piece * self.piece
        found = [to_numpy(array) for array in outputs]
        return [
            like(values * whole.reshape(-1, *[1] * (values.ndim - 1)), array)
            for values, array in zip(found, outputs, strict=True)
        ]


@mutant("values.large_batch")
class InFours(_InPieces):
    """Takes large batches in pieces of four, and leaves out the last where it is not whole."""

    piece = 4


@mutant("values.large_batch")
class InSixteens(_InPieces):
    """Takes large batches in pieces of sixteen, and leaves out the last where it is not whole."""

    piece = 16


@mutant("values.sequence")
class SpoiltByOthers(DoubleExtractor):
    """Gives other values for a shape that it has seen before, once it has seen another since."""

    def __init__(self, inner: BackendExtractor, request: ExtractionRequest) -> None:
        super().__init__(inner, request)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, batch: Array) -> Sequence[Array]:
        outputs, shape = self.inner.forward(batch), tuple(batch.shape)
        returns = shape in self.seen[:-1] and self.seen[-1] != shape
        self.seen.append(shape)
        return [like(to_numpy(array) * np.float32(1.01), array) for array in outputs] if returns else outputs
