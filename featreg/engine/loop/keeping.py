"""From what a model gives, or a store holds, to what is stored of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from featreg.derived import FittedRecipe, Shapes, fit, gather, input_shapes
from featreg.pooling import flat_array
from featreg.recipe import Recipe
from featreg.spec import Layer
from featreg.stores.layout import InputRecord, LayerRecord, Pass

__all__ = ["Keeper", "shapes_of"]

Floats: TypeAlias = np.ndarray[Any, Any]


class Keeper:
    """Makes the rows of the layers of a pass, by its documents: as they were given, as vectors, or derived.

    ``fitted`` is what the derived layers have learnt, as :meth:`~featreg.stores.writer.StoreWriter.fitted` gives it.
    """

    def __init__(self, part: Pass, fitted: Mapping[str, FittedRecipe] | None = None) -> None:
        self._layers = part.layers
        self._infos = {given.key: given.info for given in part.inputs}
        self._pooled = frozenset(given.key for given in part.inputs if given.pooled)
        learnt = fitted or {}
        self._fitted = {
            layer.key: learnt[str(layer.key)] if layer.fit else _ready(layer.recipe, part)
            for layer in part.layers
            if layer.recipe is not None
        }

    def rows(self, features: Mapping[Layer, Floats]) -> Iterator[tuple[LayerRecord, Floats]]:
        """The layers of some rows, (rows, ...) each: derived ones in float64, NaN where anything was not finite."""
        for layer in self._layers:
            yield layer, self._kept(layer, features) if layer.recipe is None else self._derived(layer, features)

    def _kept(self, layer: LayerRecord, features: Mapping[Layer, Floats]) -> Floats:
        values = features[layer.key]
        return flat_array(values) if layer.info.kind == "vector" else values

    def _derived(self, layer: LayerRecord, features: Mapping[Layer, Floats]) -> Floats:
        fitted = self._fitted[layer.key]
        return fitted.apply(gather(fitted.recipe, features, self._infos, self._pooled))


def _ready(recipe: Recipe, part: Pass) -> FittedRecipe:
    """A recipe that has nothing to learn."""
    return fit(recipe, shapes_of(recipe, part.inputs))


def shapes_of(recipe: Recipe, given: Sequence[InputRecord]) -> Shapes:
    """The shapes of one row of each input, after pooling; raises LayerError for an input that there is not."""
    infos, shapes = {one.key: one.info for one in given}, {one.key: one.shape for one in given}
    return input_shapes(recipe, infos, shapes, {one.key for one in given if one.pooled})
