"""Mutants that can do what they do not declare, one for each capability that a request can ask for.

``weights`` is left out: a mutant that took ``weights="default"`` would download them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import attrs

from featreg.conformance.mutants.base import Double, declares, mutant
from featreg.plugin import BackendExtractor
from featreg.spec import ExtractionRequest, ModelInfo, NodeInfo, Size


class _Hides(Double):
    capability: ClassVar[str]

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        info = self.inner.info(model, input_size)
        declared = [name for name in info.capabilities if name != self.capability]
        return attrs.evolve(info, capabilities=declared)


@mutant("capabilities.undeclared", when=declares("native_names"))
class HidesNativeNames(_Hides):
    """Does not declare native_names, and does it all the same."""

    capability = "native_names"
    name = "a_name_that_features_does_not_list"

    def nodes(self, model: str, input_size: Size | None = None, train: bool = False) -> Sequence[NodeInfo]:
        return (*self.inner.nodes(model, input_size, train), NodeInfo(self.name))

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        first = self.inner.info(request.model).features[0].name
        return self.inner.open(
            attrs.evolve(request, layers=[first if layer == self.name else layer for layer in request.layers])
        )


for _capability in (
    "native_array",
    "grad",
    "output_stride",
    "float16",
    "bfloat16",
    "cuda",
    "text",
    "synthetic_weights",
):
    _fields = {
        "capability": _capability,
        "__doc__": f"Does not declare {_capability}, and does it all the same.",
        "__module__": __name__,
    }
    mutant("capabilities.undeclared", when=declares(_capability))(
        type(f"Hides{_capability.title().replace('_', '')}", (_Hides,), _fields)
    )
