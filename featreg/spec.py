"""The specification as data: what a feature, a request, a preprocessing and a model are.

Everything here is frozen, hashable and free of any framework. ``specs/`` holds the prose and the JSON Schemas of the same
classes, :mod:`featreg.serialize` the JSON form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import attrs

from featreg.errors import InputError, LayerError, SpecError, near_matches

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
    "Preprocess",
]

SPEC_VERSION = "1.0"
"""The version of this specification, apart from the version of the package."""

Kind: TypeAlias = Literal["map", "tokens", "vector"]
Rounding: TypeAlias = Literal["ceil", "floor", "measured"]
Layer: TypeAlias = str | int
Size: TypeAlias = tuple[int, int]
"""(height, width) in pixels."""

LEVELS = tuple(f"C{k}" for k in range(8))
"""The canonical levels: level Ck lies at stride 2**k, as in feature pyramids (Lin et al. 2017, arXiv:1612.03144)."""

HEADS = ("features", "pooled", "logits", "tokens", "embedding", "text_embedding")
"""The heads: final unpooled features, the vector before the classifier, its output, the final tokens, CLIP's two towers."""

CAPABILITIES = ("native_names", "native_array", "grad", "output_stride", "weights", "float16", "bfloat16", "cuda", "text")
"""What a backend may declare beyond the minimum; asking for what is not declared raises CapabilityError."""


def _checked(value: Any, allowed: Sequence[Any], what: str) -> None:
    if value not in allowed:
        raise SpecError(f"{what} cannot be {value!r}", f"one of {', '.join(map(repr, allowed))}", repr(value))


def _one_of(*allowed: Any) -> Any:
    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        _checked(value, allowed, attribute.name)

    return check


def _at_least(least: int) -> Any:
    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise SpecError(f"{attribute.name} is out of range", f"a whole number of at least {least}", repr(value))

    return check


def _size(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, tuple) or len(value) != 2 or not all(type(side) is int and side > 0 for side in value):
        raise SpecError(f"{attribute.name} is not a size", "(height, width), two positive whole numbers", repr(value))


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@attrs.frozen
class MeasuredGrid:
    """The height and width of a feature map at one input size, measured because no closed form holds for it."""

    input_size: Size = attrs.field(converter=_pair, validator=_size)
    grid: Size = attrs.field(converter=_pair, validator=_size)


@attrs.frozen
class FeatureInfo:
    """One layer's output, described exactly.

    ``name`` is the library's own name of the node or module. ``reduction`` is the stride in pixels (None for vectors).
    ``rounding`` says how an input side becomes a grid side: ``ceil(side / reduction)``, ``floor(side / reduction)``, or
    ``measured`` at the sizes listed in ``measured``, where neither form holds. ``prefix_tokens`` counts the class,
    distillation and register tokens at the front of ``tokens``; maps never contain them.
    """

    name: str
    channels: int = attrs.field(validator=_at_least(1))
    reduction: int | None = attrs.field(validator=_at_least(1))
    kind: Kind = attrs.field(validator=_one_of("map", "tokens", "vector"))
    level: str | None = attrs.field(default=None, validator=_one_of(None, *LEVELS))
    index: int | None = attrs.field(default=None, validator=_at_least(0))
    head: str | None = attrs.field(default=None, validator=_one_of(None, *HEADS))
    prefix_tokens: int = attrs.field(default=0, validator=_at_least(0))
    rounding: Rounding = attrs.field(default="ceil", validator=_one_of("ceil", "floor", "measured"))
    measured: tuple[MeasuredGrid, ...] = attrs.field(default=(), converter=tuple)

    def __attrs_post_init__(self) -> None:
        if (self.reduction is None) != (self.kind == "vector"):
            raise SpecError(
                f"feature {self.name!r} of kind {self.kind!r} has reduction {self.reduction}",
                "a reduction for maps and tokens, none for vectors",
            )
        if self.prefix_tokens and self.kind != "tokens":
            raise SpecError(f"feature {self.name!r} of kind {self.kind!r} cannot hold prefix tokens")

    def grid(self, height: int, width: int) -> Size:
        """The height and width of the feature map (for tokens: of the patch grid) for one input size.

        Raises InputError where the map would be empty, or where the grid is ``measured`` and not at this size.
        """
        if self.reduction is None:
            raise SpecError(f"feature {self.name!r} is a vector and has no grid")
        if self.rounding == "measured":
            for entry in self.measured:
                if entry.input_size == (height, width):
                    return entry.grid
            raise InputError(
                f"the grid of {self.name!r} follows no formula and was not measured at {height}x{width}",
                f"one of {[entry.input_size for entry in self.measured]}",
                f"{height}x{width}",
                remedy="describe the model at this input size",
            )
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

    def shape(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        """The exact output shape for ``batch`` images: (N, C, H, W), (N, L, D) or (N, D); raises as :meth:`grid`."""
        if self.kind == "vector":
            return (batch, self.channels)
        rows, columns = self.grid(height, width)
        if self.kind == "tokens":
            return (batch, self.prefix_tokens + rows * columns, self.channels)
        return (batch, self.channels, rows, columns)


@attrs.frozen
class InputRule:
    """The image sizes that a model takes: one fixed size, or any at least ``minimum`` and a multiple of ``multiple_of``."""

    fixed: Size | None = attrs.field(default=None, converter=_pair, validator=_size)
    multiple_of: int = attrs.field(default=1, validator=_at_least(1))
    minimum: Size = attrs.field(default=(1, 1), converter=_pair, validator=_size)
    channels: int = attrs.field(default=3, validator=_at_least(1))

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


Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
ResizeMode: TypeAlias = Literal["shortest", "longest", "exact"]
Triple: TypeAlias = tuple[float, float, float]


@attrs.frozen
class Preprocess:
    """How an RGB image becomes the model's input, as data.

    The image is resized (``shortest``: the shorter side becomes ``resize[0]``; ``longest``: the image fits into
    ``resize``; ``exact``: both sides are set), cropped around the centre to ``crop``, padded with ``fill`` where it is
    smaller, scaled to [0, 1], and normalised by ``mean`` and ``std`` in the order of ``color``. All sizes are (height,
    width). The steps up to the crop run on the CPU in uint8, the rest on the device.
    """

    resize: Size | None = attrs.field(converter=_pair, validator=_size)
    crop: Size | None = attrs.field(converter=_pair, validator=_size)
    mean: Triple = attrs.field(converter=tuple)
    std: Triple = attrs.field(converter=tuple)
    resize_mode: ResizeMode = attrs.field(default="shortest", validator=_one_of("shortest", "longest", "exact"))
    interpolation: Interpolation = attrs.field(
        default="bilinear", validator=_one_of("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
    )
    fill: int = attrs.field(default=0, validator=_at_least(0))
    color: Literal["RGB", "BGR"] = attrs.field(default="RGB", validator=_one_of("RGB", "BGR"))

    def __attrs_post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise SpecError("mean and std are three numbers each, std above 0", got=f"{self.mean}, {self.std}")


@attrs.frozen
class ModelInfo:
    """All that can be said of a model without its weights.

    ``input_size`` is the (height, width) that it was described at, ``features`` every level, index and head.
    """

    backend: str
    model: str
    input_size: Size = attrs.field(converter=_pair, validator=_size)
    features: tuple[FeatureInfo, ...] = attrs.field(converter=tuple)
    preprocess: Preprocess
    input_rule: InputRule = attrs.field(factory=InputRule)
    capabilities: tuple[str, ...] = attrs.field(default=(), converter=lambda names: tuple(sorted(names)))

    def __attrs_post_init__(self) -> None:
        for name in self.capabilities:
            _checked(name, CAPABILITIES, "a capability")
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
        """The feature that a level, head, index (negatives from the end) or declared native name stands for.

        Raises LayerError with the nearest matches.
        """
        if isinstance(layer, int) and not isinstance(layer, bool):
            return self._by_index(layer)
        for field in ("level", "head", "name"):
            for feature in self.features:
                if getattr(feature, field) == layer:
                    return feature
        names = [*self.keys, *(feature.name for feature in self.features)]
        raise LayerError(
            f"{self.id} has no layer {layer!r}",
            f"one of {', '.join(self.keys)}, an index, or a native name",
            matches=near_matches(str(layer), names),
            remedy=f"featreg describe {self.id} lists them all",
        )

    def _by_index(self, index: int) -> FeatureInfo:
        indexed = {feature.index: feature for feature in self.features if feature.index is not None}
        position = index + len(indexed) if index < 0 else index
        if position in indexed:
            return indexed[position]
        raise LayerError(
            f"{self.id} has no index {index}",
            f"from {-len(indexed)} to {len(indexed) - 1}" if indexed else "no index: the model declares none",
            str(index),
            remedy=f"featreg describe {self.id} lists them all",
        )


def _layers(value: Any) -> Any:
    return (value,) if isinstance(value, str | int) else tuple(value)


def _frozen_options(value: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        text = json.dumps(dict(value), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SpecError("options hold something that JSON cannot", "a mapping of JSON values", repr(value)) from error
    return MappingProxyType(json.loads(text))


def _canonical(options: Mapping[str, Any]) -> str:
    return json.dumps(dict(options), sort_keys=True)


@attrs.frozen
class ExtractionRequest:
    """What to extract, from which model, and how. Equal requests are equal, hash equal and survive JSON and pickling.

    ``weights`` None means random weights from a fixed seed; ``"default"`` or a tag the library's own; else a path.
    ``array`` is ``"numpy"`` or ``"native"`` (the framework's own arrays, left on the device). ``pool`` turns maps and
    tokens into vectors: ``"avg"`` and ``"max"`` over the positions (prefix tokens left out), ``"cls"`` the first prefix
    token. ``grad`` keeps the autograd graph and needs ``array="native"``. ``options`` are the backend's own.
    """

    model: str
    layers: tuple[Layer, ...] = attrs.field(converter=_layers)
    weights: str | None = None
    pool: Literal["avg", "max", "cls"] | None = attrs.field(default=None, validator=_one_of(None, "avg", "max", "cls"))
    output_stride: int | None = attrs.field(default=None, validator=_at_least(1))
    device: str = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = attrs.field(
        default="float32", validator=_one_of("float32", "float16", "bfloat16")
    )
    grad: bool = False
    array: Literal["numpy", "native"] = attrs.field(default="numpy", validator=_one_of("numpy", "native"))
    options: Mapping[str, Any] = attrs.field(factory=dict, converter=_frozen_options, eq=_canonical)

    def __attrs_post_init__(self) -> None:
        if not self.layers:
            raise LayerError("no layer was asked for", "at least one level, index, native name or head")
        for layer in self.layers:
            if not isinstance(layer, str | int) or isinstance(layer, bool) or layer == "":
                raise LayerError(f"{layer!r} is not a layer", "a level, an index, a native name or a head")
        repeated = sorted({str(layer) for layer in self.layers if self.layers.count(layer) > 1})
        if repeated:
            raise LayerError(f"layers asked for more than once: {', '.join(repeated)}", remedy="name each layer once")
        if self.grad and self.array != "native":
            raise SpecError("grad=True needs array='native': NumPy arrays carry no gradient", got=f"array={self.array!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        values = attrs.asdict(self, recurse=False, filter=lambda field, _: field.name != "options")
        return _rebuild, (values, dict(self.options))


def _rebuild(values: dict[str, Any], options: dict[str, Any]) -> ExtractionRequest:
    return ExtractionRequest(**values, options=options)
