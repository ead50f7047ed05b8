"""Levels and heads of any module, from what its sub-modules give when it runs on torch's meta device.

Hooks see modules and no functions: where a network's own forward ends a stage with an operation (``relu(bn(x))``), the
level is the last module's output before it. Features that no module gives can be tapped as the input of the module
that takes them: :func:`run_module` yields it under the module's name and ``INPUT``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from featreg.plugin import Size, Step, Transformer, errors, find_final, find_levels, find_transformer, level_of
from featreg_torch.quick import QuickShapes
from featreg_torch.shapes import BATCH, PROBES, Shape, channels_first, read_shapes
from featreg_torch.state import factory_defaults
from featreg_torch.taps import Outlet, Stored

__all__ = ["INPUT", "as_outlets", "as_step", "infer_outlets", "inputs_of", "run_module"]

INPUT = ".input"
"""The suffix of a tap on what goes into a module rather than what comes out."""

_PASSIVE = (
    nn.Identity,
    nn.modules.dropout._DropoutNd,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.modules.batchnorm._NormBase,
    nn.Flatten,
    nn.Unflatten,
    nn.modules.padding._ConstantPadNd,
)
_PASSIVE_NAMES = ("Permute", "StochasticDepth", "DropPath")
"""Classes of torchvision's and timm's that compute nothing in evaluation mode, known by name."""
_HANDING_ON = (nn.Identity, nn.modules.dropout._DropoutNd, nn.Flatten)
"""What gives the numbers that it gets, in evaluation mode."""
_SCORES = (nn.Softmax, nn.LogSoftmax, nn.Sigmoid)
"""What gives neither logits nor what a classifier takes."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Shapes = Mapping[Size, Shape | None]


@attrs.frozen(eq=False)
class _Value:
    """A tensor as it was at one moment: an operation in place makes another value of it."""

    tensor: torch.Tensor  # held, so that no other tensor gets its id
    version: int

    @classmethod
    def of(cls, output: Any) -> _Value | None:
        return cls(output, output._version) if isinstance(output, torch.Tensor) else None

    @property
    def key(self) -> tuple[int, int]:
        return id(self.tensor), self.version


@attrs.frozen
class _Seen:
    """What one module gave in its last run, by image size, and what went in and came out at the native one."""

    shapes: dict[Size, Shape | None]
    input: _Value | None
    output: _Value | None


def infer_outlets(network: nn.Module, native: Size, channels: int = 3) -> list[Outlet]:
    """The levels, indices and heads of a module on the meta device, which takes batches of (N, channels, H, W).

    A module that returns no single tensor has its levels all the same; heads are those that it has: ``logits`` where a
    linear layer makes the vector that it returns, ``pooled`` what that layer takes, else that vector itself, and
    ``features`` the last map (of a plain transformer the last tokens). Whatever the module raises at its native size
    goes through.
    """
    seen, result = _watch(network, native, channels)
    steps = _steps(network, seen, native)
    vector = result if result is not None and result.tensor.ndim == 2 else None
    classifier = _classifier(network, seen, vector)
    final = find_final(steps)
    outlets = as_outlets(steps, native, _width(network, classifier), final)
    if final is None and not any(outlet.head == "tokens" for outlet in outlets):
        outlets = [outlet for outlet in outlets if outlet.head is None]
    return [*outlets, *_vectors(network, seen, vector, classifier)]


def as_outlets(
    steps: Sequence[Step], native: Size, width: int | None = None, features: str | None = None
) -> list[Outlet]:
    """The outlets of levels and indices, and the heads ``features`` and, of a plain transformer, ``tokens``.

    ``width`` is what the classifier takes, ``features`` the source of the final map: the last level where None.
    """
    transformer = find_transformer(steps, native)
    if transformer is not None:
        return _transformer(steps, transformer)
    levels = find_levels(steps, width)
    outlets = [Outlet(level.name, level=level.level, index=index, kind="map") for index, level in enumerate(levels)]
    final = features or (levels[-1].name if levels else None)
    return [*outlets, *([Outlet(final, head="features", kind="map")] if final else [])]


def as_step(
    name: str,
    module: nn.Module | None,
    shapes: Shapes,
    native: Size,
    output: Hashable = None,
    *,
    leaf: bool = False,
    stored: Stored | None = None,
) -> Step:
    """What a module (None: an operation) does, from the shapes of its output at several sizes.

    A ``leaf`` stands for everything inside it, which is told by no steps of its own. ``stored`` is the layout of the
    output where more than its shapes tell it.
    """
    parts = list(module.modules() if leaf else [module]) if module is not None else []
    convolutions = [part for part in parts if isinstance(part, _CONVOLUTIONS)]
    return Step(
        name,
        _map_stride(name, shapes, native, stored),
        module is not None and _is_passive(module),
        max(convolution.kernel_size for convolution in convolutions) if convolutions else None,
        convolutions[0].out_channels if len(convolutions) == 1 else None,
        _tokens(shapes.get(native)),
        type(module).__name__ if module is not None else "",
        output,
        module is not None and not _is_passive(module) and any(weight.ndim > 1 for weight in module.parameters()),
        len(shapes.get(native) or ()) == 2,
    )


def _transformer(steps: Sequence[Step], plain: Transformer) -> list[Outlet]:
    common = Outlet("", kind="map", prefix_tokens=plain.prefix_tokens, reduction=plain.stride)
    outlets = [attrs.evolve(common, source=block, index=index) for index, block in enumerate(plain.blocks)]
    outlets[-1] = attrs.evolve(outlets[-1], level=level_of(plain.stride))
    sequence = next(step.tokens for step in steps if step.name == plain.blocks[-1])
    final = [step.name for step in steps if step.tokens == sequence][-1]
    features = attrs.evolve(common, source=final, head="features")
    return [*outlets, features, attrs.evolve(features, head="tokens", kind="tokens")]


@contextlib.contextmanager
def inputs_of(network: nn.Module, wanted: frozenset[str]) -> Iterator[dict[str, torch.Tensor]]:
    """What goes into the modules whose inputs are ``wanted`` while the network runs inside: filled in by name."""
    found: dict[str, torch.Tensor] = {}
    with contextlib.ExitStack() as stack:
        for source in wanted:
            if source.endswith(INPUT):

                def keep(_: nn.Module, inputs: tuple[Any, ...], source: str = source) -> None:
                    found[source] = inputs[0].clone()

                module = network.get_submodule(source.removesuffix(INPUT))
                stack.callback(module.register_forward_pre_hook(keep).remove)
        yield found


def run_module(network: nn.Module, images: Any, wanted: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Run a module, and yield what went into those whose inputs are ``wanted`` (a runner of HookTaps)."""
    with inputs_of(network, wanted) as found:
        network(images)
    yield from found.items()


def _is_passive(module: nn.Module) -> bool:
    """Whether a module alone is no end of a level: norms (without an activation of their own), dropout, layout."""
    active = any(not isinstance(part, nn.Identity) for part in module.children())
    return (isinstance(module, _PASSIVE) and not active) or type(module).__name__ in _PASSIVE_NAMES


def _map_stride(name: str, shapes: Shapes, native: Size, stored: Stored | None) -> int | None:
    """The stride of what gives these shapes where it is a feature map that follows the image's size, else None."""
    if len(shapes.get(native) or ()) != 4:
        return None
    try:
        info, _ = read_shapes(Outlet(name, kind="map", stored=stored), native, shapes)
    except errors.CapabilityError:
        return None
    if all(size in shapes for size in PROBES[:2]) and info.grid(*PROBES[0]) == info.grid(*PROBES[1]):
        return None  # pooled to a fixed grid
    alone = len(shapes) == 1 and info.grid(*native) == (1, 1)  # pooled, where no other size can tell
    return None if alone else info.reduction


def _tokens(shape: Shape | None) -> tuple[int, int] | None:
    """The length and channels of a batch of token sequences, None for other tensors."""
    return (shape[1], shape[2]) if shape is not None and len(shape) == 3 and shape[0] == BATCH else None


def _steps(network: nn.Module, seen: Mapping[str, _Seen], native: Size) -> list[Step]:
    modules = dict(network.named_modules())
    first = channels_first(network, {name: one.output.tensor for name, one in seen.items() if one.output is not None})
    return [
        as_step(
            name,
            modules[name],
            one.shapes,
            native,
            None if one.output is None else one.output.key,
            stored="nchw" if name in first else None,
        )
        for name, one in seen.items()
    ]


def _maker(seen: Mapping[str, _Seen], value: _Value) -> str | None:
    """The first module to give this very value, the one that computed it; None where no module does."""
    return next((name for name, one in seen.items() if one.output is not None and one.output.key == value.key), None)


def _classifier(network: nn.Module, seen: Mapping[str, _Seen], value: _Value | None) -> str | None:
    """The linear layer, or 1x1 convolution of one cell, that makes a vector, up to its layout; None for another."""
    handed_on: set[str] = set()
    while value is not None and (name := _maker(seen, value)) is not None and name not in handed_on:
        module = network.get_submodule(name)
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and value.tensor.shape[2:] == (1, 1)):
            return name
        if not isinstance(module, _HANDING_ON):
            return None
        handed_on.add(name)
        value = seen[name].input
    return None


def _width(network: nn.Module, classifier: str | None) -> int | None:
    """How many numbers a classifier takes."""
    module = network.get_submodule(classifier) if classifier else None
    if isinstance(module, nn.Linear):
        return module.in_features
    return module.in_channels if isinstance(module, nn.Conv2d) else None


def _vectors(
    network: nn.Module, seen: Mapping[str, _Seen], vector: _Value | None, classifier: str | None
) -> list[Outlet]:
    """The heads behind the map, of a network that returns ``vector``."""
    source = _maker(seen, vector) if vector is not None else None
    if source is None or isinstance(network.get_submodule(source), _SCORES):
        return []
    if classifier is None:
        return [Outlet(source, head="pooled", kind="vector")]
    is_linear = isinstance(network.get_submodule(classifier), nn.Linear)  # a convolution takes no vector
    pooled = [Outlet(_pooled(seen, classifier), head="pooled", kind="vector")] if is_linear else []
    return [*pooled, Outlet(source, head="logits")]


def _pooled(seen: Mapping[str, _Seen], linear: str) -> str:
    """What gives the input of a linear layer: a module, else the input itself."""
    taken = seen[linear].input
    return (_maker(seen, taken) if taken is not None else None) or linear + INPUT


def _watch(network: nn.Module, native: Size, channels: int) -> tuple[dict[str, _Seen], _Value | None]:
    """Every module that ran, in the order in which they finished last, and the one tensor that the network returned.

    Sizes other than the native one are tried until the network refuses one.
    """
    seen, result = _run(network, native, channels)
    for size in PROBES[:2]:
        try:
            other, _ = _run(network, size, channels)
        except Exception:  # noqa: BLE001  (a network may refuse another size with any exception)
            break
        for name, one in seen.items():
            one.shapes[size] = other[name].shapes[size] if name in other else None
    return seen, result


def _run(network: nn.Module, size: Size, channels: int) -> tuple[dict[str, _Seen], _Value | None]:
    seen: dict[str, _Seen] = {}

    def note(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else None
        seen.pop(name, None)  # a module that runs again counts where it finishes last
        seen[name] = _Seen({size: shape}, _Value.of(inputs[0]) if inputs else None, _Value.of(output))

    handles = [
        module.register_forward_hook(lambda _, inputs, output, name=name: note(name, inputs, output))
        for name, module in network.named_modules()
        if name
    ]
    try:
        with torch.no_grad(), factory_defaults("meta"), QuickShapes():
            result = network(torch.empty(BATCH, channels, *size, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return seen, _Value.of(result)
