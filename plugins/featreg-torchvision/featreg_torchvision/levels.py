"""Levels and heads of a network that declares none, from its traced shapes and its module structure.

The network is cut into units: whole modules that halve the resolution at most once, and single operations between them.
A module that halves it several times (``features``, ``trunk_output``) is a container and is cut further. Level Ck is
the last unit of stride 2**k. A normalisation, dropout or change of layout that stands alone is no unit: DenseNet's last
level ends with its activation, Swin's with its last stage and not with the classifier's normalisation. A closing 1x1
convolution that feeds the classifier directly (EfficientNet's and MobileNetV2's 1280 channels, through pooling alone)
belongs to the head ``features``, not to the last level.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import attrs
import torchvision
from torch import fx, nn

from featreg.plugin import FeatureInfo, Size, errors
from featreg_torch.declared import level_of
from featreg_torch.shapes import PROBES, Shape, read_shapes
from featreg_torch.taps import Outlet
from featreg_torchvision.graph import Trace

__all__ = ["find_outlets"]

_PASSIVE_MODULES = (
    nn.Identity,
    nn.Dropout,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    torchvision.ops.Permute,
    torchvision.ops.StochasticDepth,
)
_PASSIVE_FUNCTIONS = frozenset({"permute", "contiguous", "transpose", "reshape", "view", "dropout", "getattr"})


@attrs.frozen
class _Unit:
    """A stage, block or operation: the name to ask for, the node of its output, its stride, and its module."""

    name: str
    node: str
    stride: int
    module: str


def find_outlets(trace: Trace, native: Size) -> list[Outlet]:
    """The levels, indices and heads of a classification network."""
    shapes = trace.shapes(native)
    strides = _strides({name: sizes for name, sizes in shapes.items() if trace.nodes[name] is not trace.input}, native)
    maps = {name: stride for name, stride in strides.items() if stride.bit_count() == 1}
    pooled, logits = _heads(trace)
    transformer = _plain_transformer(trace, shapes, strides)
    if transformer is not None:
        outlets = transformer
    else:
        width = shapes[pooled or logits][native][-1]
        units = _units(trace, list(trace.nodes), maps)
        kept = _without_closing(trace, units, width)
        last = kept[-1].name if pooled is None else _last_map(maps, units)
        outlets = [*_levels(kept), Outlet(last, head="features")]
    if pooled is not None:
        outlets.append(Outlet(pooled, head="pooled"))
    return [*outlets, Outlet(logits, head="logits")]


def _strides(shapes: Mapping[str, Mapping[Size, Shape]], native: Size) -> dict[str, int]:
    """The stride of every node whose output is a feature map that follows the image's size."""
    strides = {}
    for name, sizes in shapes.items():
        info = _as_map(name, sizes, native)
        if info is None or info.reduction is None:
            continue
        adaptive = all(size in sizes for size in PROBES) and info.grid(*PROBES[0]) == info.grid(*PROBES[1])
        if not adaptive:
            strides[name] = info.reduction
    return strides


def _as_map(name: str, sizes: Mapping[Size, Shape], native: Size) -> FeatureInfo | None:
    try:
        return read_shapes(Outlet(name, kind="map"), native, sizes)[0] if len(sizes[native]) == 4 else None
    except errors.CapabilityError:
        return None


def _heads(trace: Trace) -> tuple[str | None, str]:
    """The names of ``pooled``, the input of the last linear layer (None where there is none), and of ``logits``."""
    names = {node: name for name, node in trace.nodes.items()}
    if not isinstance(trace.output, fx.Node):
        raise errors.CapabilityError(f"{type(trace.network).__name__} does not return one tensor", "class scores")
    modules = dict(trace.network.named_modules())
    linear = [
        node
        for node in trace.nodes.values()
        if node.op == "call_module" and isinstance(modules[str(node.target)], nn.Linear)
    ]
    pooled = names[linear[-1].all_input_nodes[0]] if linear else None
    return pooled, names[trace.output]


def _units(
    trace: Trace, names: Sequence[str], maps: Mapping[str, int], prefix: str = "", before: int = 1
) -> list[_Unit]:
    units: list[_Unit] = []
    for child, grouped in itertools.groupby(names, key=lambda name: name[len(prefix) :].partition(".")[0]):
        group = list(grouped)
        inside = [name for name in group if name in maps]
        if not inside:
            continue
        name, stride = prefix + child, maps[inside[-1]]
        if stride > 2 * before and group != [name]:
            units += _units(trace, group, maps, f"{name}.", before)
        elif group != [name] or not _is_passive(trace, trace.nodes[name]):
            whole = trace.find(name) is trace.nodes[inside[-1]]
            units.append(_Unit(name if whole else inside[-1], inside[-1], stride, name))
        before = stride
    return units


def _is_passive(trace: Trace, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(trace.network.get_submodule(str(node.target)), _PASSIVE_MODULES)
    return getattr(node.target, "__name__", str(node.target)) in _PASSIVE_FUNCTIONS


def _without_closing(trace: Trace, units: Sequence[_Unit], width: int) -> list[_Unit]:
    """The units without a closing 1x1 convolution to ``width`` channels and the operations that follow it."""
    modules = dict(trace.network.named_modules())
    for position in range(len(units) - 1, 0, -1):
        unit = units[position]
        inner = modules[unit.module].modules() if unit.module in modules else ()
        convolutions = [module for module in inner if isinstance(module, nn.Conv2d)]
        if not convolutions:
            continue
        closing = (
            len(convolutions) == 1
            and convolutions[0].kernel_size == (1, 1)
            and convolutions[0].out_channels == width
            and units[position - 1].stride == unit.stride
        )
        return list(units[:position] if closing else units)
    return list(units)


def _levels(units: Sequence[_Unit]) -> list[Outlet]:
    last = {unit.stride: unit for unit in units}
    return [Outlet(last[stride].name, level=level_of(stride), index=index) for index, stride in enumerate(sorted(last))]


def _last_map(maps: Mapping[str, int], units: Sequence[_Unit]) -> str:
    """The final map, by the name of its unit where it is the output of one."""
    node = list(maps)[-1]
    return next((unit.name for unit in units if unit.node == node), node)


def _plain_transformer(
    trace: Trace, shapes: Mapping[str, Mapping[Size, Shape]], strides: Mapping[str, int]
) -> list[Outlet] | None:
    """The blocks, final map and final tokens of a network whose blocks all return one sequence of tokens."""
    for name, module in trace.network.named_modules():
        blocks = [f"{name}.{child}" for child, _ in module.named_children()]
        alike = len({type(block) for block in module.children()}) == 1
        if len(blocks) > 1 and alike and all(_is_sequence(trace, block, shapes) for block in blocks):
            break
    else:
        return None
    names = {node: name for name, node in trace.nodes.items()}
    size, sequence = next(iter(shapes[names[trace.find(blocks[-1])]].items()))  # type: ignore[index]
    patch = list(strides.values())[-1]
    prefix = sequence[1] - (size[0] // patch) * (size[1] // patch)
    final = [name for name, found in shapes.items() if found.get(size) == sequence][-1]
    outlets = [
        Outlet(block, index=index, kind="map", prefix_tokens=prefix, reduction=patch)
        for index, block in enumerate(blocks)
    ]
    outlets[-1] = attrs.evolve(outlets[-1], level=level_of(patch))
    features = Outlet(final, head="features", kind="map", prefix_tokens=prefix, reduction=patch)
    return [*outlets, features, attrs.evolve(features, head="tokens", kind="tokens")]


def _is_sequence(trace: Trace, name: str, shapes: Mapping[str, Mapping[Size, Shape]]) -> bool:
    node = trace.find(name)
    own = next((other for other, candidate in trace.nodes.items() if candidate is node), "")
    return all(len(shape) == 3 for shape in shapes[own].values()) if own in shapes else False
