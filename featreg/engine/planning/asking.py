"""From the arguments of a run to what is kept of its model's outputs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs

from featreg.derived import FittedRecipe
from featreg.engine.planning.outputs import Derive, Outputs, StoreDtypes, as_kept, as_recipes, inputs_of
from featreg.errors import LayerError, SpecError, StoreMismatchError, near_matches
from featreg.extractor import Extractor, make_request
from featreg.recipe import Recipe
from featreg.spec import ExtractionRequest, Layer
from featreg.stores.fits import read_fit
from featreg.stores.places.opening import place_at
from featreg.stores.receipts import read_manifest

__all__ = ["ask", "chains_told", "reused_fits"]


def ask(
    model: str | ExtractionRequest | Extractor,
    layers: Sequence[Layer] | Layer | None,
    fields: Mapping[str, Any],
    *,
    derive: Derive = (),
    store_dtype: StoreDtypes = None,
    fit_from: str | os.PathLike[str] | None = None,
    kept: Collection[Layer] | None = None,
) -> Outputs:
    """What is kept, from the arguments of :func:`~featreg.extract`; its ``request`` is that of the model to open.

    Without layers, the derived ones alone are kept. Of an open extractor all layers are kept, or those in ``layers``
    where something is derived, none of them too. ``kept`` says which layers of a whole request are kept. Raises
    SpecError and LayerError, and as :func:`reused_fits`.
    """
    recipes = as_recipes(derive)
    fits = reused_fits(recipes, fit_from)
    if isinstance(model, Extractor):
        if fields or (layers is not None and not recipes):
            raise SpecError(
                "an extractor has its request", "extract(source, store, extractor)", "layers or fields besides"
            )
        kept = kept if layers is None else as_kept(layers)
        return Outputs.of(model.request, recipes, store_dtype, kept=kept, opened=True, fits=fits)
    if recipes and not as_kept(layers) and not isinstance(model, ExtractionRequest):
        request = make_request(model, inputs_of(recipes), dict(fields))
        return Outputs.of(request, recipes, store_dtype, kept=(), fits=fits)
    return Outputs.of(make_request(model, layers, dict(fields)), recipes, store_dtype, kept=kept, fits=fits)


@contextmanager
def chains_told(recipes: Sequence[Recipe]) -> Iterator[None]:
    """Around what opens a model: of a layer that it has not, whether another recipe of the run makes it."""
    try:
        yield
    except LayerError as error:
        for recipe in recipes:
            for taken in recipe.inputs:
                if any(other.name == taken for other in recipes) and repr(taken) in error.problem:
                    raise LayerError(
                        f"the recipe {recipe.name!r} takes {taken!r}, which is derived in the same run",
                        "layers of the model",
                        repr(taken),
                        remedy=f"afterwards: featreg derive STORE '{recipe}', with {taken!r} in the store",
                    ) from error
        raise


def reused_fits(recipes: Sequence[Recipe], store: str | os.PathLike[str] | None) -> dict[str, FittedRecipe]:
    """What the recipes, by their names, have learnt in another store; nothing where ``store`` is None.

    A derived layer is found there by its name, or else by what it is made of. On how many rows it was fitted there
    makes no difference. Raises SpecError where no recipe has anything to learn, and StoreMismatchError for a recipe
    that the store has no fit of.
    """
    if store is None:
        return {}
    wanted = [recipe for recipe in recipes if recipe.passes]
    if not wanted:
        raise SpecError("no recipe learns anything", "a recipe with center or pca", "fit_from and none of these")
    place = place_at(store)
    there = [layer for layer in read_manifest(place).layers if layer.recipe is not None and layer.fit is not None]
    found: dict[str, FittedRecipe] = {}
    for recipe in wanted:
        alike = [layer for layer in there if layer.recipe is not None and _content(layer.recipe) == _content(recipe)]
        named = [layer for layer in alike if layer.key == recipe.name] or alike
        if not named or named[0].fit is None:
            names = [str(layer.recipe) for layer in there]
            raise StoreMismatchError(
                f"the store {place.uri!r} has no fit of {str(recipe)!r}",
                "a derived layer of the same inputs, poolings and steps",
                ", ".join(map(repr, names)) or "no derived layer that has learnt anything",
                near_matches(str(recipe), names),
            )
        found[recipe.name] = read_fit(place, named[0].fit)
    return found


def _content(recipe: Recipe) -> Recipe:
    """What the recipe makes, whatever it is called and however many rows it learns from."""
    return attrs.evolve(recipe, name="", sample=None, seed=0)
