"""What is kept of the outputs of a model: layers as it gives them, derived layers, and the types they are stored in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs

from featreg.derived import FittedRecipe, plan_taps
from featreg.errors import LayerError, SpecError, near_matches
from featreg.recipe import RECIPE_FORM, Recipe
from featreg.request import as_layers
from featreg.spec import ExtractionRequest, Layer
from featreg.stores.fits import fit_record

__all__ = ["STORE_DTYPES", "Derive", "Outputs", "StoreDtypes", "as_kept", "as_recipes", "inputs_of"]

Derive: TypeAlias = Recipe | str | Sequence[Recipe | str]
"""Recipes of derived layers, or their texts."""

StoreDtypes: TypeAlias = str | Mapping[Layer, str] | None
"""The type that features are stored in: one for all layers, or by layer."""

_NAME_IT = "name the recipe, as in NAME=C5:pca=64"

STORE_DTYPES = ("float32", "float16")
"""Zarr has no bfloat16."""


@attrs.frozen
class Outputs:
    """What is kept of the outputs of a model.

    ``request`` is what the model is asked for: the layers that are ``kept``, then those that only ``recipes`` take; the
    latter it ``pooled`` already as the recipes say, if they agree. ``flattened`` are layers that are stored as vectors
    although the model gives them as they are, since recipes may pool them. ``dtypes`` are the types that were said;
    ``fits`` what recipes, by their names, have learnt elsewhere. Made by :meth:`of`.
    """

    request: ExtractionRequest
    kept: tuple[Layer, ...]
    flattened: tuple[Layer, ...] = ()
    recipes: tuple[Recipe, ...] = ()
    pooled: frozenset[Layer] = frozenset()
    dtypes: Mapping[Layer, str] = attrs.field(factory=dict)
    fits: Mapping[str, FittedRecipe] = attrs.field(factory=dict, eq=False)

    @classmethod
    def of(
        cls,
        request: ExtractionRequest,
        derive: Derive = (),
        store_dtype: StoreDtypes = None,
        *,
        kept: Collection[Layer] | None = None,
        opened: bool = False,
        fits: Mapping[str, FittedRecipe] | None = None,
    ) -> Outputs:
        """What is kept where ``request`` is asked for.

        ``kept`` are the layers of the request that are kept, all where it is None; the others are for recipes alone.
        ``opened`` says that a model is there already, which gives the layers of the request and no others. Raises
        LayerError for names that clash, for types of layers that there are not and for inputs that an opened model does
        not give, SpecError for what is no recipe or no type.
        """
        recipes = as_recipes(derive)
        taps = plan_taps(request, recipes, kept)
        asked, pooled = taps.request, taps.pooled
        if opened and recipes:
            _check_opened(request, recipes)
            asked, pooled = request, frozenset()
        stored = (*taps.kept, *(recipe.name for recipe in recipes))
        flattened = tuple(layer for layer in request.flattened if recipes and layer in taps.kept)
        dtypes = _dtypes(store_dtype, stored, _default_dtype(request))
        return cls(asked, taps.kept, flattened, recipes, pooled, dtypes, fits or {})

    @classmethod
    def of_store(
        cls,
        request: ExtractionRequest,
        recipes: tuple[Recipe, ...],
        store_dtype: StoreDtypes = None,
        fits: Mapping[str, FittedRecipe] | None = None,
    ) -> Outputs:
        """What is derived from the layers of a store; ``request`` is that of its model, which is not asked.

        Raises LayerError for names that clash and for types of layers that there are not, SpecError for what is no
        type.
        """
        names = [recipe.name for recipe in recipes]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise LayerError(f"more than one layer of the name {', '.join(repeated)}", remedy=_NAME_IT)
        dtypes = _dtypes(store_dtype, names, _default_dtype(request))
        return cls(request, (), recipes=recipes, dtypes=dtypes, fits=fits or {})

    @property
    def to_fit(self) -> tuple[Recipe, ...]:
        """The recipes that have something to learn yet."""
        return tuple(recipe for recipe in self.recipes if recipe.passes and recipe.name not in self.fits)

    def dtype(self, key: Layer) -> str:
        """The type in which a layer is stored: that of the computation where nothing was said, bfloat16 as float32."""
        return self.dtypes.get(key, _default_dtype(self.request))

    @property
    def document(self) -> dict[str, Any]:
        """What it adds to a fingerprint: nothing where the layers of the request are stored as the model gives them."""
        said = {
            "layers": list(self.kept) if self.kept != self.request.layers else None,
            "flatten": list(self.flattened) or None,
            "dtype": {str(layer): dtype for layer, dtype in self.dtypes.items()} or None,
            "derive": [str(recipe) for recipe in self.recipes] or None,
            "fits": {name: fit_record(fitted).sha256 for name, fitted in sorted(self.fits.items())} or None,
        }
        return {name: value for name, value in said.items() if value is not None}


def _default_dtype(request: ExtractionRequest) -> str:
    return "float16" if request.dtype == "float16" else "float32"


def as_recipes(derive: Derive) -> tuple[Recipe, ...]:
    """Recipes, from one or several, or from their texts; raises SpecError."""
    several: Iterable[Any] = (derive,) if isinstance(derive, str | Recipe) else derive
    try:
        given = tuple(several)
    except TypeError:
        given = (derive,)
    for one in given:
        if not isinstance(one, str | Recipe):
            raise SpecError(f"{one!r} is no recipe", f"a featreg.Recipe, or its text: {RECIPE_FORM}", repr(one))
    return tuple(Recipe.parse(one) if isinstance(one, str) else one for one in given)


def inputs_of(recipes: Sequence[Recipe]) -> tuple[Layer, ...]:
    """The layers that recipes take, each once."""
    return tuple(dict.fromkeys(layer for recipe in recipes for layer in recipe.inputs))


def as_kept(layers: Sequence[Layer] | Layer | None) -> tuple[Layer, ...]:
    """The layers to keep as they are, from one or several, or none."""
    return () if layers is None else as_layers(layers)


def _check_opened(request: ExtractionRequest, recipes: Sequence[Recipe]) -> None:
    for recipe in recipes:
        for layer in recipe.inputs:
            if layer not in request.layers:
                raise LayerError(
                    f"the recipe {recipe.name!r} takes {layer!r}, which the open extractor does not give",
                    f"some of {list(request.layers)}",
                    repr(layer),
                    near_matches(str(layer), map(str, request.layers)),
                )
            if layer in recipe.pools and layer in request.flattened:
                raise SpecError(
                    f"the recipe {recipe.name!r} pools {layer!r}, which the open extractor has flattened",
                    "an extractor without flatten",
                    "flatten",
                )


def _dtypes(said: StoreDtypes, stored: Sequence[Layer], default: str) -> dict[Layer, str]:
    """The types by layer, in the order of the layers, where they are others than the default."""
    given: dict[Layer, Any] = (
        dict(said) if isinstance(said, Mapping) else {} if said is None else dict.fromkeys(stored, said)
    )
    for layer, dtype in given.items():
        if layer not in stored:
            raise LayerError(
                f"a type for {layer!r}, which is not stored",
                f"some of {list(stored)}",
                repr(layer),
                near_matches(str(layer), map(str, stored)),
            )
        if dtype not in STORE_DTYPES:
            raise SpecError(f"features cannot be stored as {dtype!r}", " or ".join(STORE_DTYPES), repr(dtype))
    return {layer: given[layer] for layer in stored if layer in given and given[layer] != default}
