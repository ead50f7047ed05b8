"""Mutants that spoil the network behind an extractor."""

from __future__ import annotations

from collections.abc import Sequence

from featreg.arrays import Array
from featreg.conformance.mutants.base import Double, DoubleExtractor, declares, mutant
from featreg.plugin import BackendExtractor
from featreg.spec import ExtractionRequest


@mutant("state.evaluation", when=declares("grad"))
class StaysInTraining(Double):
    """Leaves the network in training mode."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        opened = self.inner.open(request)
        opened.module.train()
        return opened


@mutant("state.evaluation", when=declares("grad"))
class TrainsAfterwards(DoubleExtractor):
    """Sets the last part of the network to training mode after each call."""

    def forward(self, batch: Array) -> Sequence[Array]:
        outputs = self.inner.forward(batch)
        list(self.module.modules())[-1].training = True
        return outputs


@mutant("state.parameters", when=declares("grad"))
class MovesParameters(DoubleExtractor):
    """Changes a parameter with every call, as a moving average does in training mode."""

    def forward(self, batch: Array) -> Sequence[Array]:
        outputs = self.inner.forward(batch)
        for value in self.module.state_dict().values():
            if value.is_floating_point():
                value.data.mul_(1.001)
                break
        return outputs


@mutant("state.hooks", when=declares("grad"))
class LeaksHooks(DoubleExtractor):
    """Attaches a hook with every call."""

    def forward(self, batch: Array) -> Sequence[Array]:
        self.module.register_forward_hook(lambda *arguments: None)
        return self.inner.forward(batch)
