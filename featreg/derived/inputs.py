"""From the layers of a recipe to rows: which layers the model must give, how they are pooled, and joined."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

import attrs
import numpy as np

from featreg.derived.blocks import Floats
from featreg.errors import LayerError, RequestError, near_matches
from featreg.pool import Pool
from featreg.pooling import pool_array, pooled_info
from featreg.recipe import Recipe
from featreg.spec import ExtractionRequest, FeatureInfo, Layer

__all__ = ["Shapes", "Taps", "check_inputs", "gather", "input_shapes", "join", "plan_taps", "width_of"]

Shapes: TypeAlias = tuple[tuple[int, ...], ...]
"""The shape of one row of each input of a recipe, after pooling."""


@attrs.frozen
class Taps:
    """What a model must give for a request with recipes.

    ``request`` has the layers that are kept, then those that only recipes take; ``pooled`` are those of the latter that
    it pools already, on the device, as the recipes say; :func:`gather` takes them as they are. Where there are recipes
    ``request.flatten`` is off, so that they can pool: whoever keeps a layer flattens it. ``kept`` are the layers that
    are kept, in their order.
    """

    request: ExtractionRequest
    pooled: frozenset[Layer]
    kept: tuple[Layer, ...]


def plan_taps(request: ExtractionRequest, recipes: Sequence[Recipe], kept: Collection[Layer] | None = None) -> Taps:
    """The request that gives the inputs of all recipes too.

    ``kept`` are the layers of the request that are kept, all where it is None. A layer that is kept goes into recipes
    as the request gives it, and so does one that the request pools; any other as the model gives it. Raises LayerError
    where a recipe has the name of another or of a layer that is kept.
    """
    stay = tuple(layer for layer in request.layers if kept is None or layer in kept)
    if not recipes:
        return Taps(request, frozenset(), stay)
    _check_names(stay, recipes)
    given = {*stay, *request.pools}
    wanted: dict[Layer, set[Pool | None]] = {}
    for recipe in recipes:
        for layer in recipe.inputs:
            if layer not in stay:
                pool = None if layer in given else recipe.pools.get(layer)
                wanted.setdefault(layer, set()).add(pool)
    agreed = {layer: pool for layer, pools in wanted.items() if len(pools) == 1 and (pool := next(iter(pools)))}
    pools = {layer: pool for layer, pool in request.pools.items() if layer in stay or layer in wanted}
    tapped = attrs.evolve(request, layers=(*stay, *wanted), pool={**pools, **agreed} or None, flatten=False)
    return Taps(tapped, frozenset(agreed), stay)


def _check_names(kept: Sequence[Layer], recipes: Sequence[Recipe]) -> None:
    taken = [*map(str, kept), *(recipe.name for recipe in recipes)]
    repeated = sorted({recipe.name for recipe in recipes if taken.count(recipe.name) > 1})
    if repeated:
        raise LayerError(
            f"more than one layer of the name {', '.join(repeated)}", remedy="name the recipe, as in NAME=C5:pca=64"
        )


def gather(
    recipe: Recipe,
    features: Mapping[Layer, Floats],
    infos: Mapping[Layer, FeatureInfo],
    pooled: Collection[Layer] = (),
) -> dict[Layer, Floats]:
    """The inputs of a recipe, (rows, ...) each, pooled as it says but for those in ``pooled``, which are already.

    ``infos`` describe the layers as they are in ``features``. Raises LayerError for a layer that is not there,
    CapabilityError and InputError for one that cannot be pooled so.
    """
    check_inputs(recipe, features)
    pools = {layer: pool for layer, pool in recipe.pools.items() if layer not in pooled}
    return {
        layer: pool_array(features[layer], infos[layer], pools[layer]) if layer in pools else features[layer]
        for layer in recipe.inputs
    }


def input_shapes(
    recipe: Recipe,
    infos: Mapping[Layer, FeatureInfo],
    shapes: Mapping[Layer, tuple[int, ...]],
    pooled: Collection[Layer] = (),
) -> Shapes:
    """The shapes that :func:`gather` gives, told before a row is there; ``shapes`` are those of one row of each layer.

    Raises as :func:`gather` does.
    """
    check_inputs(recipe, shapes)
    found = []
    for layer in recipe.inputs:
        pool = None if layer in pooled else recipe.pools.get(layer)
        found.append(shapes[layer] if pool is None else _pooled_shape(infos[layer], pool, shapes[layer]))
    return tuple(found)


def _pooled_shape(info: FeatureInfo, pool: Pool, shape: tuple[int, ...]) -> tuple[int, ...]:
    if info.kind == "vector" or pool.kind == "identity":
        return shape if pooled_info(info, pool) else ()
    if pool.is_grid:
        pooled_info(info, pool)  # raises for what is no map
        return (shape[0], *pool.grid(shape[1], shape[2]))
    return (pooled_info(info, pool).channels,)


def check_inputs(recipe: Recipe, layers: Collection[Layer], lacking: str = "which is not there") -> None:
    """Raise LayerError for an input that is none of the layers; ``lacking`` says so in the message."""
    for layer in recipe.inputs:
        if layer not in layers:
            raise LayerError(
                f"the recipe {recipe.name!r} takes {layer!r}, {lacking}",
                f"some of {list(layers)}",
                repr(layer),
                near_matches(str(layer), map(str, layers)),
            )


def width_of(shapes: Shapes) -> int:
    """The columns of the joined inputs."""
    return sum(map(math.prod, shapes))


def check_parts(recipe: Recipe, parts: Sequence[Floats], shapes: Shapes) -> None:
    """Raise RequestError unless the inputs have the shapes that the recipe was fitted on, and as many rows each."""
    found = tuple(part.shape[1:] for part in parts)
    if found != shapes or len({len(part) for part in parts}) != 1:
        raise RequestError(
            f"the inputs of the recipe {recipe.name!r} have other shapes",
            ", ".join(f"{layer}: (rows, {str(shape)[1:]}" for layer, shape in zip(recipe.inputs, shapes, strict=True)),
            ", ".join(str(part.shape) for part in parts),
        )


def join(parts: Sequence[Floats], rows: slice) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Some rows of the inputs, flattened row-major and side by side, as float64 of their own."""
    flat = [part[rows].reshape(len(part[rows]), -1) for part in parts]
    return np.concatenate(flat, axis=1, dtype=np.float64, casting="unsafe")
