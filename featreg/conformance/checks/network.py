"""The network behind an extractor: in evaluation mode, and as it was before the call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from featreg.arrays import to_numpy
from featreg.conformance.model import check
from featreg.conformance.subject import Subject
from featreg.errors import FeatregError


def _lacking(look: Callable[[Any], Mapping[str, Any]], what: str) -> Callable[[Subject], str]:
    """Why a check does not apply where the module has nothing of that kind; whoever declares gradients has it."""

    def reason(subject: Subject) -> str:
        if "grad" in subject.info.capabilities:
            return ""
        with subject.open(subject.layers[:1]) as extractor:
            return "" if look(extractor.module) else f"extractor.module has no {what}"

    return reason


def _modes(module: Any) -> dict[str, bool]:
    """Whether each part of a module of torch or MindSpore is in training mode; empty for others."""
    for walk in ("named_modules", "cells_and_names"):
        if hasattr(module, walk):
            return {name or "(the whole)": bool(part.training) for name, part in getattr(module, walk)()}
    return {}


@check("state.evaluation", when=_lacking(_modes, "modes"))
def evaluation(subject: Subject) -> None:
    """Every part of ``extractor.module`` is in evaluation mode, as opened and after a call.

    Why: in training mode dropout draws, stochastic depth leaves blocks out and batch normalisation looks at the batch.
    A network without any of these gives right values all the same, until someone opens one that has them.
    Caught: timm's ``create_model`` and open_clip's ``create_model_and_transforms`` return networks in training mode; a
    network that is set to evaluation mode before a part of it is replaced.
    Mend: ``module.eval()`` (``set_train(False)``) last of all in ``open``.
    """
    with subject.open() as extractor:
        for moment in ("opened", "called"):
            modes = _modes(extractor.module)
            subject.expect(modes, "extractor.module has no modes", "a module with parts", type(extractor.module))
            training = [name for name, mode in modes.items() if mode]
            subject.expect(not training, f"parts of the network train when it is {moment}", "none", training[:5])
            extractor(subject.images(1))


def _parameters(module: Any) -> dict[str, Any]:
    """The parameters, buffers and gradients of a module of torch or MindSpore by name, as bytes; empty for others."""
    found: dict[str, Any] = {}
    if hasattr(module, "named_parameters"):  # a Cell of MindSpore has a state_dict too
        found = {name: to_numpy(value).tobytes() for name, value in module.state_dict().items()}
        found |= {f"{name}.grad": value.grad is None for name, value in module.named_parameters()}
    elif hasattr(module, "parameters_dict"):
        found = {name: to_numpy(value).tobytes() for name, value in module.parameters_dict().items()}
    return found


@check("state.parameters", when=_lacking(_parameters, "parameters"))
def parameters(subject: Subject) -> None:
    """Calls leave the parameters and buffers of ``extractor.module`` as they were, bit for bit, and no ``.grad``.

    Why: the caller may train what he extracts from.
    Caught: timm's models open in training mode, in which batch normalisation rewrites its running mean with each call.
    Mend: evaluation mode, and no graph unless ``grad`` is asked for.
    """
    with subject.open() as extractor:
        before = _parameters(extractor.module)
        subject.expect(before, "extractor.module has no parameters", "a module with a state", type(extractor.module))
        for seed in range(3):
            extractor(subject.images(2, seed=seed))
        after = _parameters(extractor.module)
    changed = [name for name, value in before.items() if after.get(name) != value]
    subject.expect(not changed, "calls change the model", "the parameters as they were", changed[:5])


def _hooks(module: Any) -> int:
    """How many hooks hang on a torch module and those below it."""
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(part, table, ())) for part in module.modules() for table in tables)


@check("state.hooks", needs=["grad"])
def hooks(subject: Subject) -> None:
    """A call leaves as many hooks on the module as there were before it, also where the call fails.

    Why: hooks that stay slow every later call, keep its tensors alive, and fill taps of extractors long closed.
    Caught: complaints about memory (thingsvision #74), to which hooks that are left behind are one way.
    Mend: attach hooks in a context manager, or once when the extractor is opened.
    """
    with subject.open() as extractor:
        module = extractor.module
        if not hasattr(module, "modules"):
            subject.expect(True, "no module of torch has no hooks of torch")
            return
        images = subject.images(1)
        extractor(images)
        before = _hooks(module)
        extractor(images)
        with contextlib.suppress(FeatregError):
            extractor(images[:, :2])
        subject.expect(_hooks(module) == before, "a call leaves hooks", f"{before} hooks", f"{_hooks(module)}")
