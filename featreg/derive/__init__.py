"""Derived layers: layers pooled, flattened and concatenated, then normalised, centred, reduced or projected.

:class:`~featreg.recipe.Recipe` says what, :func:`fit` learns what it needs from blocks of rows, and the
:class:`FittedRecipe` is applied to blocks of any store. Nothing here knows stores: rows are NumPy arrays of
(rows, ...). Principal components and sparse projections need the extra ``featreg[derive]``.
"""

from __future__ import annotations

from featreg.derive.arrays import derive_arrays, fit_arrays
from featreg.derive.blocks import sample_rows
from featreg.derive.files import dump_fitted, load_fitted
from featreg.derive.fitted import FittedRecipe, output_width
from featreg.derive.fitting import fit, fit_bytes
from featreg.derive.inputs import Taps, gather, input_shapes, plan_taps, width_of
from featreg.recipe import Recipe

__all__ = [
    "FittedRecipe",
    "Recipe",
    "Taps",
    "derive_arrays",
    "dump_fitted",
    "fit",
    "fit_arrays",
    "fit_bytes",
    "gather",
    "input_shapes",
    "load_fitted",
    "output_width",
    "plan_taps",
    "sample_rows",
    "width_of",
]
