"""Traced networks: named nodes, their shapes, and taps on them.

A network is traced once, without memory; its graph then serves every network that is built alike.

Nodes are named as torchvision's ``get_graph_node_names`` does. ``create_feature_extractor`` is not used: it reads names
as regular expressions, gives back taps in execution order, and lets in-place activations overwrite them.
"""

from __future__ import annotations

import copy
import inspect
import math
import threading
from collections.abc import Iterable, Sequence
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

    ``part`` is what takes the images, where the network as a whole does not: a module that holds some of the network's
    modules under their own names. ``nodes`` holds every named node in execution order, ``modules`` the last node under
    each module traced into.
    """

    def __init__(self, network: nn.Module, part: nn.Module | None = None, *, train: bool = False) -> None:
        tracer = NodePathTracer(autowrap_modules=(math, torchvision.ops), leaf_modules=_LEAVES)
        self.network = network.train(train)
        with _TRACING:
            self.graph: fx.Graph = tracer.trace(self.network if part is None else part.train(train))
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
        return {name: shapes for name, shapes in found.items() if native in shapes}


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
        graph = copy.deepcopy(self.trace.graph)
        twins = dict(zip(self.trace.graph.nodes, graph.nodes, strict=True))
        module = fx.GraphModule(network, graph)
        images = twins[self.trace.input]
        taken = []
        for position, (source, take) in enumerate(zip(sources, takes, strict=True)):
            node = self.trace.find(source)
            assert node is not None, f"{source!r} is no name of the graph"
            module.add_submodule(f"take_{position}", take)
            with graph.inserting_after(twins[node]):
                taken.append(graph.call_module(f"take_{position}", (images, twins[node])))
        graph.erase_node(next(node for node in graph.nodes if node.op == "output"))
        graph.output(tuple(taken))
        graph.eliminate_dead_code()
        module.delete_all_unused_submodules()
        module.recompile()
        return module
