"""Backends whose synthetic weights are none."""

from __future__ import annotations

import attrs

from featreg.conformance.mutants.base import Double, declares, mutant
from featreg.plugin import BackendExtractor, ExtractionRequest, synthetic_seed


@mutant("values.synthetic", when=declares("synthetic_weights"))
class IgnoresTheSeed(Double):
    """Draws the weights of one seed whichever is asked for."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        if synthetic_seed(request.weights) is not None:
            request = attrs.evolve(request, weights="synthetic:0")
        return self.inner.open(request)
