"""The library's configurations, and the class of network that one is for."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import attrs
import transformers
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from featreg.plugin import check_refused, errors
from featreg_torch.backend import Variant
from featreg_transformers.catalogue import TOWERS, model_types, published
from featreg_transformers.hubs import arguments, is_hub, reading

__all__ = ["ModelVariant", "configuration", "network_class", "place_of", "takes_interpolation"]

_FIXED = ("architectures", "dtype", "model_type", "output_attentions", "output_hidden_states", "return_dict")
"""Entries of a configuration that are no caller's to change: how the network is called and named."""

_DERIVED = ("out_features", "out_indices", "stage_names")
"""Entries that the library makes of others."""


@attrs.frozen
class ModelVariant(Variant):
    """What a request asks of a network besides its name.

    ``overrides`` are entries of the configuration, as JSON with sorted keys. ``architecture`` names the class of the
    network. ``interpolate``: position embeddings are interpolated to the size of the images.
    """

    overrides: str = "{}"
    architecture: str | None = None
    interpolate: bool = False


def place_of(variant: Variant) -> str | None:
    """The repository or folder that the configuration is read from; None where this package or the library knows it."""
    return next((name for name in (variant.tag, variant.model) if is_hub(name)), None)


def configuration(variant: ModelVariant) -> PreTrainedConfig:
    """The configuration of a variant, with its overrides; of two towers that of the image tower.

    Raises WeightsError for a place without one, CapabilityError for a type that is refused or takes no images,
    SpecError for overrides that do not fit.
    """
    place = place_of(variant)
    config = _known(variant.model) if place is None else _read(place)
    config = _override(config, json.loads(variant.overrides))
    if variant.architecture is not None:
        config.architectures = [variant.architecture]
    if network_class(config).__name__.endswith("Backbone"):
        config.out_indices = list(range(1, len(config.stage_names)))  # all but the stem, which is no stage
    return config


def network_class(config: PreTrainedConfig) -> type[Any]:
    """The class that a configuration names, where that takes images alone and gives features, else the library's base.

    Raises CapabilityError for the option ``architecture`` with another class than the library has for the type.
    """
    known = _classes(config.model_type)
    named = next(iter(config.architectures or ()), None)
    found: type[Any] = getattr(transformers, named if named in known else known[0])
    return found


def takes_interpolation(network: type[Any]) -> bool:
    """Whether a network interpolates its position embeddings where that is asked for, and else takes one size alone."""
    return "interpolate_pos_encoding" in inspect.signature(network.forward).parameters


def _known(model: str) -> PreTrainedConfig:
    entry = published().get(model)
    if entry is None:
        return _made(CONFIG_MAPPING[model], {})
    config = _made(CONFIG_MAPPING[entry.type], entry.config)
    config.architectures = [entry.architecture]
    return config


def _read(place: str) -> PreTrainedConfig:
    with reading(place, "config.json"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(**arguments(place))
    tower = getattr(config, "vision_config", None)
    if getattr(tower, "model_type", None) in TOWERS:
        config = tower
    check_refused("featreg_transformers", config.model_type)
    if config.model_type not in model_types():
        raise errors.CapabilityError(
            f"{place!r} holds a model of the type {config.model_type!r}, which gives no features of images alone",
            f"a model type of the library's AutoModel for images, such as {', '.join(published())[:60]}…",
            config.model_type,
            errors.near_matches(config.model_type, model_types()),
        )
    return config


def _override(config: PreTrainedConfig, overrides: Mapping[str, Any]) -> PreTrainedConfig:
    if not overrides:
        return config
    values = config.to_dict()
    known = sorted((set(values) | {"num_labels"}) - set(_FIXED))
    for name in overrides:
        if name not in known:
            raise errors.SpecError(
                f"a configuration of the type {config.model_type!r} has no entry {name!r}",
                "an entry of it, as the library names them",
                repr(name),
                errors.near_matches(name, known),
            )
    derived = {*_DERIVED, *(("id2label", "label2id") if "num_labels" in overrides else ())}
    return _made(type(config), {**{name: value for name, value in values.items() if name not in derived}, **overrides})


def _made(kind: type[Any], values: Mapping[str, Any]) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = kind(**values)
    except Exception as error:
        raise errors.SpecError(
            f"this is no configuration of the type {kind.model_type!r}",
            "entries with the types and values that the library takes",
            f"{type(error).__name__}: {error}",
        ) from error
    return config


def _classes(model_type: str) -> list[str]:
    """The names of the classes that the library has for a type, its base model first."""
    mappings = (
        TOWERS,
        auto.MODEL_FOR_IMAGE_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_BACKBONE_MAPPING_NAMES,
    )
    found = [mapping[model_type] for mapping in mappings if model_type in mapping]
    return [name for names in found for name in ((names,) if isinstance(names, str) else names)]
