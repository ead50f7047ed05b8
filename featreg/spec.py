"""The specification as data: what a feature, a request, a preprocessing and a model are.

Everything here is frozen, hashable and free of any framework. ``specs/`` holds the prose and the JSON Schemas of the
same classes, :mod:`featreg.serialize` the JSON form.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import attrs

from featreg.errors import CapabilityError, LayerError, SpecError, near_matches
from featreg.feature import HEADS, LEVELS, FeatureInfo, InputRule, MeasuredGrid, Rounding, Size
from featreg.fields import (
    AreTexts,
    IsColor,
    IsNumbers,
    IsSize,
    IsText,
    OneOf,
    SomeOf,
    as_color,
    as_names,
    as_numbers,
    as_pair,
    as_tuple,
    as_whole,
)
from featreg.request import ExtractionRequest, Layer

__all__ = [
    "CAPABILITIES",
    "HEADS",
    "LEVELS",
    "SPEC_VERSION",
    "SPEC_VERSIONS",
    "ExtractionRequest",
    "FeatureInfo",
    "InputRule",
    "Layer",
    "MeasuredGrid",
    "ModelInfo",
    "NodeInfo",
    "Preprocess",
    "Rounding",
    "Size",
]

SPEC_VERSIONS = ("1.0",)
"""Every version that this specification has had, the oldest first."""

SPEC_VERSION = SPEC_VERSIONS[-1]
"""The version of this specification, apart from the version of the package."""

CAPABILITIES = (
    "native_names",
    "native_array",
    "grad",
    "output_stride",
    "weights",
    "synthetic_weights",
    "float16",
    "bfloat16",
    "cuda",
    "text",
    "thread_safe",
)
"""What a backend may declare beyond the minimum; asking for what is not declared raises CapabilityError."""

Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
ResizeMode: TypeAlias = Literal["shortest", "longest", "exact"]
Triple: TypeAlias = tuple[float, float, float]


@attrs.frozen
class Preprocess:
    """How an RGB image becomes the model's input, as data.

    The image is resized (``shortest``: it covers ``resize``, so that for a square the shorter side becomes
    ``resize[0]``; ``longest``: it fits into ``resize``; ``exact``: both sides are set), cropped around the centre to
    ``crop``, padded with ``fill`` where it is smaller (RGB from 0 to 255; one number stands for three), scaled to
    [0, 1], and normalised by ``mean`` and ``std`` in the order of ``color``. All sizes are (height, width). The steps
    up to the crop run on the CPU in uint8, the rest on the device. Where image and crop differ by an odd number of
    pixels, ``center`` rounds the half of it that is cut off first: to ``even``, or ``down``.
    """

    resize: Size | None = attrs.field(converter=as_pair, validator=IsSize(optional=True))
    crop: Size | None = attrs.field(converter=as_pair, validator=IsSize(optional=True))
    mean: Triple = attrs.field(converter=as_numbers, validator=IsNumbers())
    std: Triple = attrs.field(converter=as_numbers, validator=IsNumbers(positive=True))
    resize_mode: ResizeMode = attrs.field(default="shortest", validator=OneOf(("shortest", "longest", "exact")))
    interpolation: Interpolation = attrs.field(
        default="bilinear", validator=OneOf(("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"))
    )
    fill: tuple[int, int, int] = attrs.field(default=(0, 0, 0), converter=as_color, validator=IsColor())
    color: Literal["RGB", "BGR"] = attrs.field(default="RGB", validator=OneOf(("RGB", "BGR")))
    center: Literal["even", "down"] = attrs.field(default="even", validator=OneOf(("even", "down")))


def _is_shape(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and not (isinstance(value, tuple) and all(type(side) is int and side >= 0 for side in value)):
        raise SpecError(f"{attribute.name} is not a shape", "whole numbers, or None", repr(value))


@attrs.frozen
class NodeInfo:
    """One native name of a model: the class of the module or the operation, and the shape of its output for one image.

    ``shape`` leaves out the batch, as (C, H, W), (L, D) or (D,). It is None where the node gives no such tensor, or
    does not run by itself: such a name is listed for what lies below it, and cannot be asked for as a layer.
    """

    name: str = attrs.field(validator=IsText())
    type: str = attrs.field(default="", validator=IsText(empty=True))
    shape: tuple[int, ...] | None = attrs.field(default=None, converter=as_pair, validator=_is_shape)


@attrs.frozen
class ModelInfo:
    """All that can be said of a model without its weights.

    ``input_size`` is the (height, width) that it was described at, ``features`` every level, index and head, each of
    which carries the model's ``input_rule``. ``deviations`` says, a sentence each, how the network computes otherwise
    than the one that its architecture or its weights are known from. ``native`` describes what modules that
    ``features`` names give by themselves, where the features are made of it: the tokens of a plain transformer's
    blocks.
    """

    backend: str = attrs.field(validator=IsText())
    model: str = attrs.field(validator=IsText())
    input_size: Size = attrs.field(converter=as_pair, validator=IsSize())
    features: tuple[FeatureInfo, ...] = attrs.field(converter=as_tuple)
    preprocess: Preprocess
    input_rule: InputRule = attrs.field(factory=InputRule)
    capabilities: tuple[str, ...] = attrs.field(default=(), converter=as_names, validator=SomeOf(CAPABILITIES))
    deviations: tuple[str, ...] = attrs.field(default=(), converter=as_tuple, validator=AreTexts())
    native: tuple[FeatureInfo, ...] = attrs.field(default=(), converter=as_tuple)

    def __attrs_post_init__(self) -> None:
        for field in ("features", "native"):
            infos = tuple(attrs.evolve(info, input_rule=self.input_rule) for info in getattr(self, field))
            object.__setattr__(self, field, infos)
        for field in ("level", "index", "head"):
            values = [getattr(feature, field) for feature in self.features if getattr(feature, field) is not None]
            if len(values) != len(set(values)):
                raise SpecError(f"{self.id} declares a {field} twice", got=str(values))

    @property
    def id(self) -> str:
        """The model id, ``backend:model``."""
        return f"{self.backend}:{self.model}"

    @property
    def keys(self) -> tuple[str, ...]:
        """Every level and head, in order: what :meth:`resolve` takes besides indices and native names."""
        names = [name for feature in self.features for name in (feature.level, feature.head) if name is not None]
        return tuple(names)

    def resolve(self, layer: Layer) -> FeatureInfo:
        """The feature that a level, head, index (negatives from the end), block or declared native name stands for.

        ``"block.N"`` is a block of a plain transformer, counted from 0, as a map; its native name stands for what the
        block itself gives. Raises LayerError with the nearest matches, or CapabilityError for a head that the model
        does not have.
        """
        layer = as_whole(layer)
        if isinstance(layer, int) and not isinstance(layer, bool):
            return self._by_index(layer)
        if self.is_block(layer):
            return self._blocks()[str(layer)]
        for field in ("level", "head", "name") if isinstance(layer, str) else ():
            for feature in (*(self.native if field == "name" else ()), *self.features):
                if getattr(feature, field) == layer:
                    return feature
        if layer in HEADS:
            raise CapabilityError(
                f"{self.id} has no head {layer!r}",
                f"one of {', '.join(feature.head for feature in self.features if feature.head) or '(no head)'}",
                repr(layer),
                remedy=f"featreg describe {self.id} lists every layer",
            )
        names = [*self.keys, *self._blocks(), *(feature.name for feature in self.features)]
        raise LayerError(
            f"{self.id} has no layer {layer!r}",
            f"one of {', '.join(self.keys)}, an index, or a native name",
            matches=near_matches(str(layer), names),
            remedy=f"featreg describe {self.id} lists levels and heads, featreg nodes {self.id} native names",
        )

    def is_block(self, layer: Layer) -> bool:
        """Whether a layer is ``"block.N"``, a block of a plain transformer that this model has."""
        return isinstance(layer, str) and layer in self._blocks()

    def _blocks(self) -> dict[str, FeatureInfo]:
        """The blocks of a plain transformer, whose several indices all lie at one stride."""
        indexed = [feature for feature in self.features if feature.index is not None]
        plain = len(indexed) > 1 and len({feature.reduction for feature in indexed}) == 1
        return {f"block.{feature.index}": feature for feature in indexed} if plain else {}

    def _by_index(self, index: int) -> FeatureInfo:
        indexed = {feature.index: feature for feature in self.features if feature.index is not None}
        order = sorted(indexed)
        if index in indexed:
            return indexed[index]
        if -len(order) <= index < 0:
            return indexed[order[index]]
        raise LayerError(
            f"{self.id} has no index {index}",
            f"one of {order}, or from {-len(order)} to -1" if order else "no index: the model declares none",
            str(index),
            remedy=f"featreg describe {self.id} lists them all",
        )
