"""torchvision's models, tapped through torch.fx at any node, with inferred levels."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import attrs
import torchvision
from torch import nn
from torchvision.models import list_models

from featreg.plugin import ExtractionRequest, NodeInfo, Preprocess, Size, errors, is_path
from featreg_torch.backend import TorchBackend, Variant
from featreg_torch.blueprint import Blueprint, Plan
from featreg_torch.declared import has_class_token
from featreg_torch.shapes import build_on_meta
from featreg_torch.taps import Outlet
from featreg_torch.weights import Checkpoint
from featreg_torchvision import CAPABILITIES
from featreg_torchvision.graph import GraphTaps, Trace
from featreg_torchvision.levels import find_outlets, rename_levels
from featreg_torchvision.networks import (
    backbone_in,
    build_network,
    dilates,
    family,
    float_twin,
    imaged_part,
    is_vit,
    renamed,
    undilated,
)
from featreg_torchvision.presets import find_weights, native_size, preprocess, weights_of
from featreg_torchvision.published import changes, fit_names, read_state

__all__ = ["TorchvisionBackend"]


class TorchvisionBackend(TorchBackend):
    """The backend ``torchvision``.

    An extractor runs the traced graph, which shares leaf modules and parameters with ``extractor.module.network``:
    training and replacing weights reach it, hooks on containers and replaced sub-modules do not.

    A file of weights gives the values that it gives under its tag: the network is built as torchvision builds it for
    its own weights (GoogLeNet and Inception renormalise the images, the older detectors have frozen BatchNorm). The
    option ``published`` False builds it as for training from random weights.
    """

    name: ClassVar[str] = "torchvision"
    options: ClassVar[tuple[str, ...]] = (*TorchBackend.options, "published")
    capabilities: ClassVar[tuple[str, ...]] = CAPABILITIES
    package: ClassVar[str | None] = __package__

    def __init__(self) -> None:
        super().__init__()
        self._training = functools.lru_cache(maxsize=1)(self._draw_training)

    def models(self) -> Sequence[str]:
        return tuple(list_models())

    def build(self, variant: Variant) -> nn.Module:
        size = self.native_size(variant)[0] if is_vit(variant.model) else None
        published = variant.tag or (self.default_tag(variant) if _is_published(variant) else None)
        return build_network(variant.model, image_size=size, published=published, output_stride=variant.output_stride)

    def supported(self, variant: Variant) -> Sequence[str]:
        if dilates(variant.model):
            return self.capabilities
        return [name for name in self.capabilities if name != "output_stride"]

    def plan(self, network: nn.Module, variant: Variant) -> Plan:
        trace = Trace(network, functools.partial(imaged_part, model=variant.model))
        return _plan(trace, self._outlets(trace, variant))

    def _outlets(self, trace: Trace, variant: Variant) -> list[Outlet]:
        """The outlets of a traced network; where it is dilated its levels are those of its twin that is not."""
        outlets = find_outlets(trace, self.native_size(variant), backbone_in(trace.network, variant.model))
        if variant.output_stride is None and family(variant.model) != "segmentation":
            return outlets
        twin = Variant(undilated(variant.model), variant.tag if variant.output_stride else None)
        network = build_on_meta(lambda: self.build(twin))
        levels = find_outlets(Trace(network), self.native_size(twin))
        outlets = rename_levels(outlets, levels, functools.partial(renamed, variant.model))
        return [attrs.evolve(one, scores=(one.level, one.index, one.head) == (None,) * 3) for one in outlets]

    def nodes(self, model: str, input_size: Size | None = None, train: bool = False) -> Sequence[NodeInfo]:
        """Every name of the graph in either mode; those that evaluation lacks cannot be asked for."""
        variant = self.variant(model)
        blueprint = self._training(variant) if train else self._blueprint(variant)
        taps: Any = blueprint.tap
        return tuple(attrs.evolve(node, type=taps.trace.type_of(node.name)) for node in blueprint.nodes(input_size))

    def _draw_training(self, variant: Variant) -> Blueprint:
        """The network as it trains, without memory: other nodes, the same outlets where they are among them."""
        outlets = self._blueprint(variant).outlets
        with self._lock:
            network = build_on_meta(lambda: self.build(variant))
            trace = Trace(network, functools.partial(imaged_part, model=variant.model), train=True)
            names = set(trace.names())
            plan = _plan(trace, [outlet for outlet in outlets if outlet.source in names])
            return Blueprint(network, plan, self.native_size(variant))

    def default_tag(self, variant: Variant) -> str:
        return str(find_weights(float_twin(variant.model), None).name)

    def preprocess(self, variant: Variant) -> Preprocess:
        return preprocess(variant.model, variant.tag)

    def native_size(self, variant: Variant) -> Size:
        return native_size(variant.model, variant.tag)

    def tags(self, variant: Variant) -> Sequence[str]:
        return tuple(weights_of(variant.model))

    def pretrained(self, variant: Variant, tag: str) -> nn.Module:
        weights = weights_of(variant.model)[tag]
        if "unquantized" in weights.meta:
            raise errors.CapabilityError(
                f"the weights {tag!r} of {variant.model} are for an int8 engine, whose tensors are no float features",
                f"floating-point weights, such as {self.default_tag(variant)}",
                tag,
                remedy="leave the tag out, or open the float model of the same name",
            )
        network = self.build(attrs.evolve(variant, tag=tag))
        network.load_state_dict(fit_names(read_state(weights), network))
        return network

    def check_options(self, options: Mapping[str, Any]) -> None:
        super().check_options(options)
        if not isinstance(options.get("published", True), bool):
            raise errors.SpecError("the option 'published' is a switch", "true or false", repr(options["published"]))

    def convert(self, checkpoint: Checkpoint, network: nn.Module, variant: Variant) -> Checkpoint:
        """The published files load by path as by tag; the report says where the network was built for them."""
        change = changes(network, variant.model) if _is_published(variant) else ""
        note = f"built as for torchvision's own weights: {change}; options={{'published': False}} leaves that out"
        report = attrs.evolve(checkpoint.report, notes=(*checkpoint.report.notes, *([note] if change else [])))
        return attrs.evolve(checkpoint, state=fit_names(checkpoint.state, network), report=report)

    def _requested(self, request: ExtractionRequest) -> Variant:
        variant = super()._requested(request)
        if request.weights is not None and is_path(request.weights):
            return FileVariant(**attrs.asdict(variant), published=request.options.get("published", True))
        if "published" in request.options:
            raise errors.CapabilityError(
                "the option 'published' says what a file of weights was trained as, and there is no file",
                "weights as a path",
                repr(request.weights),
                remedy="leave the option out",
            )
        return variant


@attrs.frozen
class FileVariant(Variant):
    """A variant for weights in a file: torchvision's own or such as were trained on from them, where ``published``."""

    published: bool = True


def _is_published(variant: Variant) -> bool:
    return isinstance(variant, FileVariant) and variant.published


def _plan(trace: Trace, outlets: Sequence[Outlet]) -> Plan:
    prefix = 1 if isinstance(trace.network, torchvision.models.VisionTransformer) else 0
    return Plan(outlets, trace.names(), GraphTaps(trace), prefix, class_token=has_class_token(trace.network))
