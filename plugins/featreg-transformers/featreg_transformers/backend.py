"""The vision models of Hugging Face transformers, tapped by hooks on their own modules."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import attrs
from torch import nn

from featreg.plugin import ExtractionRequest, Preprocess, Size, WeightsReport, errors
from featreg_torch.backend import TorchBackend, Variant
from featreg_torch.blueprint import Plan
from featreg_torch.extractor import TorchExtractor
from featreg_torch.identity import watch_hub
from featreg_torch.state import factory_defaults
from featreg_torch.weights import Checkpoint
from featreg_transformers import CAPABILITIES
from featreg_transformers.catalogue import model_types, published
from featreg_transformers.configurations import (
    ModelVariant,
    configuration,
    network_class,
    place_of,
    takes_interpolation,
)
from featreg_transformers.hubs import HUBS, cache_of, is_hub, muted, with_prefix
from featreg_transformers.likeness import deviations
from featreg_transformers.outlets import draw_plan
from featreg_transformers.processors import default_processor, processor_of, to_preprocess
from featreg_transformers.weights import library_state

__all__ = ["TransformersBackend"]


class TransformersBackend(TorchBackend):
    """The backend ``transformers``.

    Model names are checkpoints (``dinov2-small``, or with its owner ``facebook/dinov2-small``), the library's model
    types (``dinov2``: its default configuration), and ``hf-hub:OWNER/NAME`` and ``local-dir:FOLDER``. Its options:

    - ``config``: entries of the configuration, in place of the model's.
    - ``architecture``: the library's class of network, such as ``ViTModel`` or ``Dinov2Backbone``.
    - ``interpolate_pos_encoding``: with True, position embeddings made for one size are interpolated to others.
    """

    name: ClassVar[str] = "transformers"
    capabilities: ClassVar[tuple[str, ...]] = CAPABILITIES
    package: ClassVar[str | None] = "featreg_transformers"
    hubs: ClassVar[tuple[str, ...]] = HUBS
    options: ClassVar[tuple[str, ...]] = (
        *TorchBackend.options,
        "architecture",
        "config",
        "interpolate_pos_encoding",
    )

    def models(self) -> Sequence[str]:
        return tuple(sorted({*published(), *model_types()}))

    def has(self, model: str) -> bool:
        return is_hub(model) or _short(model) in self.models()

    def suggest(self, model: str) -> tuple[Sequence[str], str]:
        remedy = f"for a repository of the hub or a folder, say 'hf-hub:{model}' or 'local-dir:{model}'"
        return errors.near_matches(_short(model), self.models()), remedy

    def variant(self, model: str) -> ModelVariant:
        return ModelVariant(_short(model))

    def default_tag(self, variant: Variant) -> str | None:
        if is_hub(variant.model):
            return variant.model
        entry = published().get(variant.model)
        if entry is None:
            raise errors.WeightsError(
                f"{variant.model!r} is a model type, and has no weights of its own",
                "a checkpoint of this type",
                "'default'",
                [name for name, one in published().items() if one.type == variant.model][:5],
                "name the checkpoint as the model, or its repository or folder as weights",
            )
        return f"hf-hub:{entry.repository}"

    def cache(self, variant: Variant) -> str:
        return cache_of(place_of(variant) or "")

    def check_options(self, options: Mapping[str, Any]) -> None:
        super().check_options(options)
        kinds: dict[str, tuple[Any, str]] = {
            "architecture": (str, "the name of a class"),
            "config": (Mapping, "entries of a configuration by name"),
            "interpolate_pos_encoding": (bool, "true or false"),
        }
        for option, (kind, expected) in kinds.items():
            if option in options and not isinstance(options[option], kind):
                raise errors.SpecError(f"the option {option!r} has another form", expected, repr(options[option]))

    def build(self, variant: Variant) -> nn.Module:
        assert isinstance(variant, ModelVariant)
        config = configuration(variant)
        try:
            with muted():
                network: nn.Module = network_class(config)(config)
        except (NotImplementedError, RuntimeError):  # what the meta device cannot do
            raise
        except Exception as error:
            raise errors.SpecError(
                f"the library builds no network of transformers:{variant.model} with this configuration",
                "entries that fit each other",
                f"{type(error).__name__}: {error}",
            ) from error
        return network

    def plan(self, network: nn.Module, variant: Variant) -> Plan:
        assert isinstance(variant, ModelVariant)
        try:
            return draw_plan(network, self.native_size(variant), variant.interpolate)
        except errors.FeatregError:
            raise
        except Exception as error:
            raise errors.CapabilityError(
                f"{type(network).__name__} of transformers:{variant.model} gives no features of images alone",
                "a network whose forward needs nothing but pixel_values",
                f"{type(error).__name__}: {error}",
            ) from error

    def deviations(self, variant: Variant) -> Sequence[str]:
        return deviations(self._blueprint(variant).network, variant.model)

    def preprocess(self, variant: Variant) -> Preprocess:
        assert isinstance(variant, ModelVariant)
        return to_preprocess(_processor(variant))

    def native_size(self, variant: Variant) -> Size:
        """The size of the configuration where it is the only one, else that of the weights' image processor."""
        assert isinstance(variant, ModelVariant)
        config = configuration(variant)
        size = getattr(config, "image_size", None)
        own = None if size is None else _pair(size)
        if own is not None and variant.interpolate:
            height, width = _pair(config.patch_size)
            return (own[0] // height * height, own[1] // width * width)
        if own is not None and (takes_interpolation(network_class(config)) or variant.model in model_types()):
            return own
        preprocess = self.preprocess(variant)
        return (
            preprocess.crop or (preprocess.resize if preprocess.resize_mode == "exact" else None) or own or (224, 224)
        )

    def pretrained(self, variant: Variant, tag: str) -> nn.Module:
        return self.build(variant)  # _checkpoint has its weights

    def open(self, request: ExtractionRequest) -> TorchExtractor:
        weights = request.weights
        if weights == "default":
            weights = self.default_tag(self.variant(request.model))
        elif weights is not None:
            weights = with_prefix(weights)
        return super().open(attrs.evolve(request, weights=weights))

    def convert(self, checkpoint: Checkpoint, network: nn.Module, variant: Variant) -> Checkpoint:
        if is_hub(variant.tag):
            return checkpoint
        state, notes = library_state(type(network), network.config, state=checkpoint.state)
        report = attrs.evolve(checkpoint.report, notes=(*checkpoint.report.notes, *notes))
        return attrs.evolve(checkpoint, state=state, report=report)

    def identity(self, request: ExtractionRequest) -> Callable[[], str | None]:
        """As of every torch backend, after that of the repository or folder that the model itself is."""
        weights = super().identity(request)
        if not is_hub(request.model) or request.model == request.weights:
            return weights
        model = watch_hub(request.model, self.hub_file)
        return lambda: "; ".join(part for part in (model(), weights()) if part is not None) or None

    def _requested(self, request: ExtractionRequest) -> ModelVariant:
        variant: Any = super()._requested(request)
        options = request.options
        asked: ModelVariant = attrs.evolve(
            variant,
            overrides=json.dumps(_plain(options.get("config", {})), sort_keys=True),
            architecture=options.get("architecture"),
            interpolate=options.get("interpolate_pos_encoding", False),
        )
        _check_asked(asked)
        return asked

    def _checkpoint(self, request: ExtractionRequest) -> Checkpoint | None:
        variant = self._requested(request)
        place = variant.tag
        if place is None:
            return super()._checkpoint(request)
        super()._checkpoint(attrs.evolve(request, weights=place))  # refuses the options of files
        config = configuration(variant)
        with factory_defaults("cpu"):
            state, notes = library_state(network_class(config), config, place=place)
        return Checkpoint(state, WeightsReport(place, notes=notes))


def _short(model: str) -> str:
    """The name of a known checkpoint without its owner; any other name as it is."""
    name = model.rpartition("/")[2]
    return name if name in published() and published()[name].repository == model else model


def _pair(size: Any) -> Size:
    height, width = (size, size) if isinstance(size, int) else size
    return (height, width)


def _plain(value: Any) -> Any:
    """A frozen option as JSON knows it."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _processor(variant: ModelVariant) -> Mapping[str, Any]:
    """The image processor of a variant: that of its repository or folder where it has one."""
    place = place_of(variant)
    found = None if place is None else processor_of(place)
    if found is not None:
        return found
    config, entry = configuration(variant), published().get(variant.model)
    size = _pair(getattr(config, "image_size", None) or 224)
    return default_processor(config.model_type, size, {} if entry is None else entry.processor)


def _check_asked(variant: ModelVariant) -> None:
    """Raise CapabilityError for an option that the network does not have, WeightsError for weights of another type."""
    config = configuration(variant)
    network = network_class(config)
    own = configuration(ModelVariant(variant.model)).model_type
    if config.model_type != own:
        raise errors.WeightsError(
            f"{variant.tag!r} holds weights of another model type",
            own,
            config.model_type,
            remedy=f"open transformers:{variant.tag} as the model, with weights='default'",
        )
    if variant.architecture not in (None, network.__name__):
        raise errors.CapabilityError(
            f"transformers:{variant.model} cannot be of the class {variant.architecture!r}",
            "a class of the library's for this model type, of images alone",
            str(variant.architecture),
            (network.__name__,),
        )
    if variant.interpolate and not takes_interpolation(network):
        raise errors.CapabilityError(
            f"{network.__name__} has no interpolate_pos_encoding: it takes other sizes as it is, or none",
            "a network with position embeddings for one size",
            network.__name__,
        )
