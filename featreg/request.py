"""What a caller asks for: :class:`ExtractionRequest`, frozen all the way down."""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Collection, Iterable, Mapping, Set
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeAlias

import attrs

from featreg.errors import LayerError, SpecError, near_matches
from featreg.fields import AtLeast, IsBool, IsText, OneOf, as_whole
from featreg.pool import Pool
from featreg.synthetic import synthetic_seed

__all__ = ["AreLayers", "ExtractionRequest", "Layer", "LayerPools", "as_layers", "as_pools", "thaw"]

Layer: TypeAlias = str | int
"""A canonical level, an index, a native name or a head."""

LayerPools: TypeAlias = tuple[tuple[Layer, Pool], ...]
"""The pooling of some layers, in the order of the layers."""


def as_layers(value: Any) -> Any:
    """One layer or several, in order; a set has none, and the letters of a bytes object are no layers."""
    if isinstance(value, str | numbers.Integral):
        return (as_whole(value),)
    if not isinstance(value, Iterable) or isinstance(value, Set | Mapping | bytes | bytearray):
        raise LayerError(
            "layers are given in order", "a layer, or a list of them", f"{value!r} ({type(value).__name__})"
        )
    return tuple(map(as_whole, value))


class AreLayers:
    """At least one layer, each one once."""

    schema: ClassVar[dict[str, Any]] = {
        "items": {"anyOf": [{"type": "string", "minLength": 1}, {"type": "integer"}]},
        "minItems": 1,
        "uniqueItems": True,
    }

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], layers: tuple[Any, ...]) -> None:
        if not layers:
            raise LayerError("no layer was asked for", "at least one level, index, native name or head")
        for layer in layers:
            if not isinstance(layer, str | int) or isinstance(layer, bool) or layer == "":
                raise LayerError(f"{layer!r} is not a layer", "a level, an index, a native name or a head")
        repeated = sorted({str(layer) for layer in layers if layers.count(layer) > 1})
        if repeated:
            raise LayerError(f"layers asked for more than once: {', '.join(repeated)}", remedy="name each layer once")


def _pool(value: Any) -> Pool:
    if isinstance(value, str):
        return Pool.parse(value)
    if not isinstance(value, Pool):
        raise SpecError(f"no pooling {value!r}", "a featreg.Pool, or its text, as in 'avg'", repr(value))
    return value


def _pools(value: Any) -> Any:
    """None, one pooling, or a pooling by layer; layers of a mapping that have none are left out."""
    if value is None or isinstance(value, str | Pool):
        return None if value is None else _pool(value)
    pairs: Any = value.items() if isinstance(value, Mapping) else value
    if not isinstance(pairs, Collection) or not all(
        isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs
    ):
        raise SpecError("pool is no pooling", "one for all layers, or a mapping of layers to them", repr(value))
    return tuple((as_whole(layer), _pool(pool)) for layer, pool in pairs if pool is not None) or None


def _flat(value: Any) -> Any:
    """True, False, or the layers that are flattened, each once; none of them is False."""
    return value if isinstance(value, bool) else as_layers(value) or False


class AreFlat:
    """A boolean, or at least one layer, each one once."""

    schema: ClassVar[dict[str, Any]] = {"anyOf": [{"type": "boolean"}, {"type": "array", **AreLayers.schema}]}

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, bool):
            AreLayers()(_, attribute, value)


def _path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _frozen_options(value: Any) -> Any:
    """The options as JSON would give them back, in the order of their names and immutable all the way down."""
    if not isinstance(value, Mapping):
        raise SpecError("options are no mapping", "names and JSON values", f"{type(value).__name__} {value!r}")
    try:
        return _freeze(json.loads(json.dumps(thaw(value), sort_keys=True, allow_nan=False)))
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError(
            f"options hold something that JSON cannot: {error}",
            "names and JSON values",
            f"{type(value).__name__} {value!r}",
        ) from error


def _freeze(value: Any) -> Any:
    if isinstance(value, dict):
        return MappingProxyType({key: _freeze(item) for key, item in value.items()})
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


def thaw(value: Any) -> Any:
    """Options, or a part of them, as plain dictionaries and lists; raises TypeError for a key that is no string."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"the keys {list(value)} are not all strings")
        return {key: thaw(item) for key, item in value.items()}
    return list(map(thaw, value)) if isinstance(value, list | tuple) else value


def _canonical(options: Mapping[str, Any]) -> str:
    return json.dumps(thaw(options), sort_keys=True)


@attrs.frozen
class ExtractionRequest:
    """What to extract, from which model, and how. Equal requests are equal, hash equal and survive JSON and pickling.

    ``weights`` None means random weights from a fixed seed; ``"default"`` or a tag the library's own;
    ``"synthetic:SEED"`` the same numbers for one architecture in every backend; else a path.
    ``array`` is ``"numpy"`` or ``"native"`` (the framework's own arrays, left on the device). ``pool`` is a
    :class:`~featreg.Pool` or its text, one for all layers or a mapping of layers to theirs; ``flatten`` then makes
    vectors, row-major, of all layers or of those that it lists. ``grad`` keeps the autograd graph and needs
    ``array="native"``. ``options`` are the backend's own.
    """

    model: str = attrs.field(validator=IsText())
    layers: tuple[Layer, ...] = attrs.field(converter=as_layers, validator=AreLayers())
    weights: str | None = attrs.field(default=None, converter=_path, validator=IsText(optional=True))
    pool: Pool | LayerPools | None = attrs.field(default=None, converter=_pools)
    flatten: bool | tuple[Layer, ...] = attrs.field(default=False, converter=_flat, validator=AreFlat())
    output_stride: int | None = attrs.field(default=None, converter=as_whole, validator=AtLeast(1, optional=True))
    device: str = attrs.field(default="cpu", validator=IsText())
    dtype: Literal["float32", "float16", "bfloat16"] = attrs.field(
        default="float32", validator=OneOf(("float32", "float16", "bfloat16"))
    )
    grad: bool = attrs.field(default=False, validator=IsBool())
    array: Literal["numpy", "native"] = attrs.field(default="numpy", validator=OneOf(("numpy", "native")))
    options: Mapping[str, Any] = attrs.field(factory=dict, converter=_frozen_options, eq=_canonical)

    def __attrs_post_init__(self) -> None:
        if self.grad and self.array != "native":
            raise SpecError(
                "grad=True needs array='native': NumPy arrays carry no gradient", got=f"array={self.array!r}"
            )
        synthetic_seed(self.weights)
        if isinstance(self.pool, tuple):
            object.__setattr__(self, "pool", _ordered(self.pool, self.layers))
        if isinstance(self.flatten, tuple):
            object.__setattr__(self, "flatten", _some_or_all(self.flatten, self.layers))

    @property
    def pools(self) -> dict[Layer, Pool]:
        """The pooling of every layer that has one, in the order of the layers."""
        return {} if self.pool is None else as_pools(self.pool, self.layers)

    @property
    def flattened(self) -> tuple[Layer, ...]:
        """The layers that are flattened, in the order of the layers."""
        if isinstance(self.flatten, bool):
            return self.layers if self.flatten else ()
        return self.flatten

    def __reduce__(self) -> tuple[Any, ...]:
        values = attrs.asdict(self, recurse=False, filter=lambda field, _: field.name != "options")
        return _rebuild, (values, thaw(self.options))


def _ordered(pools: LayerPools, layers: tuple[Layer, ...]) -> LayerPools:
    """The same poolings in the order of the layers, so that equal requests are equal."""
    asked = [layer for layer, _ in pools]
    for layer in asked:
        _check_asked(layer, layers, "a pooling for")
        if asked.count(layer) > 1:
            raise LayerError(f"two poolings for {layer!r}", "one for each layer")
    return tuple(sorted(pools, key=lambda pair: layers.index(pair[0])))


def _some_or_all(flatten: tuple[Layer, ...], layers: tuple[Layer, ...]) -> bool | tuple[Layer, ...]:
    """The layers to flatten in the order of the layers, True where they are all, so that equal requests are equal."""
    for layer in flatten:
        _check_asked(layer, layers, "to flatten")
    return len(flatten) == len(layers) or tuple(sorted(flatten, key=layers.index))


def _check_asked(layer: Any, layers: tuple[Layer, ...], what: str) -> None:
    if layer not in layers or isinstance(layer, bool):
        raise LayerError(
            f"{what} {layer!r}, which is not among the layers",
            f"some of {list(layers)}",
            repr(layer),
            near_matches(str(layer), map(str, layers)),
        )


def as_pools(value: Any, layers: tuple[Layer, ...]) -> dict[Layer, Pool]:
    """The pooling of every layer that has one, from one for all (or its text) or a mapping of layers to theirs.

    Raises SpecError for what is no pooling, and LayerError for a layer that is not among ``layers``.
    """
    if value is None:
        raise SpecError("no pooling None", "a featreg.Pool, its text, or a mapping of layers to them", "None")
    pools = _pools(value)
    return dict.fromkeys(layers, pools) if isinstance(pools, Pool) else dict(_ordered(pools or (), layers))


def _rebuild(values: dict[str, Any], options: dict[str, Any]) -> ExtractionRequest:
    return ExtractionRequest(**values, options=options)
