"""What every torch backend has in common: a subclass says only what its library calls things."""

from __future__ import annotations

import functools
import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import attrs
import torch
from torch import nn

from featreg.plugin import (
    Backend,
    CanonicalNames,
    ExtractionRequest,
    ModelInfo,
    NodeInfo,
    Preprocess,
    Size,
    canonical_names,
    check_refused,
    errors,
    is_path,
    synthetic_seed,
    watch_path,
)
from featreg_torch.blueprint import Blueprint, Plan
from featreg_torch.cut import drop_unused
from featreg_torch.device import DTYPES, find_device
from featreg_torch.extractor import TorchExtractor
from featreg_torch.identity import watch_hub, watch_module
from featreg_torch.projection import LAYER, build_projection, check_head, check_use, report_head
from featreg_torch.shapes import build_on_meta
from featreg_torch.state import factory_defaults, seeded
from featreg_torch.tapping import Tapping
from featreg_torch.weights import Checkpoint, draw_into, load_into, pair_in_order, read_checkpoint

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
    package: ClassVar[str | None] = None
    """The plugin's package, where its ``refused.toml`` lies; None where it refuses no model."""
    options: ClassVar[tuple[str, ...]] = ("ema", "head", "names")
    """What ``options`` of a request may hold, besides what :meth:`check_options` says."""
    hubs: ClassVar[tuple[str, ...]] = ()
    """The prefixes of ``weights`` that the library resolves by itself, such as ``"hf-hub:"``."""
    hub_file: ClassVar[str] = "config.json"
    """A file that every repository of these has."""

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

    def cache(self, variant: Variant) -> str:
        """The folder where the library keeps the pretrained weights of a variant that it has downloaded."""
        return f"{torch.hub.get_dir()}/checkpoints"

    def canonical_names(self, variant: Variant) -> CanonicalNames:
        """From the library's names of a network's weights to the canonical ones, by which synthetic ones are drawn."""
        return CanonicalNames() if self.package is None else canonical_names(self.package, variant.model)

    def deviations(self, variant: Variant) -> Sequence[str]:
        """A sentence for each way in which the network computes otherwise than the one that it is known from."""
        return ()

    def supported(self, variant: Variant) -> Sequence[str]:
        """The capabilities of one model; all of the backend's, unless a library says otherwise."""
        return self.capabilities

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse options that the backend does not have, and values that they do not take.

        ``ema`` False takes the weights as trained from a checkpoint that also has their moving average, ``head``
        describes the projection that the layer ``"head"`` stands for, and ``names`` ``"order"`` pairs the weights of a
        checkpoint from another library with the model's in order (see :func:`featreg.map_in_order`).
        """
        for option in options:
            if option not in self.options:
                raise errors.CapabilityError(
                    f"the backend {self.name!r} has no option {option!r}",
                    f"some of {', '.join(self.options)}",
                    repr(option),
                    errors.near_matches(option, self.options),
                )
        if not isinstance(options.get("ema", True), bool):
            raise errors.SpecError("the option 'ema' is a switch", "true or false", repr(options["ema"]))
        if options.get("names", "order") != "order":
            raise errors.SpecError("the option 'names' has one value", "'order'", repr(options["names"]))
        check_head(options)

    def convert(self, checkpoint: Checkpoint, network: nn.Module, variant: Variant) -> Checkpoint:
        """The weights of a file under the names of the library's network, where other programs name them otherwise."""
        return checkpoint

    def finish(self, network: nn.Module, variant: Variant) -> None:
        """Do to a network with its weights what must be done before those that no layer needs are dropped."""

    def extractor(self, request: ExtractionRequest, **parts: Any) -> TorchExtractor:
        """The extractor of an opened network; ``parts`` are the arguments of :class:`TorchExtractor`."""
        return TorchExtractor(**parts)

    def identity(self, request: ExtractionRequest) -> Callable[[], str | None]:
        """Says what the weights that were just loaded are, where the request does not (see ``weights_identity``)."""
        weights = request.weights or ""
        if synthetic_seed(weights) is not None:
            return lambda: weights
        if weights.startswith(self.hubs):
            return watch_hub(weights, self.hub_file)
        return watch_path(weights) if is_path(weights) else lambda: None

    # --- the contract -------------------------------------------------------------------------------------------------

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        return self._info(self.variant(model), model, input_size)

    def info_for(self, request: ExtractionRequest, input_size: Size | None = None) -> ModelInfo:
        self.check_options(request.options)
        return self._info(self._requested(request), request.model, input_size)

    def nodes(self, model: str, input_size: Size | None = None, train: bool = False) -> Sequence[NodeInfo]:
        return self._blueprint(self.variant(model)).nodes(input_size)

    def open(self, request: ExtractionRequest) -> TorchExtractor:
        self.check_options(request.options)
        device = find_device(request.device)
        variant = self._requested(request)
        checkpoint = self._checkpoint(request)
        blueprint, info = self._blueprint(variant), self._info(variant, request.model, None)
        check_use(request.options, request.layers, blueprint.names)
        projection = self._projection(request, checkpoint, blueprint, info)
        tapping = Tapping(blueprint, info, request.layers, projection)
        network = self._load(variant, request.weights)
        if checkpoint is not None and "names" in request.options:
            checkpoint = pair_in_order(network, checkpoint, tapping.spare)
        report = None
        if checkpoint is not None:
            report = load_into(network, self.convert(checkpoint, network, variant), tapping.spare)
        self.finish(network, variant)
        module = tapping.module(network)
        drop_unused(network, tapping.used())
        module.eval().to(device, DTYPES[request.dtype])
        extractor = self.extractor(request, **tapping.parts(module, device, request))
        extractor.weights_report = report_head(report, checkpoint, projection, request.layers)
        extractor.identify = watch_module(module, self.identity(request))
        return extractor

    def _checkpoint(self, request: ExtractionRequest) -> Checkpoint | None:
        if request.weights is None or request.weights.startswith(self.hubs) or not is_path(request.weights):
            for option in sorted({"ema", "names"} & set(request.options)):
                raise errors.CapabilityError(
                    f"the option {option!r} is for the file of a checkpoint",
                    "its path, as weights",
                    str(request.weights),
                )
            return None
        with factory_defaults("cpu"):
            return read_checkpoint(request.weights, average=request.options.get("ema", True))

    def _projection(
        self, request: ExtractionRequest, checkpoint: Checkpoint | None, blueprint: Blueprint, info: ModelInfo
    ) -> nn.Sequential | None:
        """The projection head that a request asks for; None for a model with a layer of that name of its own."""
        if LAYER not in request.layers or LAYER in blueprint.names:
            return None
        with seeded(), factory_defaults("cpu"):
            return build_projection(request.options, checkpoint, info.resolve("pooled").channels)

    def _requested(self, request: ExtractionRequest) -> Variant:
        variant = attrs.evolve(self.variant(request.model), output_stride=request.output_stride)
        weights = request.weights
        if weights is not None and weights.startswith(self.hubs):
            return attrs.evolve(variant, tag=weights)
        if weights is None or synthetic_seed(weights) is not None or is_path(weights):
            return variant
        if weights == "default":
            return attrs.evolve(variant, tag=self.default_tag(variant))
        tags = self.tags(variant)
        if weights not in tags:
            raise errors.WeightsError(
                f"{self.name} has no weights {weights!r} for {variant.model}",
                f"one of {', '.join(tags) or '(none)'}",
                repr(weights),
                errors.near_matches(weights, tags),
                "or pass the path of a checkpoint file",
            )
        return attrs.evolve(variant, tag=weights)

    def _info(self, variant: Variant, model: str, input_size: Size | None) -> ModelInfo:
        blueprint = self._blueprint(variant)
        size = input_size or blueprint.native
        blueprint.rule.check(*size)
        features = blueprint.measure(blueprint.outlets, size)
        preprocess, capabilities = self.preprocess(variant), self.supported(variant)
        deviations = self.deviations(variant)
        native = blueprint.natives(size)
        return ModelInfo(self.name, model, size, features, preprocess, blueprint.rule, capabilities, deviations, native)

    def _draw(self, variant: Variant) -> Blueprint:
        if self.package is not None:
            check_refused(self.package, variant.model)
        with self._lock:
            network = build_on_meta(lambda: self.build(variant))
            return Blueprint(network, self.plan(network, variant), self.native_size(variant))

    def _load(self, variant: Variant, weights: str | None) -> nn.Module:
        seed = synthetic_seed(weights)
        with seeded(), factory_defaults("cpu"):
            if weights is not None and seed is None and (weights.startswith(self.hubs) or not is_path(weights)):
                return self._tagged(variant, variant.tag or weights)
            network = self.build(variant)
            if seed is not None:
                draw_into(network, seed, self.canonical_names(variant))
            return network

    def _tagged(self, variant: Variant, tag: str) -> nn.Module:
        try:
            return self.pretrained(variant, tag)
        except errors.FeatregError:
            raise
        except Exception as error:
            raise errors.WeightsError(
                f"the pretrained weights {tag!r} of {self.name}:{variant.model} cannot be had",
                f"the weights in the cache {self.cache(variant)}, or a network to load them from",
                f"{type(error).__name__}: {error}",
                remedy="load them once while online, or pass the path of a checkpoint file as weights "
                "(weights='/path/to/file.safetensors'); weights=None gives random ones. "
                "Offline, HF_HUB_OFFLINE=1 in the environment saves the wait for the hub",
            ) from error
