"""Mutants that take a file of weights and do something else with it than to load it."""

from __future__ import annotations

import os

import attrs

from featreg.conformance.mutants.base import Double, DoubleExtractor, declares, mutant
from featreg.errors import WeightsError
from featreg.plugin import BackendExtractor
from featreg.spec import ExtractionRequest


def _is_file(request: ExtractionRequest) -> bool:
    return request.weights is not None and os.path.isfile(request.weights)


@mutant("weights.loads", when=declares("weights"))
class ForgetsTheFile(Double):
    """Reads a file of weights, refuses what does not fit, and runs the random weights all the same."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        opened = self.inner.open(request)
        if not _is_file(request):
            return opened
        opened.close()
        return self.inner.open(attrs.evolve(request, weights=None))


@mutant("weights.missing", when=declares("weights"))
class LoadsWhatFits(Double):
    """Leaves random what a file of weights lacks."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        try:
            return self.inner.open(request)
        except WeightsError as error:
            if not _is_file(request) or "missing" not in str(error):
                raise
            return self.inner.open(attrs.evolve(request, weights=None))


@mutant("weights.missing", when=declares("weights"))
class SaysOnlyThatItFails(Double):
    """Refuses a file that does not fit without a word of what is missing."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        try:
            return self.inner.open(request)
        except WeightsError as error:
            raise WeightsError("the weights do not fit") from error


@mutant("weights.identity", when=declares("weights"))
class KnownByName(DoubleExtractor):
    """Takes the name of a file for what is in it."""

    def weights_identity(self) -> str | None:
        return self.request.weights if _is_file(self.request) else self.inner.weights_identity()


@mutant("weights.default", when=declares("weights"))
class RandomByDefault(Double):
    """Goes on with random weights where the library's own cannot be had."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        return self.inner.open(attrs.evolve(request, weights=None if request.weights == "default" else request.weights))
