"""Mutants that threads break, or that claim they do not."""

from __future__ import annotations

import time
from collections.abc import Sequence

import attrs

from featreg.arrays import Array
from featreg.conformance.mutants.base import Double, DoubleExtractor, declares, mutant
from featreg.plugin import BackendExtractor
from featreg.spec import ExtractionRequest


@mutant("capabilities.thread_safe", when=declares("thread_safe"))
class KeepsTheBatch(DoubleExtractor):
    """Keeps the batch of the current call in the extractor."""

    def forward(self, batch: Array) -> Sequence[Array]:
        self.batch = batch
        time.sleep(0.05)  # long enough for the other threads to come in
        return self.inner.forward(self.batch)


@mutant("capabilities.one_thread", when=lambda info: "thread_safe" not in info.capabilities)
class ClaimsThreads(Double):
    """Says that it is thread-safe once it is opened, and only then."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        opened = DoubleExtractor(self.inner.open(request), request)
        opened.info = attrs.evolve(opened.info, capabilities=(*opened.info.capabilities, "thread_safe"))
        return opened
