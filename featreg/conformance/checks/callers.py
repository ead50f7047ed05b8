"""The modes of torch that a caller may have set: none of them reaches into a backend."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from featreg.conformance.model import check
from featreg.conformance.snippets import importing
from featreg.conformance.subject import Subject


def _torch() -> Any:
    return sys.modules.get("torch")


def _no_torch(subject: Subject) -> str:
    subject.registry.backend(subject.backend_name)  # imports the framework
    return "" if _torch() is not None else "torch is not imported"


def _hold_under(
    subject: Subject, scope: Callable[[], AbstractContextManager[Any]], entered: str, head: str = "import torch"
) -> None:
    """What an extractor gives within a mode and after it is what it gives without, opened before the mode or in it."""
    images = subject.images(2)
    inside = f"{head}\nwith {entered}:\n    found = {subject.opening()}(images)"
    with subject.open() as extractor:
        subject.scene.doing = inside
        wanted = extractor(images).map(np.array)
        with contextlib.ExitStack() as stack:
            with scope():
                found = [extractor(images), subject.run(images)]
                born = stack.enter_context(subject.open())
            found += [extractor(images), born(images)]
    for features in found:
        for layer in subject.layers:
            problem = f"{layer!r} is another where the caller has set a mode"
            code = f"{inside}\nfound[{layer!r}], extractor(images)[{layer!r}]"
            subject.close(features[layer], wanted[layer], problem, layer, code)


@check("callers.autocast", when=_no_torch)
def autocast(subject: Subject) -> None:
    """Opened and called under ``torch.autocast("cpu", torch.bfloat16)``, an extractor gives what it always gives.

    Why: an extractor in the loss of a training loop is called wherever the loop has its autocast; ``dtype`` of the
    request says in what it computes.
    Caught: a backend in torch that passed all other checks, and whose values were off by 2e-3 there; no type and no
    shape shows it.
    Mend: ``torch.autocast(device_type, enabled=False)`` around the forward pass.
    """
    torch = _torch()
    _hold_under(subject, lambda: torch.autocast("cpu", torch.bfloat16), 'torch.autocast("cpu", torch.bfloat16)')


@check("callers.default_dtype", when=_no_torch)
def default_dtype(subject: Subject) -> None:
    """Opened and called while torch's default type is float64, an extractor gives what it always gives.

    Why: scientific code sets float64 for the whole process, and then asks for features of ``dtype="float32"``.
    Caught: a backend in torch that passed all other checks, and raised here: its network was built in float64, its
    images were float32. Random weights that are drawn in double precision are others, too.
    Mend: build under ``torch.set_default_dtype(torch.float32)``, and put the caller's back in ``finally``; name the
    type of every tensor that is made in a call.
    """
    _hold_under(subject, default_doubles, "default_doubles()", importing(default_doubles))


@contextlib.contextmanager
def default_doubles() -> Iterator[None]:
    """Make float64 torch's default type inside."""
    torch = _torch()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@check("callers.default_device", when=_no_torch)
def default_device(subject: Subject) -> None:
    """Opened and called while torch's default device is another (``meta``, which every machine has), an extractor gives
    what it always gives.

    Why: ``torch.set_default_device("cuda")`` and ``with torch.device("meta")`` are how large models are built; the
    device of the request says where this one runs.
    Caught: a backend in torch that passed all other checks, and raised here: what it built and what it made in a call
    lay on the caller's device.
    Mend: build and run under ``with torch.device(...)`` of the request's device, or name it for every tensor made.
    """
    torch = _torch()
    _hold_under(subject, lambda: torch.device("meta"), 'torch.device("meta")')


@check("callers.no_grad", when=_no_torch)
def no_grad(subject: Subject) -> None:
    """Opened and called under ``torch.no_grad()`` and under ``torch.inference_mode()``, an extractor gives what it
    always gives, also when it is called after the mode has ended.

    Why: both are habits of everyone who evaluates.
    Caught: networks that are built under ``inference_mode``, whose parameters are inference tensors ever after; tensors
    that are kept from such a call and cannot be written to in the next.
    Mend: ``torch.inference_mode(False)`` while the network is built and run.
    """
    torch = _torch()
    for mode in ("no_grad", "inference_mode"):
        _hold_under(subject, getattr(torch, mode), f"torch.{mode}()")
