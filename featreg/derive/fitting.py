"""Fitting a recipe: as many passes over the rows as it has steps that learn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

import attrs
import numpy as np

from featreg.derive.blocks import Floats, row_slices
from featreg.derive.components import components_bytes, components_fit
from featreg.derive.fitted import Center, Doubles, FittedRecipe, FittedStep, apply_steps, steps_width
from featreg.derive.inputs import Shapes, check_parts, join, width_of
from featreg.derive.moments import Mean
from featreg.errors import RequestError
from featreg.recipe import Recipe
from featreg.request import Layer
from featreg.steps import PCA, Centering, RandomProjection, Step

__all__ = ["Blocks", "fit", "fit_bytes"]

Blocks: TypeAlias = Callable[[], Iterable[Mapping[Layer, Floats]]]
"""Gives the rows that a recipe is fitted on, anew in every call: blocks of its pooled inputs, (rows, ...) each."""


def fit(recipe: Recipe, shapes: Shapes, blocks: Blocks = tuple) -> FittedRecipe:
    """The recipe with what its steps learn from the rows of the blocks, in ``recipe.passes`` passes over them.

    ``shapes`` are those of one row of each input, after pooling. Where ``recipe.passes`` is 0, no blocks are needed.
    Sums are taken in float64, whatever the inputs are. A row with anything but finite values, as that of an image that
    failed, is left out. Held in memory are one block and what is learnt: for PCA of d columns d * d numbers up to
    :data:`~featreg.derive.components.MAX_EXACT` columns, two batches of rows beyond.

    Raises RequestError for inputs of other shapes, and where there are fewer rows or columns than a step needs.
    """
    rows = _FiniteRows(recipe, shapes, blocks)
    for stage in recipe.stages:
        rows.steps += _learn(stage, rows, steps_width(rows.steps, width_of(shapes)))
    fitted = FittedRecipe(recipe, shapes, rows.steps, rows.count)
    steps_width(fitted.steps, width_of(shapes))  # raises for a projection that does not fit
    return fitted


def fit_bytes(recipe: Recipe, width: int) -> int:
    """About what a fit holds in memory at most for so many joined columns, besides a block; 0 without PCA."""
    most = 0
    for step in recipe.steps:
        if isinstance(step, PCA):
            most = max(most, components_bytes(step, width))
        if isinstance(step, PCA | RandomProjection):
            width = step.components or width
    return most


class _FiniteRows:
    """The rows to fit on, after the steps that are fitted already; ``count`` is that of the last pass."""

    def __init__(self, recipe: Recipe, shapes: Shapes, blocks: Blocks) -> None:
        self.steps: tuple[FittedStep, ...] = ()
        self.count = 0
        self._recipe, self._shapes, self._blocks = recipe, shapes, blocks

    def __iter__(self) -> Iterator[Doubles]:
        self.count = 0
        for inputs in self._blocks():
            parts = [np.asarray(inputs[layer]) for layer in self._recipe.inputs]
            check_parts(self._recipe, parts, self._shapes)
            for part in row_slices(len(parts[0]), width_of(self._shapes)):
                rows = join(parts, part)
                rows = rows[np.isfinite(rows).all(axis=1)]
                self.count += len(rows)
                if len(rows):
                    yield apply_steps(self.steps, rows)


def _learn(stage: tuple[Step, ...], rows: _FiniteRows, width: int) -> tuple[FittedStep, ...]:
    """What the steps of one stage are after one pass, or after none where there is nothing to learn."""
    *before, step = stage
    if isinstance(step, Centering):
        return (_center(rows, width),)
    if not isinstance(step, PCA):
        return (step,)
    fitting = components_fit(step, width)
    for block in rows:
        fitting.update(block)
    found = fitting.finish()
    return (Center(found.mean), attrs.evolve(found, mean=np.zeros(width))) if before else (found,)


def _center(rows: _FiniteRows, width: int) -> Center:
    mean = Mean(width)
    for block in rows:
        mean.update(block)
    if not mean.count:
        raise RequestError("there is nothing to take the mean of", "at least 1 row with finite values", "0")
    return Center(mean.mean)
