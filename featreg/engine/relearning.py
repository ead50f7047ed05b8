"""What a derived layer has learnt, learnt once more: for a store that has lost it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from featreg.derived import FittedRecipe
from featreg.engine.derivation import StoredInputs
from featreg.engine.loop.options import Options
from featreg.engine.planning.learning import Lesson
from featreg.extractor import create_extractor
from featreg.recipe import Recipe
from featreg.registry import Registry
from featreg.sources import Source
from featreg.stores.index import Index
from featreg.stores.layout import LayerRecord, Manifest, Pass
from featreg.stores.places.place import Place

__all__ = ["learn_again"]


def learn_again(
    place: Place,
    manifest: Manifest,
    part: Pass,
    layer: LayerRecord,
    *,
    source: Callable[[], Source],
    registry: Registry,
) -> FittedRecipe | None:
    """The fit of a layer, as the pass that planned it came by it; None where that took it from another store.

    All that the pass has learnt is learnt again together: which samples share a batch may change the last bits.
    """
    first = next(other for other in manifest.passes if other.group == part.group)
    recipes = _learnt_here(first)
    if layer.recipe not in recipes:
        return None
    if first.origin == "store":
        inputs = StoredInputs(place, [given.key for given in first.inputs])
        return inputs.fit(recipes, first.stop).get(str(layer.key))
    options = Options(first.batch_size, os.cpu_count() or 1)
    lesson = Lesson(Index(place, manifest.index), first.stop, first.inputs, source(), options)
    with create_extractor(first.request, registry=registry) as extractor:
        return lesson.learn(recipes, extractor).get(str(layer.key))


def _learnt_here(part: Pass) -> Sequence[Recipe]:
    """The recipes of a pass that learnt from its own rows."""
    reused = part.fingerprint.get("outputs", {}).get("fits", {})
    return tuple(
        layer.recipe for layer in part.layers if layer.recipe is not None and layer.fit and layer.key not in reused
    )
