"""Fitting a recipe: as many passes over the rows as it has steps that learn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import attrs
import numpy as np

from featreg.derived.blocks import Floats, row_slices
from featreg.derived.components import Components, ExactFit, IncrementalFit, components_bytes, components_fit
from featreg.derived.fitted import Center, Doubles, FittedRecipe, FittedStep, apply_steps, steps_width
from featreg.derived.inputs import Shapes, check_parts, join, width_of
from featreg.derived.moments import Mean
from featreg.errors import RequestError
from featreg.recipe import Recipe
from featreg.request import Layer
from featreg.steps import PCA, L2Norm, RandomProjection

__all__ = ["Blocks", "Fitting", "fit", "fit_bytes"]

Blocks: TypeAlias = Callable[[], Iterable[Mapping[Layer, Floats]]]
"""Gives the rows that a recipe is fitted on, anew in every call: blocks of its pooled inputs, (rows, ...) each."""


class Fitting:
    """A recipe while it learns, in ``recipe.passes`` passes over the rows.

    :meth:`update` takes the blocks of a pass, :meth:`finish_pass` ends it; once it is ``done``, :meth:`result` is the
    fitted recipe. ``shapes`` are those of one row of each input, after pooling. Methods raise as :func:`fit` does.
    """

    def __init__(self, recipe: Recipe, shapes: Shapes) -> None:
        self.recipe = recipe
        self._shapes = shapes
        self._stages = list(recipe.stages)
        self._steps: tuple[FittedStep, ...] = ()
        self._count = 0
        self._learner = self._next_learner()

    @property
    def done(self) -> bool:
        """Whether nothing is left to learn."""
        return self._learner is None

    def update(self, inputs: Mapping[Layer, Floats]) -> None:
        """Take the next rows of a pass in: pooled inputs, (rows, ...) each, which stay as they are."""
        assert self._learner is not None
        parts = [np.asarray(inputs[layer]) for layer in self.recipe.inputs]
        check_parts(self.recipe, parts, self._shapes)
        for part in row_slices(len(parts[0]), width_of(self._shapes)):
            rows = join(parts, part)
            rows = rows[np.isfinite(rows).all(axis=1)]
            self._count += len(rows)
            if len(rows):
                self._learner.update(apply_steps(self._steps, rows))

    def finish_pass(self) -> None:
        """All rows were seen: what was to be learnt from them is, and the next pass may begin."""
        assert self._learner is not None
        found = self._learner.finish()
        if len(self._stages.pop(0)) == 1:
            self._steps += (found,)
        else:  # a centring, which the components bring along
            assert isinstance(found, Components)
            self._steps += (Center(found.mean), attrs.evolve(found, mean=np.zeros_like(found.mean)))
        self._learner = self._next_learner()

    def result(self) -> FittedRecipe:
        """The fitted recipe."""
        steps_width(self._steps, width_of(self._shapes))  # raises for a projection that does not fit
        return FittedRecipe(self.recipe, self._shapes, self._steps, self._count)

    def _next_learner(self) -> Learner | None:
        """What learns the next step that has to; those before it need nothing."""
        while self._stages and not self._stages[0][-1].fitted:
            step = self._stages.pop(0)[0]
            assert isinstance(step, L2Norm | RandomProjection)
            self._steps += (step,)
        if not self._stages:
            return None
        self._count = 0
        step, width = self._stages[0][-1], steps_width(self._steps, width_of(self._shapes))
        return components_fit(step, width) if isinstance(step, PCA) else _CenterFit(width)


def fit(recipe: Recipe, shapes: Shapes, blocks: Blocks = tuple) -> FittedRecipe:
    """The recipe with what its steps learn from the rows of the blocks, in ``recipe.passes`` passes over them.

    ``shapes`` are those of one row of each input, after pooling. Where ``recipe.passes`` is 0, no blocks are needed.
    Sums are taken in float64, whatever the inputs are. A row with anything but finite values, as that of an image that
    failed, is left out. Held in memory are one block and what is learnt: for PCA of d columns d * d numbers up to
    :data:`~featreg.derived.components.MAX_EXACT` columns, two batches of rows beyond.

    Raises RequestError for inputs of other shapes, and where there are fewer rows or columns than a step needs.
    """
    fitting = Fitting(recipe, shapes)
    while not fitting.done:
        for inputs in blocks():
            fitting.update(inputs)
        fitting.finish_pass()
    return fitting.result()


def fit_bytes(recipe: Recipe, width: int) -> int:
    """About what a fit holds in memory at most for so many joined columns, besides a block; 0 without PCA."""
    most = 0
    for step in recipe.steps:
        if isinstance(step, PCA):
            most = max(most, components_bytes(step, width))
        if isinstance(step, PCA | RandomProjection):
            width = step.components or width
    return most


class _CenterFit:
    """The mean of all rows that were seen."""

    def __init__(self, width: int) -> None:
        self._mean = Mean(width)

    def update(self, rows: Doubles) -> None:
        self._mean.update(rows)

    def finish(self) -> Center:
        """The centring, once; raises RequestError where no row was seen."""
        if not self._mean.count:
            raise RequestError("there is nothing to take the mean of", "at least 1 row with finite values", "0")
        return Center(self._mean.mean)


Learner: TypeAlias = ExactFit | IncrementalFit | _CenterFit
