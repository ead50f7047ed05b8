"""Traced networks: named nodes, their shapes, and taps on them.

A network is traced once, without memory; its graph then serves every network that is built alike.

Nodes are named as torchvision's ``get_graph_node_names`` does. ``create_feature_extractor`` is not used: it reads names
as regular expressions, gives back taps in execution order, and lets in-place activations overwrite them.
"""

from __future__ import annotations

import copy
import inspect
import linecache
import math
import operator
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
import torch
import torchvision
from torch import fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from featreg.plugin import Size
from featreg_torch.quick import QuickShapes
from featreg_torch.shapes import BATCH, PROBES, Shape
from featreg_torch.state import factory_defaults

__all__ = ["GraphTaps", "Trace"]

_LEAVES = [
    member
    for _, member in inspect.getmembers(torchvision.ops, inspect.isclass)
    if issubclass(member, nn.Module) and member is not torchvision.ops.FeaturePyramidNetwork  # its maps are wanted
]

_TRACING = threading.Lock()  # tracing replaces nn.Module.__call__ for the whole process


class Trace:
    """A network as a graph, in evaluation mode or as it trains.

    ``imaged`` gives what takes the images, where the network as a whole does not: a module that holds some of the
    network's modules under their own names. ``nodes`` holds every named node in execution order, ``modules`` the last
    node under each module traced into.
    """

    def __init__(
        self, network: nn.Module, imaged: Callable[[nn.Module], nn.Module] | None = None, *, train: bool = False
    ) -> None:
        tracer = NodePathTracer(autowrap_modules=(math, torchvision.ops), leaf_modules=_LEAVES)
        self.network = network.train(train)
        self._imaged, self._train = imaged, train
        with _TRACING:
            self.graph: fx.Graph = tracer.trace(self.network if imaged is None else imaged(network).train(train))
        self.nodes: dict[str, fx.Node] = {name: node for node, name in tracer.node_to_qualname.items()}
        self.modules: dict[str, str] = {}
        for name in self.nodes:
            parts = name.split(".")
            self.modules |= {".".join(parts[:depth]): name for depth in range(1, len(parts))}

    @property
    def input(self) -> fx.Node:
        """The node of the images."""
        nodes: Iterable[fx.Node] = self.graph.nodes
        return next(node for node in nodes if node.op == "placeholder")

    @property
    def output(self) -> Any:
        """What the network returns: a node, or a structure of nodes."""
        return next(node for node in self.graph.nodes if node.op == "output").args[0]

    def of(self, network: nn.Module) -> Trace:
        """The trace that holds for a network built alike: this one, unless it has values computed while tracing.

        Such constants come from the traced network's buffers, which have no memory.
        """
        constants = (str(node.target) for node in self.graph.nodes if node.op == "get_attr")
        if all(_has(network, name) for name in constants):
            return self
        return Trace(network, self._imaged, train=self._train)

    def names(self) -> list[str]:
        """Every name that :meth:`find` takes: nodes, and modules as the last operation under them."""
        return list(dict.fromkeys([*self.nodes, *self.modules]))

    def find(self, name: str) -> fx.Node | None:
        """The node of an exact name, else the last operation under the module of that name."""
        return self.nodes.get(self.modules.get(name, "") if name not in self.nodes else name)

    def type_of(self, name: str) -> str:
        """The class of the module, or the operation, that a name stands for."""
        node = self.nodes.get(name)
        if node is None or node.op == "call_module":
            return type(self.network.get_submodule(name if node is None else str(node.target))).__name__
        return node.op if node.op in ("placeholder", "get_attr") else _operation(node)

    def shapes(self, native: Size) -> dict[str, dict[Size, Shape]]:
        """The shapes of every node that returns a tensor, at the native size and, as far as they run, at the probes."""
        module = fx.GraphModule(self.network, self.graph)
        names = {node: name for name, node in self.nodes.items()}
        found: dict[str, dict[Size, Shape]] = {name: {} for name in self.nodes}
        for size in (native, *PROBES[:2]):
            recorder = _ShapeRecorder(module)
            try:
                with torch.no_grad(), factory_defaults("meta"), QuickShapes():
                    recorder.run(torch.empty(BATCH, 3, *size, device="meta"))
            except Exception:  # a network may refuse another size with any exception, at any node
                if size == native:
                    raise
            for node, shape in recorder.shapes.items():
                if node in names:
                    found[names[node]][size] = shape
        _forget(_source(module))
        return {name: shapes for name, shapes in found.items() if native in shapes}


def _has(network: nn.Module, name: str) -> bool:
    try:
        operator.attrgetter(name)(network)
    except AttributeError:
        return False
    return True


def _operation(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


class _ShapeRecorder(fx.Interpreter):
    """Runs a graph and keeps the shape of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, Shape] = {}

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        if isinstance(output, torch.Tensor):
            self.shapes[n] = tuple(output.shape)
        return output


@attrs.frozen
class GraphTaps:
    """Taps on every network that was built as the traced one."""

    trace: Trace

    def __call__(
        self, network: nn.Module, sources: Sequence[str], takes: Sequence[nn.Module], stop_after: int | None = None
    ) -> fx.GraphModule:
        """The network as a graph that returns ``sources``, each through its take, and stops there.

        The graph needs no ``stop_after``: what no source needs is not in it.
        """
        trace = self.trace.of(network)
        graph = copy.deepcopy(trace.graph)
        twins = dict(zip(trace.graph.nodes, graph.nodes, strict=True))
        wanted = [twins[_find(trace, source)] for source in sources]
        output = _cut(graph, wanted)
        module = fx.GraphModule(network, graph)  # after the cut, for it takes every parameter that the graph names
        _forget(_source(module))
        taken = []
        for position, (node, take) in enumerate(zip(wanted, takes, strict=True)):
            module.add_submodule(f"take_{position}", take)
            with graph.inserting_after(node):
                taken.append(graph.call_module(f"take_{position}", (twins[trace.input], node)))
        output.args = (tuple(taken),)
        module.recompile()
        weakref.finalize(module, _forget, _source(module)).atexit = False
        return module


def _source(module: fx.GraphModule) -> str:
    """The name under which Python finds the text of a graph's program."""
    return str(module.forward.__code__.co_filename)


def _forget(source: str) -> None:
    """Let go of the text of a graph's program, which torch.fx keeps for ever of each one that it compiles."""
    linecache.cache.pop(source, None)
    fx.graph_module._loader.eval_cache.pop(source, None)


def _find(trace: Trace, source: str) -> fx.Node:
    node = trace.find(source)
    assert node is not None, f"{source!r} is no name of the graph"
    return node


def _cut(graph: fx.Graph, wanted: Sequence[fx.Node]) -> fx.Node:
    """Leave only what ``wanted`` nodes need, and return the output node, which gives them.

    All behind the last of them goes whatever it is, for an assertion there would keep what it asserts of.
    """
    for node in reversed(graph.nodes):
        if node in wanted or node.op == "placeholder":
            break
        graph.erase_node(node)
    output: fx.Node = graph.output(tuple(wanted))
    for node in reversed(graph.nodes):
        if not node.users and (node.op == "call_module" or not node.is_impure()):
            graph.erase_node(node)
    return output
