"""One extractor that several threads call: it works, or it is refused."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from featreg.arrays import Array
from featreg.conformance.model import check
from featreg.conformance.mutants.base import Double, DoubleExtractor, Mutant, MutantRegistry
from featreg.conformance.subject import Floats, Subject
from featreg.errors import CapabilityError
from featreg.extractor import Extractor, create_extractor
from featreg.featureset import FeatureSet
from featreg.plugin import Backend, BackendExtractor
from featreg.spec import ExtractionRequest

THREADS, ROUNDS = 4, 3

PATIENCE = 60
"""Seconds after which a thread that should have been let go on fails; no result depends on it."""


@check("capabilities.thread_safe", needs=["thread_safe"])
def thread_safe(subject: Subject) -> None:
    """Four threads that call one extractor at once get what calls one after the other give.

    Why: a service answers many requests with one model in memory.
    Caught: a tap that belongs to the network and not to the call, so that one thread reads what another wrote; a batch
    or a buffer that is kept in ``self``.
    Mend: keep everything of a call in local variables, or do not declare ``thread_safe``.
    """
    batches = [subject.images(1, seed=seed) for seed in range(THREADS)]
    with subject.open() as extractor:
        wanted = [extractor(images) for images in batches]
        start = threading.Barrier(THREADS, timeout=PATIENCE)
        with ThreadPoolExecutor(THREADS) as pool:
            tasks = [pool.submit(_call_often, extractor, images, start) for images in batches]
        found = [task.result() for task in tasks]
    for one, rounds in zip(wanted, found, strict=True):
        for features in rounds:
            for layer in subject.layers:
                problem = f"{layer!r} is another when threads call at once"
                subject.close(features[layer], one[layer], problem, layer)


def _call_often(extractor: Extractor, images: Floats, start: threading.Barrier) -> list[FeatureSet]:
    found = []
    for _ in range(ROUNDS):
        start.wait()
        found.append(extractor(images))
    return found


def _declared(subject: Subject) -> str:
    return "thread_safe is declared" if "thread_safe" in subject.info.capabilities else ""


@check("capabilities.one_thread", when=_declared)
def one_thread(subject: Subject) -> None:
    """Where ``thread_safe`` is not declared, a call raises CapabilityError while another thread is in one of the same
    extractor, and that other one ends as ever.

    Why: two calls that meet give features that are wrong without a sign of it.
    Caught: lists of taps that two threads fill, so that a batch is paired with another's features.
    Mend: nothing, as long as the opened model says what ``info`` says: the core refuses.
    """
    entered, let_go = threading.Event(), threading.Event()

    class Waits(DoubleExtractor):
        def forward(self, batch: Array) -> Sequence[Array]:
            if not entered.is_set():
                entered.set()
                let_go.wait(PATIENCE)
            return self.inner.forward(batch)

    images = subject.images(1)
    wanted = subject.run(images)
    with _opened_as(subject, Waits) as extractor, ThreadPoolExecutor(1) as pool:
        first = pool.submit(extractor, images)
        try:
            entered.wait(PATIENCE)
            subject.raises(CapabilityError, lambda: extractor(images), "a call while another thread is in one", "")
        finally:
            let_go.set()
        got = first.result()
    for layer in subject.layers:
        subject.same(got[layer], wanted[layer], f"a call that was refused changed {layer!r} of another", layer)


def _opened_as(subject: Subject, kind: type[DoubleExtractor]) -> Extractor:
    """The extractor of the case, in a double of its backend."""

    class Opens(Double):
        def open(self, request: ExtractionRequest) -> BackendExtractor:
            return kind(self.inner.open(request), request)

    def make(backend: Backend) -> Backend:
        return Opens(backend)

    double = Mutant("", "", "", make, lambda info: True)
    registry = MutantRegistry(subject.registry, subject.backend_name, double)
    return create_extractor(subject.request(), registry=registry)
