"""A recipe that has learnt what it needs: :class:`FittedRecipe`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import attrs
import numpy as np

from featreg.derived.blocks import Floats, row_slices
from featreg.derived.components import Components
from featreg.derived.inputs import Shapes, check_parts, join, width_of
from featreg.derived.projection import check_projection, project
from featreg.errors import RequestError
from featreg.recipe import Recipe
from featreg.request import Layer
from featreg.steps import Centering, L2Norm, RandomProjection

__all__ = ["Center", "FittedRecipe", "FittedStep", "apply_steps", "output_width", "steps_width"]

Doubles: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


@attrs.frozen(eq=False)
class Center:
    """A mean to be subtracted, (columns,)."""

    mean: Doubles

    def apply(self, rows: Doubles) -> Doubles:
        rows -= self.mean
        return rows


FittedStep: TypeAlias = L2Norm | RandomProjection | Center | Components
"""A step that can be applied: one that needs no fit as it is, or what a fit has found."""


@attrs.frozen(eq=False)
class FittedRecipe:
    """A recipe with what its steps have learnt, ready for the rows of any store with the same inputs.

    ``shapes`` are those of one row of each input, after pooling; ``rows`` is the number of rows that it was fitted on,
    0 where nothing had to be.
    """

    recipe: Recipe
    shapes: Shapes
    steps: tuple[FittedStep, ...]
    rows: int

    @property
    def width(self) -> int:
        """The columns of the result."""
        return steps_width(self.steps, width_of(self.shapes))

    def apply(self, inputs: Mapping[Layer, Floats]) -> Doubles:
        """The derived rows, (rows, width) in float64, of the pooled inputs, (rows, ...) each, which stay as they are.

        A row with anything but finite values in its inputs comes out as NaN, and changes no other row by a bit.
        Raises RequestError for inputs of other shapes.
        """
        parts = [np.asarray(inputs[layer]) for layer in self.recipe.inputs]
        check_parts(self.recipe, parts, self.shapes)
        derived = np.empty((len(parts[0]), self.width))
        for rows in row_slices(len(derived), width_of(self.shapes)):
            block = join(parts, rows)
            failed = ~np.isfinite(block).all(axis=1)
            block[failed] = 0  # kept in place: a product of fewer rows may be rounded otherwise
            derived[rows] = apply_steps(self.steps, block)
            derived[rows][failed] = np.nan
        return derived


def apply_steps(steps: tuple[FittedStep, ...], rows: Doubles) -> Doubles:
    """Finite rows through steps, one after the other; the block is used up."""
    for step in steps:
        rows = _apply(step, rows)
    return rows


def _apply(step: FittedStep, rows: Doubles) -> Doubles:
    if isinstance(step, L2Norm):
        return _normalized(rows)
    return project(rows, step) if isinstance(step, RandomProjection) else step.apply(rows)


def _normalized(rows: Doubles) -> Doubles:
    """Rows of length 1; each is divided by its largest value first, so that no square overflows or vanishes."""
    _divide(rows, np.abs(rows).max(axis=1, initial=0))
    _divide(rows, np.linalg.norm(rows, axis=1))
    return rows


def _divide(rows: Doubles, lengths: Doubles) -> None:
    """In place; a row of zeros stays as it is."""
    rows /= np.where(lengths > 0, lengths, 1)[:, None]


def steps_width(steps: tuple[FittedStep, ...], width: int) -> int:
    """The columns that steps make of so many; raises RequestError for a projection to more than there are."""
    for step in steps:
        if isinstance(step, RandomProjection):
            check_projection(step, width)
            width = step.components
        elif isinstance(step, Components):
            width = step.width
    return width


def output_width(recipe: Recipe, width: int) -> int | None:
    """The columns of the result for so many joined ones, known before the fit; None where a share decides.

    Raises RequestError for more components than there are columns.
    """
    found: int | None = width
    for step in recipe.steps:
        if isinstance(step, L2Norm | Centering):
            continue
        if found is not None and step.components is not None and step.components > found:
            raise RequestError(f"{step} of {found} columns", f"at most {found} components", str(step.components))
        found = step.components
    return found
