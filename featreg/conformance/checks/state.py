"""The process is as it was before the call."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from featreg.conformance.model import check
from featreg.conformance.subject import Subject
from featreg.errors import FeatregError, InputError

SEED = 70_801


def _torch() -> Any:
    """Torch where the backend has imported it; the kit itself imports no framework."""
    return sys.modules.get("torch")


def _generators() -> dict[str, Any]:
    """The states of the random generators of this process, as values that compare."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    states: dict[str, Any] = {
        "random": random.getstate(),
        "numpy.random": (kind, np.asarray(keys).tobytes(), position, has_gauss, cached),
    }
    if _torch() is not None:
        states["torch"] = _torch().get_rng_state().numpy().tobytes()
    return states


def _process() -> dict[str, Any]:
    """What a process has but one of."""
    settings: dict[str, Any] = {
        "working directory": os.getcwd(),
        "environment": dict(os.environ),
        "numpy.errstate": np.geterr(),
        "numpy.printoptions": repr(np.get_printoptions()),
        "sys.path": list(sys.path),
        "recursion limit": sys.getrecursionlimit(),
        "warning filters": list(warnings.filters),
        "exception hook": sys.excepthook,
        "logging of everyone": (list(logging.root.handlers), logging.root.level, logging.root.manager.disable),
        "standard output": sys.stdout,
        "standard error": sys.stderr,
        "umask": _umask(),
    }
    if threading.current_thread() is threading.main_thread():
        settings["signal handlers"] = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return settings


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _framework() -> dict[str, Any]:
    """The modes of the framework that a call may have to set."""
    torch, found = _torch(), {}
    if torch is not None:
        for name, read in MODES.items():
            with contextlib.suppress(AttributeError, RuntimeError):  # older, or the caller mixes two ways of setting it
                found[name] = read(torch)
    return found


MODES: Mapping[str, Callable[[Any], Any]] = {
    "grad mode": lambda torch: torch.is_grad_enabled(),
    "inference mode": lambda torch: torch.is_inference_mode_enabled(),
    "default dtype": lambda torch: torch.get_default_dtype(),
    "default device": lambda torch: str(torch.get_default_device()),
    "threads": lambda torch: torch.get_num_threads(),
    "threads between operations": lambda torch: torch.get_num_interop_threads(),
    "autocast": lambda torch: [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")],
    "deterministic algorithms": lambda torch: torch.are_deterministic_algorithms_enabled(),
    "float32 matmul precision": lambda torch: torch.get_float32_matmul_precision(),
    "cuda.matmul.allow_tf32": lambda torch: torch.backends.cuda.matmul.allow_tf32,
    "cudnn.allow_tf32": lambda torch: torch.backends.cudnn.allow_tf32,
    "cudnn.benchmark": lambda torch: torch.backends.cudnn.benchmark,
    "cudnn.deterministic": lambda torch: torch.backends.cudnn.deterministic,
    "cudnn.enabled": lambda torch: torch.backends.cudnn.enabled,
    "mkldnn.enabled": lambda torch: torch.backends.mkldnn.enabled,
}
"""What torch keeps for a whole process or thread, and how it is read."""


def snapshot() -> dict[str, Any]:
    """All that a backend leaves as it was."""
    return {**_process(), **_generators(), **_framework()}


def _unlike(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    return ", ".join(name for name, value in before.items() if name not in after or after[name] != value)


def _hold_state(subject: Subject, read: Callable[[], dict[str, Any]], what: str) -> None:
    """Opening, calling and closing leave a state as it was; describing the case has imported the framework."""
    images = subject.images(2)
    before = read()
    with subject.open() as extractor:
        changed = _unlike(before, read())
        subject.expect(not changed, f"opening changes {what}", "as before", changed, code="")
        extractor(images)
        changed = _unlike(before, read())
        subject.expect(not changed, f"a call changes {what}", "as before", changed)
        subject.describe(subject.case.size)
    changed = _unlike(before, read())
    subject.expect(not changed, f"describing or closing changes {what}", "as before", changed)


@check("state.random")
def random_state(subject: Subject) -> None:
    """Opening, describing, calling and closing leave the random generators of Python, NumPy and torch as they were.

    Why: a caller who seeded his experiment expects it to repeat with and without feature extraction in between.
    Caught: torch's ``manual_seed`` in a constructor, to make random weights repeat; weights that are drawn from the
    global generator.
    Mend: draw from a generator of your own, or restore the global one (``torch.random.fork_rng``).
    """
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(SEED)  # a state that no backend would think of setting
    np.random.seed(SEED)
    try:
        _hold_state(subject, _generators, "a random generator")
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@check("state.process")
def process(subject: Subject) -> None:
    """Opening, describing, calling and closing leave the working directory, the environment, NumPy's settings, the
    warning filters, the handlers and the level of the root logger, ``sys.path``, the signal handlers, the umask and the
    standard streams as they were.

    Why: a library is a guest in the caller's process.
    Caught: mindspore 2.10 runs at a fiftieth of its speed unless ``ONEDNN_MAX_CPU_ISA`` is set before its import, which
    invites plugins to set it for everyone.
    Mend: set what must be set in a scope that restores it, or call the library's own function.
    """
    _hold_state(subject, _process, "the process")


def _no_torch(subject: Subject) -> str:
    subject.registry.backend(subject.backend_name)
    return "" if _torch() is not None else "torch is not imported"


@check("state.framework", when=_no_torch)
def framework(subject: Subject) -> None:
    """Opening, describing, calling and closing leave torch's gradient mode, default dtype and device, autocast,
    determinism, thread counts, the precision of float32 products (TF32) and the switches of cuDNN as they were.

    Why: the caller trains with the same framework in the same process.
    Caught: ``torch.set_grad_enabled(False)`` in an extractor's constructor, after which nothing trains;
    ``torch.set_num_threads(1)`` for a repeatable sum; ``cudnn.benchmark = True`` and
    ``set_float32_matmul_precision("high")`` for speed, which change the numbers of everything else.
    Mend: use the context managers of the framework around the forward pass (``torch.backends.cudnn.flags``).
    """
    _hold_state(subject, _framework, "the framework's modes")


@check("state.exceptions")
def exceptions(subject: Subject) -> None:
    """After a batch that is refused, the process is as before and the extractor gives the same bits as ever.

    Why: one bad image in a data set must not change the ones after it.
    Caught: FiftyOne turns one bad image's whole batch into None; hooks and modes that are removed after the forward
    pass, but not in a ``finally``.
    Mend: restore in ``finally``, or with context managers.
    """
    images = subject.images(2)
    with subject.open() as extractor:
        wanted = extractor(images).map(np.array)
        before = snapshot()
        for bad, code in (
            (images[:, :2], "images[:, :2]"),
            (images[0], "images[0]"),
            (images.astype(str), "images.astype(str)"),
        ):
            call = functools.partial(extractor, bad)
            subject.raises(InputError, call, "a batch that is none", f"extractor({code})")
        changed = _unlike(before, snapshot())
        subject.expect(not changed, "a refused batch changes the process", "as before", changed)
        got = extractor(images)
    for layer in subject.layers:
        each = "for bad in (images[:, :2], images[0], images.astype(str))"
        refused = f"{each}:\n    try:\n        extractor(bad)\n    except errors.InputError:\n        pass"
        code = f"wanted = extractor(images)[{layer!r}].copy()\n{refused}\nextractor(images)[{layer!r}], wanted"
        subject.same(got[layer], wanted[layer], f"after a refused batch {layer!r} is another", layer, code)


@check("state.recovers")
def recovers(subject: Subject) -> None:
    """When the network itself fails in the middle of a batch, the next batch is computed as ever.

    Why: an exception inside the network is where hooks, buffers and modes are left behind.
    Caught: a raising hook that leaves the others attached, so that the next call fills its taps twice; a lock that is
    never released.
    Mend: run the network inside ``try`` and ``finally``; start every call with empty taps.
    """
    images = subject.images(2)
    with subject.open() as extractor:
        wanted = extractor(images).map(np.array)
        with _failing_at(-1) as passed:
            extractor(images)
        for quarter in (1, 2, 3):
            with contextlib.suppress(FeatregError, OutOfLuck), _failing_at(passed[0] * quarter // 4):
                extractor(images)
            got = extractor(images)
            for layer in subject.layers:
                subject.same(got[layer], wanted[layer], f"after a failure {layer!r} is another", layer)


class OutOfLuck(Exception):
    """What the kit raises inside a network."""


@contextlib.contextmanager
def _failing_at(call: int) -> Iterator[list[int]]:
    """Let the call of that number fail, counting those of Python functions outside the kit; none where negative.

    Not those of generators: one that is dropped half-way is called once more, where nobody can see an exception.
    """
    passed = [0]

    def profile(frame: Any, event: str, argument: Any) -> None:
        name = frame.f_globals.get("__name__", "")
        if event != "call" or frame.f_code.co_flags & inspect.CO_GENERATOR:
            return
        if name.startswith(("featreg.conformance", "contextlib")):
            return
        passed[0] += 1
        if passed[0] == call:
            sys.setprofile(None)
            raise OutOfLuck("the conformance kit made this call fail")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield passed
    finally:
        sys.setprofile(before)
