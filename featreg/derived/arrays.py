"""Recipes on arrays that are there already, such as the layers of a finished store, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from featreg.derived.blocks import Floats, row_slices, sample_rows
from featreg.derived.fitted import Doubles, FittedRecipe
from featreg.derived.fitting import fit
from featreg.derived.inputs import gather, input_shapes
from featreg.errors import RequestError
from featreg.recipe import Recipe
from featreg.spec import FeatureInfo, Layer

__all__ = ["Rows", "derive_arrays", "fit_arrays"]


class Rows(Protocol):
    """An array, in memory or not, of (rows, ...): of NumPy, Zarr or h5py, or a layer of a store."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, ...)."""

    def __getitem__(self, rows: Any, /) -> Any: ...


def fit_arrays(recipe: Recipe, arrays: Mapping[Layer, Rows], infos: Mapping[Layer, FeatureInfo]) -> FittedRecipe:
    """The recipe fitted on rows of arrays: on all, or on those that ``sample`` and ``seed`` draw.

    ``infos`` describe the layers as they are in ``arrays``, of which some rows are read at a time. Raises LayerError
    for an input that is not there, RequestError for arrays of different lengths, and as
    :func:`~featreg.derived.fitting.fit` does.
    """
    shapes = input_shapes(recipe, infos, {layer: tuple(array.shape[1:]) for layer, array in arrays.items()})
    count = _count(recipe, arrays)
    chosen = None if recipe.sample is None else sample_rows(count, recipe.sample, recipe.seed)

    def blocks() -> Iterator[Mapping[Layer, Floats]]:
        for part in row_slices(count if chosen is None else len(chosen), _width(recipe, arrays)):
            yield gather(recipe, _read(recipe, arrays, part if chosen is None else chosen[part]), infos)

    return fit(recipe, shapes, blocks)


def derive_arrays(
    fitted: FittedRecipe, arrays: Mapping[Layer, Rows], infos: Mapping[Layer, FeatureInfo]
) -> Iterator[tuple[slice, Doubles]]:
    """The derived rows of arrays, a block at a time with its place, (rows, width) in float64.

    Raises as :func:`fit_arrays` does, and RequestError for inputs of other shapes than it was fitted on.
    """
    recipe = fitted.recipe
    input_shapes(recipe, infos, {layer: tuple(array.shape[1:]) for layer, array in arrays.items()})
    for part in row_slices(_count(recipe, arrays), _width(recipe, arrays)):
        yield part, fitted.apply(gather(recipe, _read(recipe, arrays, part), infos))


def _read(recipe: Recipe, arrays: Mapping[Layer, Rows], rows: Any) -> dict[Layer, Floats]:
    return {layer: np.asarray(arrays[layer][rows]) for layer in recipe.inputs}


def _width(recipe: Recipe, arrays: Mapping[Layer, Rows]) -> int:
    return sum(int(np.prod(arrays[layer].shape[1:])) for layer in recipe.inputs)


def _count(recipe: Recipe, arrays: Mapping[Layer, Rows]) -> int:
    counts = [arrays[layer].shape[0] for layer in recipe.inputs]
    if len(set(counts)) != 1:
        raise RequestError(f"the inputs of {recipe.name!r} do not line up", "as many rows each", str(counts))
    return counts[0]
