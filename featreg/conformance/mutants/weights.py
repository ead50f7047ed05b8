"""Mutants that take whatever they are given for weights."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path

import attrs

from featreg.conformance.mutants.base import Double, declares, mutant
from featreg.plugin import BackendExtractor
from featreg.spec import ExtractionRequest


@mutant("weights.refused", when=declares("weights"))
class IgnoresWeights(Double):
    """Opens the model with random weights whatever was asked for."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        return self.inner.open(attrs.evolve(request, weights=None))


@mutant("weights.pickle", when=declares("weights"))
class RunsPickles(Double):
    """Looks into a file of weights with pickle before it refuses it."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        with contextlib.suppress(OSError, TypeError, pickle.UnpicklingError):
            pickle.loads(Path(str(request.weights)).read_bytes())
        return self.inner.open(request)
