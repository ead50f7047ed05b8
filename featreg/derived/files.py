"""A fitted recipe as the bytes of one file.

The file is an ``.npz`` of NumPy without pickles: ``recipe`` is JSON text in UTF-8 (the recipe, the shapes of its
inputs, the number of fitted rows), ``0.mean``, ``1.components`` and so on are what its steps have learnt, by the place
of the step. Equal fits are equal bytes, so that the SHA-256 of the file names the fit.
"""

from __future__ import annotations

import io
import json
from typing import Any

import attrs
import numpy as np

from featreg import serialize
from featreg.derived.components import Components
from featreg.derived.fitted import Center, FittedRecipe, FittedStep, steps_width
from featreg.derived.inputs import Shapes, width_of
from featreg.errors import SpecError, StoreError
from featreg.recipe import Recipe
from featreg.steps import PCA, Centering, Step

__all__ = ["dump_fitted", "load_fitted"]

FORMAT = 1


@attrs.frozen
class _Head:
    """What is in the file besides arrays."""

    format: int
    recipe: Recipe
    shapes: Shapes
    rows: int


def dump_fitted(fitted: FittedRecipe) -> bytes:
    """The bytes of a fitted recipe."""
    head = json.dumps(serialize.to_dict(_Head(FORMAT, fitted.recipe, fitted.shapes, fitted.rows)))
    arrays: dict[str, Any] = {"recipe": np.frombuffer(head.encode(), np.uint8)}
    for place, step in enumerate(fitted.steps):
        arrays |= {f"{place}.{name}": value for name, value in _learnt(step).items()}
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def load_fitted(data: bytes) -> FittedRecipe:
    """The fitted recipe in the bytes of a file; raises StoreError for anything but what :func:`dump_fitted` gave."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = dict(file)
        head = serialize.loads(_Head, arrays.pop("recipe").tobytes())
        return _rebuilt(head, arrays)
    except Exception as error:  # zipfile and NumPy raise whatever the damaged place makes them
        raise StoreError(
            "this is no fitted recipe, or a damaged one",
            f"a file of format {FORMAT} as dump_fitted gives it",
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            remedy="fit it again",
        ) from error


def _learnt(step: FittedStep) -> dict[str, Any]:
    if isinstance(step, Center):
        return {"mean": step.mean}
    if isinstance(step, Components):
        return {name: np.asarray(getattr(step, name)) for name in ("mean", "components", "variances", "total_variance")}
    return {}


def _rebuilt(head: _Head, arrays: dict[str, Any]) -> FittedRecipe:
    if head.format != FORMAT:
        raise SpecError("another format", str(FORMAT), str(head.format))
    steps: tuple[FittedStep, ...] = ()
    width = width_of(head.shapes)
    for place, step in enumerate(head.recipe.steps):
        found = _step(step, lambda name, place=place: arrays.pop(f"{place}.{name}"))
        _check(found, step, steps_width(steps, width))
        steps += (found,)
    if arrays:
        raise SpecError("arrays of no step", "none", ", ".join(arrays))
    fitted = FittedRecipe(head.recipe, head.shapes, steps, head.rows)
    steps_width(steps, width)
    return fitted


def _step(step: Step, array: Any) -> FittedStep:
    if isinstance(step, Centering):
        return Center(array("mean"))
    if isinstance(step, PCA):
        total = float(array("total_variance"))
        return Components(array("mean"), array("components"), array("variances"), total, step.whiten)
    return step


def _check(found: FittedStep, step: Step, width: int) -> None:
    """Raise SpecError for arrays whose shapes, types or values do not belong together."""
    arrays = {name: value for name, value in _learnt(found).items() if name != "total_variance"}
    expected: dict[str, tuple[int, ...]] = {"mean": (width,)}
    if isinstance(found, Components) and isinstance(step, PCA):
        count = step.components or len(found.variances)
        expected |= {"components": (count, width), "variances": (count,)}
    for name, value in arrays.items():
        if value.shape != expected[name] or value.dtype != np.float64 or not np.isfinite(value).all():
            raise SpecError(
                f"the {name} of {step} is not what it was",
                f"finite float64 {expected[name]}",
                f"{value.dtype} {value.shape}",
            )
