"""Mutants whose graphs are cut, wrong, or there when nobody asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from featreg.arrays import Array
from featreg.conformance.mutants.base import Double, DoubleExtractor, declares, like, mutant
from featreg.plugin import Backend, BackendExtractor
from featreg.spec import ExtractionRequest


@mutant("grad.default", when=declares("grad"))
class AlwaysAGraph(DoubleExtractor):
    """Gives tensors that ask for a gradient."""

    def forward(self, batch: Array) -> Sequence[Array]:
        return [array.detach().clone().requires_grad_() for array in self.inner.forward(batch)]

    def to_numpy(self, array: Array) -> Array:
        return self.inner.to_numpy(array.detach())


@mutant("grad.input", when=declares("grad"))
class CutGraph(DoubleExtractor):
    """Cuts the graph on the way out."""

    def forward(self, batch: Array) -> Sequence[Array]:
        return [array.detach() for array in self.inner.forward(batch)]


@mutant("grad.input", when=declares("grad"))
class HalvedGradient(DoubleExtractor):
    """Gives the right values with half the gradient."""

    def forward(self, batch: Array) -> Sequence[Array]:
        outputs = self.inner.forward(batch)
        return [array.detach() + (array - array.detach()) / 2 for array in outputs]


@mutant("grad.parameters", when=declares("grad"))
class FrozenParameters(Double):
    """Freezes the network when it is opened."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        opened = self.inner.open(request)
        opened.module.requires_grad_(False)
        return opened


@mutant("grad.same_values", when=declares("grad"))
class TrainsUnderGrad(DoubleExtractor):
    """Drops a tenth of the values where gradients are asked for, as dropout does in training mode."""

    def forward(self, batch: Array) -> Sequence[Array]:
        outputs = self.inner.forward(batch)
        if not self.request.grad:
            return outputs
        kept = [np.random.default_rng(0).random(tuple(array.shape)) > 0.1 for array in outputs]
        return [array * like(mask, array) for mask, array in zip(kept, outputs, strict=True)]


@mutant("grad.apart", when=declares("grad"))
class SharesTheNetwork(Double):
    """Freezes the networks of all extractors where one is opened without gradients, as if they were one."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.opened: list[BackendExtractor] = []

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        opened = self.inner.open(request)
        self.opened = [*(one for one in self.opened if one.module is not None), opened]
        for one in self.opened:
            one.module.requires_grad_(request.grad)
        return opened


class _Foreign:
    """An array of a framework that the kit does not know."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __getattr__(self, name: str) -> Any:
        return getattr(self.array, name)


@mutant("grad.judged", when=declares("grad"))
class OtherFramework(DoubleExtractor):
    """Gives native arrays of a framework whose gradients nobody knows."""

    def forward(self, batch: Array) -> Sequence[Array]:
        outputs = self.inner.forward(batch)
        return list(map(_Foreign, outputs)) if self.request.array == "native" else outputs
