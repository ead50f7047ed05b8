"""Mutants whose graphs are cut, wrong, or there when nobody asked."""

from __future__ import annotations

from collections.abc import Sequence

from featreg.arrays import Array
from featreg.conformance.mutants.base import Double, DoubleExtractor, declares, mutant
from featreg.plugin import BackendExtractor
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
