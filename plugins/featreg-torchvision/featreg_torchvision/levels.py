"""Levels and heads of a traced network: its graph told as steps to the core's rule for levels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import attrs
from torch import fx, nn
from torch.ao import quantization

from featreg.plugin import Size, Step, find_final
from featreg_torch.infer import as_outlets, as_step
from featreg_torch.shapes import Shape
from featreg_torch.taps import Outlet
from featreg_torchvision.graph import Trace

__all__ = ["find_outlets", "rename_levels", "trace_steps"]

_PASSIVE_FUNCTIONS = frozenset({"permute", "contiguous", "transpose", "reshape", "view", "dropout", "getattr"})
_PASSING = (nn.Identity, nn.Dropout, nn.Flatten, quantization.QuantStub, quantization.DeQuantStub)
"""Modules that give in evaluation mode the values that they take; the stubs do so in networks of floats."""


def find_outlets(trace: Trace, native: Size, part: str = "") -> list[Outlet]:
    """The levels, indices and heads of a network; ``pooled`` and ``logits`` where it returns one vector per image.

    Where ``part`` is given, levels and ``features`` are those of the module of that name. A network that returns
    several maps, such as a pyramid, has them as outlets too, by their names alone.
    """
    shapes = trace.shapes(native)
    everything = trace_steps(trace, shapes, native)
    steps = [step for step in everything if not part or step.name.startswith(f"{part}.")]
    pooled, logits = _heads(trace, shapes, native)
    source = pooled or logits
    width = shapes[source][native][-1] if source else None
    final = find_final(steps) if pooled else None
    outlets = as_outlets(steps, native, width, final)
    heads = {"pooled": pooled, "logits": logits}
    taken = {trace.find(outlet.source) for outlet in outlets}
    maps = [] if logits else [name for name in _returned(trace, everything) if trace.find(name) not in taken]
    return [
        *outlets,
        *(Outlet(name, head=head) for head, name in heads.items() if name),
        *(Outlet(name, kind="map") for name in maps),
    ]


def _returned(trace: Trace, steps: Sequence[Step]) -> list[str]:
    """The maps that a network returns, by the names of the sequences that end there where there are any."""
    found: list[fx.Node] = []
    fx.node.map_arg(trace.output, found.append)
    maps = {step.name for step in steps if step.stride is not None and step.stride.bit_count() == 1}
    names = {node: name for name, node in trace.nodes.items()}
    return [_sequence_of(trace, names[node]) for node in dict.fromkeys(found) if names[node] in maps]


def _sequence_of(trace: Trace, name: str) -> str:
    parent = name.rpartition(".")[0]
    is_end = parent in trace.modules and trace.find(parent) is trace.find(name)
    if is_end and isinstance(trace.network.get_submodule(parent), nn.Sequential):
        return _sequence_of(trace, parent)
    return name


def rename_levels(outlets: Sequence[Outlet], twin: Sequence[Outlet], rename: Callable[[str], str]) -> list[Outlet]:
    """A dilated network's outlets with the levels of its twin that is not, whose names ``rename`` translates."""
    levels = [attrs.evolve(outlet, source=rename(outlet.source)) for outlet in twin if outlet.index is not None]
    return [*levels, *(outlet for outlet in outlets if outlet.index is None)]


def trace_steps(trace: Trace, shapes: Mapping[str, Mapping[Size, Shape]], native: Size) -> list[Step]:
    """The nodes of a graph in execution order, each module after the last operation under it.

    What is done to the images before the first module, such as renormalising them, gives no features and is left out.
    """
    ends: dict[str, list[str]] = {}
    for module, last in trace.modules.items():
        ends.setdefault(last, []).insert(0, module)  # what lies inside finishes first
    steps = []
    for name, node in itertools.dropwhile(lambda item: item[1].op != "call_module", trace.nodes.items()):
        leaf = trace.network.get_submodule(str(node.target)) if node.op == "call_module" else None
        step = as_step(name, leaf, shapes.get(name, {}), native, name, leaf=True)
        steps.append(attrs.evolve(step, passive=True) if leaf is None and _is_passive(node) else step)
        for module in ends.get(name, ()):
            steps.append(as_step(module, trace.network.get_submodule(module), shapes.get(name, {}), native, name))
    return steps


def _is_passive(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", str(node.target)) in _PASSIVE_FUNCTIONS


def _heads(trace: Trace, shapes: Mapping[str, Mapping[Size, Shape]], native: Size) -> tuple[str | None, str | None]:
    """The names of ``pooled`` and ``logits``, the input of the linear layer that makes the output and the output."""
    names = {node: name for name, node in trace.nodes.items()}
    logits = names.get(trace.output) if isinstance(trace.output, fx.Node) else None
    if logits is None or len(shapes[logits][native]) != 2:
        return None, None
    linear = _linear_maker(trace, trace.nodes[logits])
    return (names[linear.all_input_nodes[0]] if linear else None), logits


def _linear_maker(trace: Trace, node: fx.Node) -> fx.Node | None:
    """The linear layer that makes what a node gives; None where another operation does."""
    leaf = trace.network.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(leaf, nn.Linear):
        return node
    passes = _is_passive(node) if leaf is None else isinstance(leaf, _PASSING)
    return _linear_maker(trace, node.all_input_nodes[0]) if passes else None
