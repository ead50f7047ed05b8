"""torchvision, by itself: ``get_model``, its own tracer's names, and forward hooks where a network does not trace."""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import torch
import torchvision
from torch import fx, nn
from torchvision.models import GoogLeNet, Inception3, get_model, get_model_builder, list_models
from torchvision.models.feature_extraction import NodePathTracer

from zoo.oracles.base import RawRefusal, explain
from zoo.oracles.modules import TorchOracle

__all__ = ["TorchvisionOracle"]

T = TypeVar("T")
_PARTS = {"detection": ("backbone",), "optical_flow": ("feature_encoder", "context_encoder")}
"""What takes a batch of images by itself, where the network as a whole takes lists or pairs of images."""
_OPTIONS = {"weights_backbone": None, "aux_loss": True, "quantize": False}
"""No downloads, and the float networks that published weights are for."""
_LEAVES = [
    kind
    for _, kind in inspect.getmembers(torchvision.ops, inspect.isclass)
    if issubclass(kind, nn.Module) and kind is not torchvision.ops.FeaturePyramidNetwork  # not one tensor
]


class TorchvisionOracle(TorchOracle):
    """Names are those of ``get_graph_node_names``; a module's name is its last node.

    Names that the graph has not are looked for among the modules, in a forward pass with hooks.
    """

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self._graphs: dict[str, _Graph] | None = None
        self.exact_values = self.package != "detection"  # whose published BatchNorm is frozen, and rounds otherwise

    @staticmethod
    def models() -> Sequence[str]:
        return tuple(list_models())

    def build(self, device: str) -> nn.Module:
        known = inspect.signature(get_model_builder(self.model)).parameters
        options = {name: value for name, value in _OPTIONS.items() if name in known}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network: nn.Module = get_model(self.model, weights=None, **options)
        if isinstance(network, GoogLeNet | Inception3):
            network.transform_input = True  # as torchvision builds them for published weights
        return network

    @property
    def prefix_tokens(self) -> int:
        return 1 if isinstance(self.network(), torchvision.models.VisionTransformer) else 0

    def run(self, network: Any, images: torch.Tensor, names: frozenset[str]) -> Iterator[tuple[str, Any]]:
        for name, part in self._parts(network):
            yield name, part(images)

    def call(self, network: Any, images: torch.Tensor) -> Any:
        outputs = [part(images) for _, part in self._parts(network)]
        return outputs[0] if self.package is None else None

    @property
    def encoder(self) -> str:
        if self.package is None:
            return ""
        within = {"detection": ("backbone.body", "backbone"), "segmentation": ("backbone",)}
        names = {name for name, _ in self.network().named_modules()}
        return next(name for name in within.get(self.package, ("feature_encoder",)) if name in names)

    @property
    def package(self) -> str | None:
        """Which of torchvision's packages for other tasks than classification a model is from; None for that."""
        parts = get_model_builder(self.model).__module__.split(".")
        return parts[2] if len(parts) > 3 and parts[2] != "quantization" else None

    def _parts(self, network: nn.Module) -> list[tuple[str, nn.Module]]:
        parts = _PARTS.get(self.package or "", ())
        return [(part, network.get_submodule(part)) for part in parts] or [("", network)]

    def _observe(
        self, network: Any, images: torch.Tensor, names: Sequence[str], keep: Callable[[torch.Tensor], T]
    ) -> dict[str, T]:
        found: dict[str, T] = {}
        for part, graph in self._traced().items():
            wanted = {name: node for name in names if (node := graph.find(name)) is not None}
            found |= _run_graph(fx.GraphModule(network.get_submodule(part), graph.graph), images, wanted, keep)
        others = [name for name in names if name not in found]
        return found | super()._observe(network, images, others, keep) if others or not found else found

    def _traced(self) -> Mapping[str, _Graph]:
        """The graph of each part in evaluation mode, as far as torch.fx gets through."""
        if self._graphs is None:
            self._graphs = {}
            for name, part in self._parts(self.network()):
                with contextlib.suppress(Exception):  # whatever a network raises at a proxy
                    self._graphs[name] = _Graph.of(name, part)
        return self._graphs


@attrs.frozen
class _Graph:
    """A traced part, and the node of each of its qualified names in order."""

    graph: fx.Graph
    nodes: Mapping[str, str]

    @classmethod
    def of(cls, name: str, part: nn.Module) -> _Graph:
        tracer = NodePathTracer(autowrap_modules=(math, torchvision.ops), leaf_modules=_LEAVES)
        graph = tracer.trace(part)
        prefix = f"{name}." if name else ""
        return cls(graph, {f"{prefix}{known}": node.name for node, known in tracer.node_to_qualname.items()})

    def find(self, name: str) -> str | None:
        """The node of a name: exactly that one, else the last under the module of that name."""
        under = [node for known, node in self.nodes.items() if known.startswith(f"{name}.")]
        return self.nodes.get(name) or (under[-1] if under else None)


def _run_graph(
    module: fx.GraphModule, images: torch.Tensor, wanted: Mapping[str, str], keep: Callable[[torch.Tensor], T]
) -> dict[str, T]:
    """What ``keep`` makes of the wanted nodes' tensors, by name, in the order in which they are made.

    The graph ends with the last of them, as the one of ``create_feature_extractor`` does: what a network refuses after
    that is no matter (SSD300's last extra layers take no image below 300 pixels, its levels do).
    """
    recorder = _Recorder(module, set(wanted.values()), keep)
    try:
        with torch.no_grad():
            recorder.run(images)
    except Exception as error:
        if not wanted or set(recorder.found) != set(wanted.values()):
            raise RawRefusal(explain(error)) from error
    return {name: value for node, value in recorder.found.items() for name, source in wanted.items() if source == node}


class _Recorder(fx.Interpreter):
    """Runs a graph node by node and keeps what is wanted before a later node can overwrite it."""

    def __init__(self, module: fx.GraphModule, wanted: set[str], keep: Callable[[torch.Tensor], T]) -> None:
        super().__init__(module)
        self._wanted = wanted
        self._keep = keep
        self.found: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        if n.name in self._wanted and isinstance(output, torch.Tensor):
            self.found[n.name] = self._keep(output)
        return output
