"""No graph unless it is asked for, and then the right one."""

from __future__ import annotations

import sys
from typing import Any

from featreg.conformance.checks.tensors import no_tensors
from featreg.conformance.checks.values import ROUNDING
from featreg.conformance.model import check
from featreg.conformance.subject import Subject
from featreg.spec import Layer

STEPS = (0.5, 0.1, 0.02)
"""How far the image is moved, as a length; float32 rounds away the small steps, kinks of ReLU spoil the large ones."""

TOLERANCE = 0.05


def _torch() -> Any:
    return sys.modules.get("torch")


@check("grad.default", needs=["native_array"])
def default(subject: Subject) -> None:
    """Without ``grad`` native arrays carry no gradient and no graph, also where the images ask for one.

    Why: a graph keeps every intermediate tensor of every batch alive.
    Caught: complaints about memory (thingsvision #74), to which features that keep their graphs are one way.
    Mend: run the network under ``no_grad`` unless the request says ``grad=True``.
    """
    images = subject.images(2)
    torch = _torch()
    with subject.open(array="native") as extractor:
        batches: list[Any] = [images]
        if torch is not None and isinstance(next(iter(extractor(images).values())), torch.Tensor):
            batches.append(torch.from_numpy(images.copy()).requires_grad_())
        asking = "import torch\nimages = torch.from_numpy(images).requires_grad_()\n"
        for batch in batches:
            prelude = "" if batch is images else asking
            for layer, array in extractor(batch).items():
                code = f"{prelude}array = extractor(images)[{layer!r}]\nassert array.grad_fn is None"
                attached = getattr(array, "requires_grad", False) or getattr(array, "grad_fn", None) is not None
                code += " and not array.requires_grad" if hasattr(array, "requires_grad") else ""
                subject.expect(not attached, f"{layer!r} carries a graph", "none without grad=True", "one", layer, code)


BATCH = "import torch\nbatch = torch.from_numpy(images).requires_grad_()"


@check("grad.input", needs=["grad"], when=no_tensors)
def reach_input(subject: Subject) -> None:
    """With ``grad=True`` the gradient of every layer reaches the images, and is that of finite differences (5 %).

    Why: saliency, adversarial examples and inversion rest on it; a gradient that is cut or scaled looks like one.
    Caught: a ``detach`` or an in-place copy on the way out; uint8 rounding or a NumPy detour on the way in; branches
    that tracing froze (torchvision #4753).
    Mend: keep native tensors from input to output, cast with ``to``, and copy taps with ``clone``.
    """
    torch = _torch()
    images = torch.from_numpy(subject.images(1))
    with subject.open(array="native", grad=True) as extractor:
        for layer in subject.layers:
            batch = images.clone().requires_grad_()
            output = extractor(batch)[layer]
            problem = f"{layer!r} has no graph under grad=True"
            code = f"{BATCH}\nassert extractor(batch)[{layer!r}].requires_grad"
            subject.expect(output.requires_grad, problem, "a graph", "none", layer, code)
            weights = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output)
            (gradient,) = torch.autograd.grad((output * weights).sum(), batch, allow_unused=True)
            code = f"{BATCH}\noutput = extractor(batch)[{layer!r}]\n(output * torch.rand_like(output)).sum().backward()"
            code += "\nassert batch.grad is not None and batch.grad.any()"
            problem = f"the gradient of {layer!r} stops on its way"
            subject.expect(gradient is not None, problem, "a gradient", "none", layer, code)
            length = float(gradient.norm())
            problem = f"the gradient of {layer!r} is lost on its way"
            subject.expect(length > 0, problem, "a gradient", "zeros", layer, code)
            apart = min(_error(extractor, layer, images, gradient / length, weights, step, length) for step in STEPS)
            problem = f"the gradient of {layer!r} is not that of finite differences"
            subject.expect(apart < TOLERANCE, problem, f"within {TOLERANCE:.0%}", f"{apart:.0%} apart", layer)


def _error(  # noqa: PLR0917  (a formula)
    extractor: Any, layer: Layer, images: Any, direction: Any, weights: Any, step: float, slope: float
) -> float:
    """How far the slope along a direction is from the gradient's length, as a share of it."""
    ends = [
        float((extractor(images + side * direction)[layer].detach() * weights).double().sum()) for side in (step, -step)
    ]
    return abs((ends[0] - ends[1]) / (2 * step) - slope) / slope


BACKWARD = "sum(array.float().sum() for array in extractor(images).values()).backward()"


@check("grad.parameters", needs=["grad"], when=no_tensors)
def reach_parameters(subject: Subject) -> None:
    """With ``grad=True`` gradients reach parameters of ``extractor.module``, and only those that ask for one.

    Why: fine-tuning goes through the extractor.
    Caught: networks that are frozen when they are opened; a copy of the network that runs in place of the one that the
    caller holds.
    Mend: run ``extractor.module`` itself, and leave ``requires_grad`` as it is.
    """
    images = subject.images(1)
    with subject.open(array="native", grad=True) as extractor:
        parameters = dict(extractor.module.named_parameters())
        trained = [name for name, value in parameters.items() if value.requires_grad]
        subject.expect(
            trained,
            "the network is frozen",
            "parameters that ask for a gradient",
            f"none of {len(parameters)}",
            code="assert any(value.requires_grad for value in extractor.module.parameters())",
        )
        sum(array.float().sum() for array in extractor(images).values()).backward()
        reached = [name for name, value in parameters.items() if value.grad is not None]
        problem = "gradients do not reach the parameters"
        code = f"{BACKWARD}\nassert any(value.grad is not None for value in extractor.module.parameters())"
        subject.expect(reached, problem, "a gradient for some of them", f"none of {len(parameters)}", code=code)
        frozen = next(iter(parameters.values()))
        frozen.requires_grad_(False)
        for value in parameters.values():
            value.grad = None
        sum(array.float().sum() for array in extractor(images).values()).backward()
        freeze = "frozen = next(extractor.module.parameters()).requires_grad_(False)"
        code = f"{freeze}\n{BACKWARD}\nassert frozen.grad is None"
        subject.expect(frozen.grad is None, "a frozen parameter has a gradient", "none", "one", code=code)


@check("grad.same_values", needs=["grad"], when=no_tensors)
def same_values(subject: Subject) -> None:
    """With ``grad=True`` every layer has the values that it has without, beyond rounding, in a first call and in a
    second.

    Why: asking for gradients says nothing of dropout or of batch statistics; what is fine-tuned must begin where
    extraction ends.
    Caught: ``net.train(request.grad)``, for which gradients and training mode are one thing: dropout draws, and batch
    normalisation looks at the batch.
    Mend: ``module.eval()`` whatever ``grad`` says; only ``no_grad`` depends on it.
    """
    images = subject.images(2)
    wanted = subject.run(images)
    with subject.open(array="native", grad=True) as extractor:
        found = [extractor(images) for _ in range(2)]
    for features in found:
        for layer in subject.layers:
            problem = f"{layer!r} has other values under grad=True"
            code = f"extractor(images)[{layer!r}].detach().numpy(), {subject.opening()}(images)[{layer!r}]"
            subject.close(features[layer], wanted[layer], problem, layer, code, **ROUNDING)


@check("grad.apart", needs=["grad"], when=no_tensors)
def apart(subject: Subject) -> None:
    """Of two extractors of one model, one with ``grad=True`` and one without, each does what it was asked for, in
    whatever order they are opened: gradients of the one reach the same parameters as ever, and the other carries no
    graph.

    Why: a detector that is trained and a frozen teacher beside it are often one model.
    Caught: a network that is kept from one ``open`` to the next, and is frozen or thawed by each of them
    (``requires_grad_(request.grad)``).
    Mend: a network for every extractor; leave ``requires_grad`` as it is.
    """
    images = subject.images(1)
    with subject.open(array="native", grad=True) as alone:
        wanted = _reached(alone, images)
    for first in (True, False):
        with subject.open(array="native", grad=first) as one, subject.open(array="native", grad=not first) as other:
            trained, plain = (one, other) if first else (other, one)
            for layer, array in plain(images).items():
                subject.expect(not array.requires_grad, f"{layer!r} carries a graph", "none without grad", "one", layer)
            got = _reached(trained, images)
            problem = "an extractor without grad changes what one with it reaches"
            subject.expect(got == wanted, problem, f"{len(wanted)} parameters", f"{len(got)} of them")


def _reached(extractor: Any, images: Any) -> set[str]:
    """The parameters that a backward pass gives a gradient, the layers being summed."""
    attached = [array.float().sum() for array in extractor(images).values() if array.requires_grad]
    if attached:
        sum(attached).backward()
    return {name for name, value in extractor.module.named_parameters() if value.grad is not None}


@check("grad.judged", level="SHOULD", needs=["grad"])
def judged(subject: Subject) -> None:
    """What declares ``grad`` gives tensors of torch, whose gradients the kit can examine.

    Why: there is no form of a gradient that all frameworks share. Of another framework's the kit can say nothing: a
    backend whose gradients are all wrong would pass, and its author should know that.
    Caught: nothing in the wild. Without it the checks of gradients would not apply, without a word.
    Mend: test the gradients of another framework in the plugin's own tests, against finite differences, or leave
    ``grad`` out.
    """
    features, torch = subject.run(subject.images(1), array="native", grad=True), _torch()
    for layer, array in features.items():
        holds = torch is not None and isinstance(array, torch.Tensor)
        problem = f"the gradient of {layer!r} is not judged"
        code = f"import torch\nassert isinstance(extractor(images)[{layer!r}], torch.Tensor)"
        subject.expect(holds, problem, "torch.Tensor", type(array).__qualname__, layer, code)
