"""What every torch backend has in common: a subclass says only what its library calls things."""

from __future__ import annotations

import functools
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import attrs
import torch
from torch import nn

from featreg.plugin import Backend, ExtractionRequest, FeatureInfo, ModelInfo, Preprocess, Size, errors
from featreg_torch.blueprint import Blueprint, Plan
from featreg_torch.device import DTYPES, find_device
from featreg_torch.extractor import TorchExtractor
from featreg_torch.shapes import build_on_meta
from featreg_torch.state import factory_defaults, seeded
from featreg_torch.taps import Outlet, Take
from featreg_torch.weights import is_path, load_into, read_checkpoint

__all__ = ["TorchBackend", "Variant"]

_BLUEPRINTS = 32
"""How many described networks are kept; they hold no tensors' memory."""


@attrs.frozen
class Variant:
    """A network that a library can build: the architecture, and what changes its structure or its configuration.

    ``tag`` names pretrained weights, whose preprocessing and input size apply even where they are not loaded.
    """

    model: str
    tag: str | None = None
    output_stride: int | None = None


class TorchBackend(Backend):
    """A backend whose models are torch modules.

    A subclass gives ``name``, ``capabilities``, :meth:`models`, :meth:`build`, :meth:`plan`, :meth:`preprocess`,
    :meth:`native_size` and :meth:`pretrained`.
    """

    name: ClassVar[str]
    capabilities: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._blueprint = functools.lru_cache(maxsize=_BLUEPRINTS)(self._draw)

    # --- what a library says ------------------------------------------------------------------------------------------

    @abstractmethod
    def build(self, variant: Variant) -> nn.Module:
        """The library's own network with random weights."""

    @abstractmethod
    def plan(self, network: nn.Module, variant: Variant) -> Plan:
        """The outlets, names and taps of a network, which is on the meta device."""

    @abstractmethod
    def preprocess(self, variant: Variant) -> Preprocess:
        """The preprocessing that the variant's weights were trained with."""

    @abstractmethod
    def native_size(self, variant: Variant) -> Size:
        """The (height, width) that the variant is made for."""

    @abstractmethod
    def pretrained(self, variant: Variant, tag: str) -> nn.Module:
        """The library's network with the weights of a tag (``"default"`` where it has no name); may raise anything."""

    def variant(self, model: str) -> Variant:
        """The variant of a model name; a library whose names carry tags takes them apart here."""
        return Variant(model)

    def tags(self, variant: Variant) -> Sequence[str]:
        """The tags of pretrained weights that the library knows for a variant."""
        return ()

    def default_tag(self, variant: Variant) -> str | None:
        """The tag that ``weights="default"`` stands for; None where the variant's own is meant."""
        return variant.tag

    def supported(self, variant: Variant) -> Sequence[str]:
        """The capabilities of one model; all of the backend's, unless a library says otherwise."""
        return self.capabilities

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse options that the backend does not have."""
        if options:
            raise errors.CapabilityError(f"the backend {self.name!r} takes no options", got=", ".join(options))

    def extractor(self, request: ExtractionRequest, **parts: Any) -> TorchExtractor:
        """The extractor of an opened network; ``parts`` are the arguments of :class:`TorchExtractor`."""
        return TorchExtractor(**parts)

    # --- the contract -------------------------------------------------------------------------------------------------

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        return self._info(self.variant(model), model, input_size)

    def nodes(self, model: str) -> Sequence[str]:
        return self._blueprint(self.variant(model)).names

    def open(self, request: ExtractionRequest) -> TorchExtractor:
        self.check_options(request.options)
        device = find_device(request.device)
        variant = self._requested(request)
        blueprint = self._blueprint(variant)
        info = self._info(variant, request.model, None)
        outlets = [blueprint.outlet(layer, info) for layer in request.layers]
        readings, events = blueprint.read(outlets), blueprint.events(outlets)
        network = self._load(variant, request.weights).eval().to(device, DTYPES[request.dtype])
        takes = [Take(reading.info, reading.stored, reading.prefix_tokens) for reading in readings]
        taps = blueprint.tap(network, [outlet.source for outlet in outlets], takes, events)
        return self.extractor(
            request,
            info=info,
            features=tuple(reading.info for reading in readings),
            network=network,
            taps=taps.eval(),
            device=device,
            dtype=DTYPES[request.dtype],
            grad=request.grad,
            measure=functools.partial(_measure, blueprint, outlets, stop_after=events),
        )

    def _requested(self, request: ExtractionRequest) -> Variant:
        variant = attrs.evolve(self.variant(request.model), output_stride=request.output_stride)
        if request.weights is None or is_path(request.weights):
            return variant
        if request.weights == "default":
            return attrs.evolve(variant, tag=self.default_tag(variant))
        tags = self.tags(variant)
        if request.weights not in tags:
            raise errors.WeightsError(
                f"{self.name} has no weights {request.weights!r} for {variant.model}",
                f"one of {', '.join(tags) or '(none)'}",
                repr(request.weights),
                errors.near_matches(request.weights, tags),
                "or pass the path of a checkpoint file",
            )
        return attrs.evolve(variant, tag=request.weights)

    def _info(self, variant: Variant, model: str, input_size: Size | None) -> ModelInfo:
        blueprint = self._blueprint(variant)
        size = input_size or blueprint.native
        blueprint.rule.check(*size)
        features = _measure(blueprint, blueprint.outlets, size)
        preprocess, capabilities = self.preprocess(variant), self.supported(variant)
        return ModelInfo(self.name, model, size, features, preprocess, blueprint.rule, capabilities)

    def _draw(self, variant: Variant) -> Blueprint:
        with self._lock:
            network = build_on_meta(lambda: self.build(variant))
            return Blueprint(network, self.plan(network, variant), self.native_size(variant))

    def _load(self, variant: Variant, weights: str | None) -> nn.Module:
        with seeded(), factory_defaults("cpu"):
            if weights is not None and not is_path(weights):
                return self._tagged(variant, variant.tag or weights)
            network = self.build(variant)
            if weights is not None:
                load_into(network, read_checkpoint(weights), weights)
            return network

    def _tagged(self, variant: Variant, tag: str) -> nn.Module:
        try:
            return self.pretrained(variant, tag)
        except errors.FeatregError:
            raise
        except Exception as error:
            raise errors.WeightsError(
                f"the pretrained weights {tag!r} of {self.name}:{variant.model} cannot be had",
                f"a tag that the library can download or has in its cache ({torch.hub.get_dir()}, or HF_HOME)",
                f"{type(error).__name__}: {error}",
                remedy="pass the path of a checkpoint file as weights, or weights=None for random ones",
            ) from error


def _measure(
    blueprint: Blueprint, outlets: Sequence[Outlet], size: Size, stop_after: int | None = None
) -> tuple[FeatureInfo, ...]:
    return tuple(reading.info for reading in blueprint.read(outlets, size, stop_after))
