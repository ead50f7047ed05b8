"""The specification as data: what a feature, a request, a preprocessing and a model are.

Everything here is frozen, hashable and free of any framework. ``specs/`` holds the prose and the JSON Schemas of the
same classes, :mod:`featreg.serialize` the JSON form.
"""

from __future__ import annotations

import operator
from typing import Any, Literal, TypeAlias

import attrs

from featreg.errors import CapabilityError, InputError, LayerError, SpecError, near_matches
from featreg.fields import (
    AreTexts,
    AtLeast,
    IsBool,
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
    "ExtractionRequest",
    "FeatureInfo",
    "InputRule",
    "Layer",
    "MeasuredGrid",
    "ModelInfo",
    "NodeInfo",
    "Preprocess",
]

SPEC_VERSION = "1.0"
"""The version of this specification, apart from the version of the package."""

Kind: TypeAlias = Literal["map", "tokens", "vector"]
Rounding: TypeAlias = Literal["ceil", "floor", "measured"]
Size: TypeAlias = tuple[int, int]
"""(height, width) in pixels."""

LEVELS = tuple(f"C{k}" for k in range(8))
"""The canonical levels: level Ck lies at stride 2**k, as in feature pyramids (Lin et al. 2017, arXiv:1612.03144)."""

HEADS = ("features", "pooled", "logits", "tokens", "embedding", "text_embedding")
"""The final unpooled features, the vector before the classifier, its output, the final tokens, CLIP's two towers."""

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


@attrs.frozen
class MeasuredGrid:
    """The height and width of a feature map at one input size, measured because no closed form holds for it."""

    input_size: Size = attrs.field(converter=as_pair, validator=IsSize())
    grid: Size = attrs.field(converter=as_pair, validator=IsSize())


@attrs.frozen
class InputRule:
    """The image sizes that a model takes: one ``fixed`` size, or each from ``minimum`` on by ``multiple_of``."""

    fixed: Size | None = attrs.field(default=None, converter=as_pair, validator=IsSize(optional=True))
    multiple_of: int = attrs.field(default=1, converter=as_whole, validator=AtLeast(1))
    minimum: Size = attrs.field(default=(1, 1), converter=as_pair, validator=IsSize())
    channels: int = attrs.field(default=3, converter=as_whole, validator=AtLeast(1))

    def __str__(self) -> str:
        if self.fixed is not None:
            return f"exactly {self.fixed[0]}x{self.fixed[1]}"
        parts = [f"at least {self.minimum[0]}x{self.minimum[1]}"] if self.minimum > (1, 1) else []
        parts += [f"multiples of {self.multiple_of}"] if self.multiple_of > 1 else []
        return ", ".join(parts) or "any size"

    def check(self, height: int, width: int) -> None:
        """Raise InputError unless an image of this size may go in."""
        fits = (
            (height, width) == self.fixed
            if self.fixed is not None
            else height >= self.minimum[0]
            and width >= self.minimum[1]
            and height % self.multiple_of == 0
            and width % self.multiple_of == 0
        )
        if not fits:
            raise InputError(
                "the model does not take images of this size",
                f"height x width: {self}",
                f"{height}x{width}",
                remedy="resize or crop the images (extractor.preprocess says how the weights were trained)",
            )


@attrs.frozen
class FeatureInfo:
    """One layer's output, described exactly.

    ``name`` is the library's own name of the node or module. ``reduction`` is the stride in pixels (None for vectors,
    and for a pooled map whose cells have no one stride). ``rounding`` says how an input side becomes a grid side:
    ``ceil(side / reduction)``, ``floor(side / reduction)``, or ``measured`` at the sizes listed in ``measured``, where
    neither form holds; a vector that is ``measured`` is a flattened layer, ``channels`` wide at the sizes listed.
    ``prefix_tokens`` counts the class, distillation and register tokens at the front of ``tokens``; maps never contain
    them. ``class_token`` says that the first of them is a class token. ``length`` is the number of tokens where they
    are no patches of the image (those of a text, the queries of an attention pool): it is the same for every size, and
    there is no reduction. ``input_rule`` is the model's: a shape is predicted for no size that the model does not take.
    """

    name: str = attrs.field(validator=IsText(empty=True))
    channels: int = attrs.field(converter=as_whole, validator=AtLeast(1))
    reduction: int | None = attrs.field(converter=as_whole, validator=AtLeast(1, optional=True))
    kind: Kind = attrs.field(validator=OneOf(("map", "tokens", "vector")))
    level: str | None = attrs.field(default=None, validator=OneOf((None, *LEVELS)))
    index: int | None = attrs.field(default=None, converter=as_whole, validator=AtLeast(0, optional=True))
    head: str | None = attrs.field(default=None, validator=OneOf((None, *HEADS)))
    prefix_tokens: int = attrs.field(default=0, converter=as_whole, validator=AtLeast(0))
    rounding: Rounding = attrs.field(default="ceil", validator=OneOf(("ceil", "floor", "measured")))
    measured: tuple[MeasuredGrid, ...] = attrs.field(default=(), converter=as_tuple)
    input_rule: InputRule = attrs.field(factory=InputRule, repr=False)
    length: int | None = attrs.field(default=None, converter=as_whole, validator=AtLeast(1, optional=True))
    class_token: bool = attrs.field(default=False, validator=IsBool())

    def __attrs_post_init__(self) -> None:
        if self.length is not None and self.kind != "tokens":
            raise SpecError(f"feature {self.name!r} of kind {self.kind!r} has a length", "a length for tokens alone")
        strided, uneven = self._has_grid, self.kind == "map" and self.rounding == "measured"
        if (self.reduction is not None and not strided) or (self.reduction is None and strided and not uneven):
            raise SpecError(
                f"feature {self.name!r} of kind {self.kind!r} has reduction {self.reduction}",
                "a reduction for maps (but where measured) and for tokens without a length, none for vectors",
            )
        sizes = [entry.input_size for entry in self.measured]
        if (sizes and self.rounding != "measured") or len(sizes) != len(set(sizes)):
            raise SpecError(
                f"the measured grids of {self.name!r} contradict", "rounding 'measured', each size once", str(sizes)
            )
        if self.prefix_tokens and self.kind != "tokens":
            raise SpecError(f"feature {self.name!r} of kind {self.kind!r} cannot hold prefix tokens")
        if self.class_token and not self.prefix_tokens:
            raise SpecError(f"feature {self.name!r} has a class token", "at least one prefix token", "none")

    @property
    def _has_grid(self) -> bool:
        return self.kind != "vector" and self.length is None

    def grid(self, height: int, width: int) -> Size:
        """The height and width of the feature map (for tokens: of the patch grid) for one input size.

        Raises InputError where the map would be empty, or where the grid is ``measured`` and not at this size.
        """
        if not self._has_grid:
            raise SpecError(f"feature {self.name!r} is no grid of the image", "a map, or tokens of patches", self.kind)
        height, width = operator.index(height), operator.index(width)
        if self.reduction is None or self.rounding == "measured":
            return self._measured_grid(height, width)
        if self.rounding == "ceil":
            grid = (-(-height // self.reduction), -(-width // self.reduction))
        else:
            grid = (height // self.reduction, width // self.reduction)
        if min(grid) < 1:
            raise InputError(
                f"{self.name!r} is empty for an image of {height}x{width}",
                f"at least {self.reduction} pixels a side",
                f"{height}x{width}",
            )
        return grid

    def _measured_grid(self, height: int, width: int) -> Size:
        for entry in self.measured:
            if entry.input_size == (height, width):
                return entry.grid
        raise InputError(
            f"the grid of {self.name!r} follows no formula and was not measured at {height}x{width}",
            f"one of {[entry.input_size for entry in self.measured]}",
            f"{height}x{width}",
            remedy="describe the model at this input size, or ask an extractor's output_shapes",
        )

    def shape(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        """The exact output shape for ``batch`` images: (N, C, H, W), (N, L, D) or (N, D).

        The shape of a vector needs no size unless it is ``measured``, nor does that of tokens with a length. Raises
        InputError for a size that the model does not take, and as :meth:`grid`.
        """
        for number in (batch, height, width):
            if isinstance(number, bool) or not hasattr(number, "__index__") or number < 0:
                raise InputError("a shape is asked for by whole numbers", got=f"{batch!r}, {height!r}, {width!r}")
        if self.kind == "vector" and self.rounding != "measured":
            return (batch, self.channels)
        if self.length is not None:
            return (batch, self.prefix_tokens + self.length, self.channels)
        self.input_rule.check(height, width)
        if self.kind == "vector":
            self._measured_grid(height, width)
            return (batch, self.channels)
        rows, columns = self.grid(height, width)
        if self.kind == "tokens":
            return (batch, self.prefix_tokens + rows * columns, self.channels)
        return (batch, self.channels, rows, columns)


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

    ``shape`` leaves out the batch, as (C, H, W), (L, D) or (D,); None where the node gives no such tensor.
    """

    name: str = attrs.field(validator=IsText())
    type: str = attrs.field(default="", validator=IsText(empty=True))
    shape: tuple[int, ...] | None = attrs.field(default=None, converter=as_pair, validator=_is_shape)


@attrs.frozen
class ModelInfo:
    """All that can be said of a model without its weights.

    ``input_size`` is the (height, width) that it was described at, ``features`` every level, index and head, each of
    which carries the model's ``input_rule``. ``deviations`` says, a sentence each, how the network computes otherwise
    than the one that its architecture or its weights are known from.
    """

    backend: str = attrs.field(validator=IsText())
    model: str = attrs.field(validator=IsText())
    input_size: Size = attrs.field(converter=as_pair, validator=IsSize())
    features: tuple[FeatureInfo, ...] = attrs.field(converter=as_tuple)
    preprocess: Preprocess
    input_rule: InputRule = attrs.field(factory=InputRule)
    capabilities: tuple[str, ...] = attrs.field(default=(), converter=as_names, validator=SomeOf(CAPABILITIES))
    deviations: tuple[str, ...] = attrs.field(default=(), converter=as_tuple, validator=AreTexts())

    def __attrs_post_init__(self) -> None:
        features = tuple(attrs.evolve(feature, input_rule=self.input_rule) for feature in self.features)
        object.__setattr__(self, "features", features)
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

        ``"block.N"`` is a block of a plain transformer, counted from 0. Raises LayerError with the nearest matches, or
        CapabilityError for a head that the model does not have.
        """
        layer = as_whole(layer)
        if isinstance(layer, int) and not isinstance(layer, bool):
            return self._by_index(layer)
        if self.is_block(layer):
            return self._blocks()[str(layer)]
        for field in ("level", "head", "name") if isinstance(layer, str) else ():
            for feature in self.features:
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
