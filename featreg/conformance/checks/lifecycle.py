"""From opening to closing, in other threads and other processes."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import json
import pickle
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import numpy as np

from featreg.arrays import to_numpy
from featreg.conformance.elsewhere import ask_neighbour
from featreg.conformance.model import check
from featreg.conformance.subject import Floats, Subject
from featreg.errors import RequestError
from featreg.extractor import Extractor, create_extractor
from featreg.featureset import FeatureSet
from featreg.serialize import to_dict

CYCLES, WARMUP = 50, 5

OPEN_ELSEWHERE = """
import hashlib, json, pickle, sys
import numpy as np
import featreg
request, seed, shape = pickle.loads(bytes.fromhex(sys.argv[1]))
images = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
with featreg.create_extractor(request) as extractor:
    features = extractor(images)
print(json.dumps({str(key): [list(a.shape), hashlib.sha256(a.tobytes()).hexdigest()] for key, a in features.items()}))
"""

DESCRIBE_ELSEWHERE = """
import json, sys
import featreg
from featreg.serialize import to_dict
print(json.dumps(to_dict(featreg.describe(sys.argv[1], tuple(map(int, sys.argv[2:]))))))
"""


@check("lifecycle.close")
def close(subject: Subject) -> None:
    """Closing works, twice as well, and after it a call raises RequestError; another of the same model goes on.

    Why: a context manager closes on every way out, and two extractors of one model are two.
    Caught: a ``close`` that drops the weights which a cache shares with the next extractor.
    Mend: release only what the extractor itself holds, and let ``close`` be harmless.
    """
    images = subject.images(1)
    with subject.open() as other:
        wanted = other(images).map(np.array)
        with subject.open() as extractor:
            extractor(images)
            subject.scene.doing = "extractor.close()"
        extractor.close()
        subject.scene.doing = ""
        subject.raises(
            RequestError,
            lambda: extractor(images),
            "calling a closed extractor",
            "extractor.close(); extractor(images)",
        )
        got = other(images)
    for layer in subject.layers:
        closed = f"with {subject.opening()} as other:\n    other(images)"
        code = f"wanted = extractor(images)[{layer!r}].copy()\n{closed}\nextractor(images)[{layer!r}], wanted"
        subject.same(got[layer], wanted[layer], f"closing one extractor changes {layer!r} of another", layer, code)


@check("lifecycle.growth")
def growth(subject: Subject) -> None:
    """Fifty times opening, calling and closing leave no more objects behind than five times do.

    Why: a service opens models all day.
    Caught: complaints about memory are among the oldest (thingsvision #74); a cache without a limit and a module-level
    list of hooks are two ways to it.
    Mend: bound every cache (``functools.lru_cache(maxsize=...)``), and let ``close`` break reference cycles.
    """
    images, layers = subject.images(1), subject.layers[:1]
    counts = []
    for cycle in range(CYCLES):
        subject.run(images, layers)
        if cycle in (WARMUP - 1, CYCLES - 1):
            gc.collect()
            counts.append(len(gc.get_objects()))
    grown = counts[1] - counts[0]
    code = (
        f"import gc\ncounts = []\nfor cycle in range({CYCLES}):\n    with {subject.opening(layers)} as opened:\n"
        "        opened(images)\n    gc.collect()\n    counts.append(len(gc.get_objects()))\n"
        f"assert counts[-1] - counts[{WARMUP - 1}] < {CYCLES - WARMUP}"
    )
    subject.expect(grown < CYCLES - WARMUP, "objects stay behind", f"below {CYCLES - WARMUP} more", grown, code=code)


@check("lifecycle.calls_growth")
def calls_growth(subject: Subject) -> None:
    """Fifty calls of one extractor leave no more objects behind than five do.

    Why: a data set is a million calls.
    Caught: a tap that appends to a list; shapes remembered for every size without a bound; vision #1305 of Brain-Score,
    whose calls are all kept in memory (500 GB).
    Mend: replace, never append; clear taps at the end of every call.
    """
    images = subject.images(1)
    counts = []
    with subject.open() as extractor:
        for call in range(CYCLES):
            extractor(images)
            if call in (WARMUP - 1, CYCLES - 1):
                gc.collect()
                counts.append(len(gc.get_objects()) + _held_arrays())
    grown = counts[1] - counts[0]
    code = "for _ in range(50): extractor(images)"
    subject.expect(grown < CYCLES - WARMUP, "calls leave objects behind", f"below {CYCLES - WARMUP}", grown, code=code)


def _held_arrays() -> int:
    """The arrays that lists and dictionaries hold, which the collector itself does not count."""
    return sum(
        type(value) is np.ndarray
        for held in gc.get_objects()
        if type(held) in (list, dict)
        for value in (list(held.values()) if type(held) is dict else list(held))
    )


@check("lifecycle.threads")
def threads(subject: Subject) -> None:
    """Four threads that each open an extractor, and then each call one at the same time, get what one thread gets.

    Why: the methods of a Backend may be called from any thread, and extractors of one model must not meet.
    Caught: a global grad mode or a global tap that one thread sets and the other reads; lazy loading without a lock.
    Mend: keep state in the extractor; guard what is made once with a lock.
    """
    batches = [subject.images(1, seed=seed) for seed in range(4)]
    with subject.open() as extractor:
        wanted = [extractor(images) for images in batches]
    with ThreadPoolExecutor(len(batches)) as pool, contextlib.ExitStack() as stack:
        opened = [task.result() for task in [pool.submit(_opened, subject) for _ in batches]]
        for extractor in opened:
            stack.callback(extractor.close)
        calls = [pool.submit(_run_thrice, *pair) for pair in zip(opened, batches, strict=True)]  # only now: to meet
        found = [call.result() for call in calls]
    for given, true in zip(found, wanted, strict=True):
        for features, layer in itertools.product(given, subject.layers):
            problem = f"{layer!r} is another in a thread"
            subject.close(features[layer], true[layer], problem, layer, rtol=1e-3, atol=1e-4)


def _opened(subject: Subject) -> Extractor:
    return create_extractor(subject.model, subject.layers, registry=subject.registry)


def _run_thrice(extractor: Extractor, images: Floats) -> list[FeatureSet]:
    return [extractor(images) for _ in range(3)]


@check("lifecycle.process")
def process(subject: Subject) -> None:
    """A request that is pickled into another process gives the same bits there.

    Why: only the request crosses a process boundary; workers of a cluster must compute one thing.
    Caught: weights that are drawn from ``hash()``, which differs by process; models that are registered when a module
    that only the parent imported runs.
    Mend: let everything follow from the request; seed from numbers, not from hashes.
    """
    images = subject.images(2)
    request = subject.request()
    here = subject.run(images)
    there = ask_neighbour(OPEN_ELSEWHERE, pickle.dumps((request, subject.case.seed, images.shape)).hex())
    for layer in subject.layers:
        array = np.ascontiguousarray(to_numpy(here[layer]))
        wanted = [list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
        subject.expect(there[str(layer)] == wanted, f"{layer!r} differs by process", wanted, there[str(layer)], layer)


@check("lifecycle.described_elsewhere")
def described_elsewhere(subject: Subject) -> None:
    """Another process, with another hash seed, describes the model alike.

    Why: a plan made on one machine is carried out on others.
    Caught: layers in the order of a set; names that depend on what was imported before.
    Mend: sort, or keep the library's own order; never iterate over a set.
    """
    height, width = subject.case.size
    here = json.loads(json.dumps(to_dict(subject.describe(subject.case.size))))
    there = ask_neighbour(DESCRIBE_ELSEWHERE, subject.model, str(height), str(width))
    changed = [name for name in here if here[name] != there.get(name)]
    problem = "another process describes the model otherwise"
    code = f"featreg.describe({subject.model!r}, {subject.case.size})"
    subject.expect(not changed, problem, "the same description", ", ".join(changed), code=code)


@check("lifecycle.pickled_features")
def pickled_features(subject: Subject) -> None:
    """The features of a call survive pickling, and so do the model's description and the request.

    Why: features come back from worker processes.
    Caught: keyword-only exceptions and framework handles that do not unpickle, which breaks process pools and Ray.
    Mend: return plain arrays; keep handles out of descriptions.
    """
    features = subject.run(subject.images(1))
    subject.scene.doing = "import pickle\npickle.dumps(extractor(images))"
    again = pickle.loads(pickle.dumps(features))
    subject.expect(list(again) == list(features), "pickling loses layers", list(features), list(again))
    for layer in subject.layers:
        pair = f"pickle.loads(pickle.dumps(features))[{layer!r}], features[{layer!r}]"
        code = f"import pickle\nfeatures = extractor(images)\n{pair}"
        subject.same(again[layer], features[layer], f"pickling changes {layer!r}", layer, code)
    info = subject.describe()
    code = f"import pickle\ninfo = featreg.describe({subject.model!r})\nassert pickle.loads(pickle.dumps(info)) == info"
    subject.expect(pickle.loads(pickle.dumps(info)) == info, "the description does not survive pickling", code=code)


@contextlib.contextmanager
def without_network() -> Iterator[list[str]]:
    """Let every connection fail; what is yielded lists those that were tried."""
    tried: list[str] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        tried.append(str(arguments[1:] or arguments))
        raise OSError("the conformance kit allows no network here")

    with (
        mock.patch.object(socket.socket, "connect", refuse),
        mock.patch.object(socket.socket, "connect_ex", refuse),
        mock.patch.object(socket, "getaddrinfo", refuse),
    ):
        yield tried


@check("lifecycle.offline")
def offline(subject: Subject) -> None:
    """``weights=None`` opens and runs without a network: no connection is even tried.

    Why: tests, air-gapped clusters and laptops on trains.
    Caught: hubs that ask for a file's newest version although it is in the cache; configurations that are fetched to
    build a network of random weights.
    Mend: build from the library's own configuration; touch a hub only for ``weights``.
    """
    images = subject.images(1)
    with without_network() as tried:
        subject.run(images, weights=None)
        subject.describe()
    subject.expect(not tried, "a connection is tried with weights=None", "none", ", ".join(tried[:3]))
