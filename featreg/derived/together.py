"""Several recipes fitted on the same pass over the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np

from featreg.derived.blocks import Floats, sample_rows
from featreg.derived.fitted import FittedRecipe
from featreg.derived.fitting import Fitting
from featreg.derived.inputs import Shapes, gather
from featreg.errors import RequestError
from featreg.recipe import Recipe
from featreg.spec import FeatureInfo, Layer
from featreg.steps import PCA

__all__ = ["Rows", "Sweep", "check_enough", "fit_together"]

Integers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


@attrs.frozen(eq=False)
class Rows:
    """Some rows of the layers: their ascending numbers, (rows,), and their features, (rows, ...) by layer.

    ``infos`` describe the layers as they are in ``features``; those in ``pooled`` are pooled as recipes say.
    """

    numbers: Integers
    features: Mapping[Layer, Floats]
    infos: Mapping[Layer, FeatureInfo]
    pooled: frozenset[Layer] = frozenset()

    def of(self, recipe: Recipe, chosen: Integers | None) -> dict[Layer, Floats]:
        """The inputs of a recipe, of those rows that are among ``chosen``, or of all."""
        features: Mapping[Layer, Floats] = {layer: self.features[layer] for layer in recipe.inputs}
        if chosen is not None:
            places = np.searchsorted(chosen, self.numbers).clip(max=len(chosen) - 1)
            mask = chosen[places] == self.numbers
            features = {layer: values[mask] for layer, values in features.items()}
        return gather(recipe, features, self.infos, self.pooled)


Sweep: TypeAlias = Callable[[Integers | None], Iterable[Rows]]
"""Goes once through the rows of these ascending numbers, or through all, in their order."""


def fit_together(
    recipes: Sequence[Recipe], shapes: Mapping[str, Shapes], count: int, sweep: Sweep
) -> dict[str, FittedRecipe]:
    """The recipes fitted, by their names, in as many passes over the rows as the one that needs most.

    ``count`` is the number of rows there are, of which a recipe with a sample draws its own; ``shapes`` are those of
    its inputs after pooling, by its name. Memory is that of all fits together, see
    :func:`~featreg.derived.fitting.fit`, whose errors it raises; too few rows are said before the first pass.
    """
    check_enough(recipes, count)
    fittings = [Fitting(recipe, shapes[recipe.name]) for recipe in recipes]
    chosen = {
        recipe.name: None if recipe.sample is None else sample_rows(count, recipe.sample, recipe.seed)
        for recipe in recipes
    }
    while waiting := [fitting for fitting in fittings if not fitting.done]:
        for rows in sweep(_union([chosen[fitting.recipe.name] for fitting in waiting])):
            for fitting in waiting:
                fitting.update(rows.of(fitting.recipe, chosen[fitting.recipe.name]))
        for fitting in waiting:
            fitting.finish_pass()
    return {fitting.recipe.name: fitting.result() for fitting in fittings}


def check_enough(recipes: Sequence[Recipe], count: int) -> None:
    """Raise RequestError where ``count`` rows, or those that a recipe draws of them, are too few for its components."""
    for recipe in recipes:
        rows = count if recipe.sample is None else min(recipe.sample, count)
        for step in recipe.steps:
            least = max(2, step.components or 0) if isinstance(step, PCA) else 0
            if rows < least:
                raise RequestError(
                    f"{step} of {recipe.name!r} cannot be fitted",
                    f"at least {least} rows",
                    f"{rows} of {count} rows",
                    remedy="fewer components, more rows (fit=ROWS), or a fit of another store (fit_from, --fit-from)",
                )


def _union(samples: Sequence[Integers | None]) -> Integers | None:
    found: Integers | None = None
    for sample in samples:
        if sample is None:
            return None
        found = sample if found is None else np.union1d(found, sample)
    return found
