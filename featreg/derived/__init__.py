"""Derived layers: layers pooled, flattened and concatenated, then normalised, centred, reduced or projected.

:class:`~featreg.recipe.Recipe` says what, :func:`fit` learns what it needs from blocks of rows, and the
:class:`FittedRecipe` is applied to blocks of any store. Nothing here knows stores: rows are NumPy arrays of
(rows, ...). Principal components and sparse projections need the extra ``featreg[derive]``.
"""

from __future__ import annotations

from featreg.derived.arrays import derive_arrays, fit_arrays
from featreg.derived.blocks import row_slices, sample_rows
from featreg.derived.files import dump_fitted, load_fitted
from featreg.derived.fitted import FittedRecipe, output_width
from featreg.derived.fitting import fit, fit_bytes
from featreg.derived.inputs import Shapes, Taps, check_inputs, gather, input_shapes, plan_taps, width_of
from featreg.derived.together import Rows, Sweep, check_enough, fit_together
from featreg.recipe import Recipe

__all__ = [
    "FittedRecipe",
    "Recipe",
    "Rows",
    "Shapes",
    "Sweep",
    "Taps",
    "derive_arrays",
    "dump_fitted",
    "check_enough",
    "check_inputs",
    "fit",
    "fit_arrays",
    "fit_bytes",
    "fit_together",
    "gather",
    "input_shapes",
    "load_fitted",
    "output_width",
    "plan_taps",
    "row_slices",
    "sample_rows",
    "width_of",
]
