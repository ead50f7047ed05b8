"""No graph unless it is asked for, and then the right one."""

from __future__ import annotations

import sys
from typing import Any

from featreg.conformance.model import check
from featreg.conformance.subject import Subject
from featreg.spec import Layer

STEPS = (0.5, 0.1, 0.02)
"""How far the image is moved, as a length; float32 rounds away the small steps, kinks of ReLU spoil the large ones."""

TOLERANCE = 0.05


def _torch() -> Any:
    return sys.modules.get("torch")


def _not_torch(subject: Subject) -> str:
    """Gradients have no form that all frameworks share: those of torch are held against finite differences."""
    backend = subject.backend  # imports the framework
    return "" if backend is not None and _torch() is not None else "gradients are examined in torch alone"


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
        for batch in batches:
            for layer, array in extractor(batch).items():
                attached = getattr(array, "requires_grad", False) or getattr(array, "grad_fn", None) is not None
                subject.expect(not attached, f"{layer!r} carries a graph", "none without grad=True", "one", layer)


@check("grad.input", needs=["grad"], when=_not_torch)
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
            subject.expect(output.requires_grad, problem, "a graph", "none", layer)
            weights = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output)
            (gradient,) = torch.autograd.grad((output * weights).sum(), batch, allow_unused=True)
            subject.expect(
                gradient is not None, f"the gradient of {layer!r} stops on its way", "a gradient", "none", layer
            )
            length = float(gradient.norm())
            subject.expect(length > 0, f"the gradient of {layer!r} is lost on its way", "a gradient", "zeros", layer)
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


@check("grad.parameters", needs=["grad"], when=_not_torch)
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
            trained, "the network is frozen", "parameters that ask for a gradient", f"none of {len(parameters)}"
        )
        sum(array.float().sum() for array in extractor(images).values()).backward()
        reached = [name for name, value in parameters.items() if value.grad is not None]
        problem = "gradients do not reach the parameters"
        subject.expect(reached, problem, "a gradient for some of them", f"none of {len(parameters)}")
        frozen = next(iter(parameters.values()))
        frozen.requires_grad_(False)
        for value in parameters.values():
            value.grad = None
        sum(array.float().sum() for array in extractor(images).values()).backward()
        subject.expect(frozen.grad is None, "a frozen parameter has a gradient", "none", "one")
