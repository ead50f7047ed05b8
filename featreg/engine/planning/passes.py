"""What a run will write: the layers, their shapes and types, and all that decides their values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from featreg.derived import FittedRecipe, Shapes, output_width, width_of
from featreg.engine.loop.batching import settle_batch_size
from featreg.engine.loop.keeping import shapes_of
from featreg.engine.planning.fingerprint import fingerprint
from featreg.engine.planning.outputs import Outputs, inputs_of
from featreg.engine.planning.plan import task_rows
from featreg.engine.planning.selection import Selection
from featreg.errors import CapabilityError, LayerError, RequestError
from featreg.extractor import Extractor
from featreg.pooling import flattened_info
from featreg.preprocess import crop_size
from featreg.recipe import Recipe
from featreg.registry import Registry
from featreg.sources import Source, is_reopenable
from featreg.spec import FeatureInfo, Layer, Size
from featreg.stores.fits import fit_record
from featreg.stores.layout import InputRecord, LayerRecord, Manifest, SourceRecord, array_names
from featreg.stores.writer import Plan

__all__ = ["check_unknown", "crop_infos", "derived_records", "make_plan", "model_inputs", "row_bytes", "source_record"]


def make_plan(
    source: SourceRecord | Callable[[], SourceRecord],
    extractor: Extractor,
    registry: Registry,
    *,
    batch_size: int | Literal["auto"],
    taken: Sequence[str] = (),
    outputs: Outputs | None = None,
    fitted: Mapping[str, FittedRecipe] | None = None,
) -> Plan:
    """The plan of a pass; ``taken`` are the names of the arrays that the store has already.

    A ``batch_size`` of ``"auto"`` is the fastest, which is tried here, and recorded for all workers.
    ``outputs`` is what is kept, all that was requested where it is None; ``fitted`` what its recipes have learnt, by
    their names. Of a derived layer that has something to learn yet, the width is the most that it can be, and the plan
    says how much there will be to write, but cannot be carried out. Raises CapabilityError for features that no store
    can hold, and RequestError for fits and steps that do not suit the layers.
    """
    outputs = Outputs.of(extractor.request) if outputs is None else outputs
    infos, size = crop_infos(extractor)
    given = model_inputs(outputs, infos, size)
    names = array_names([*outputs.kept, *(recipe.name for recipe in outputs.recipes)], taken)
    kept = (_kept_record(outputs, key, names[key], infos[key], size) for key in outputs.kept)
    layers = (*kept, *derived_records(outputs, given, fitted or {}, names))
    rows = task_rows(row_bytes(layers))
    return Plan(
        request=extractor.request,
        fingerprint=fingerprint(extractor, registry, outputs),
        layers=layers,
        source=source,
        task_rows=rows,
        batch_size=settle_batch_size(batch_size, extractor, rows),
        inputs=given,
    )


def model_inputs(outputs: Outputs, infos: Mapping[Layer, FeatureInfo], size: Size) -> tuple[InputRecord, ...]:
    """What the recipes take, as a model gives it that is described by ``infos`` for crops of a size."""
    return tuple(
        InputRecord(layer, infos[layer], infos[layer].shape(1, *size)[1:], layer in outputs.pooled)
        for layer in inputs_of(outputs.recipes)
    )


def derived_records(
    outputs: Outputs,
    given: Sequence[InputRecord],
    fitted: Mapping[str, FittedRecipe],
    names: Mapping[Layer, str],
) -> Iterator[LayerRecord]:
    """The derived layers; what they have learnt is named by its content and not written here."""
    for recipe in outputs.recipes:
        shapes = shapes_of(recipe, given)
        found = fitted.get(recipe.name)
        if found is not None:
            _check_shapes(recipe, found.shapes, shapes)
        width = output_width(recipe, width_of(shapes)) or width_of(shapes) if found is None else found.width
        info = FeatureInfo(recipe.name, width, None, "vector")
        fit = None if found is None or not recipe.passes else fit_record(found)
        yield LayerRecord(recipe.name, names[recipe.name], info, (width,), outputs.dtype(recipe.name), recipe, fit)


def check_unknown(layers: Sequence[Layer], manifest: Manifest) -> None:
    """Raise LayerError for layers that a store has already."""
    known = [layer.key for layer in manifest.layers]
    double = [layer for layer in layers if layer in known]
    if double:
        raise LayerError(f"the store has the layers {double} already", "others than these", str(known))


def row_bytes(layers: Sequence[LayerRecord]) -> int:
    """What one row of some layers weighs."""
    return sum(math.prod(layer.shape) * np.dtype(layer.dtype).itemsize for layer in layers)


def _kept_record(outputs: Outputs, key: Layer, name: str, info: FeatureInfo, size: Size) -> LayerRecord:
    if key in outputs.flattened:
        info = flattened_info(info, math.prod(info.shape(1, *size)), size)
    return LayerRecord(key, name, info, info.shape(1, *size)[1:], outputs.dtype(key))


def _check_shapes(recipe: Recipe, there: Shapes, here: Shapes) -> None:
    if there != here:
        raise RequestError(
            f"{recipe.name!r} was fitted on other shapes than its inputs have here",
            ", ".join(f"{layer}: {shape}" for layer, shape in zip(recipe.inputs, here, strict=True)),
            ", ".join(map(str, there)),
        )


def source_record(source: Source, selection: Selection) -> SourceRecord:
    """What a store says of its source, so that another process can open it."""
    return SourceRecord(
        uri=source.uri,
        kind=source.kind,
        classes=None if source.classes is None else tuple(source.classes),
        skipped=source.skipped,
        stray=source.stray,
        options=dict(source.options),
        reopenable=is_reopenable(source),
        limit=selection.limit,
        fraction=selection.fraction,
        seed=selection.seed,
    )


def crop_infos(extractor: Extractor) -> tuple[Mapping[Layer, FeatureInfo], Size]:
    """The layers as they are for the size of the crops; raises CapabilityError where the rows have no one shape."""
    request = extractor.request
    if request.array != "numpy" or request.grad:
        raise CapabilityError("a store holds NumPy arrays without gradients", "array='numpy', grad=False")
    if extractor.takes_text:
        return extractor.feature_info, extractor.info.input_size
    size = crop_size(extractor.preprocess)
    if size is None:
        raise CapabilityError(
            f"{request.model} crops to no fixed size, and the rows of a store have one shape",
            "a crop size",
            "None",
            remedy="give extract(...) an extractor of its module with a preprocess of your own: "
            "featreg.from_module(extractor.module, layers, preprocess=featreg.Preprocess(...))",
        )
    return extractor.describe(size), size
