"""What a run will write: the layers, their shapes and types, and all that decides their values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from featreg.engine.fingerprint import fingerprint
from featreg.engine.plan import task_rows
from featreg.errors import CapabilityError
from featreg.extractor import Extractor
from featreg.preprocess import crop_size
from featreg.registry import Registry
from featreg.sources import Source, is_reopenable
from featreg.spec import FeatureInfo, Layer, Size
from featreg.stores.layout import LayerRecord, SourceRecord, array_names
from featreg.stores.writer import Plan

__all__ = ["make_plan", "source_record"]


def make_plan(
    source: SourceRecord | Callable[[], SourceRecord],
    extractor: Extractor,
    registry: Registry,
    *,
    batch_size: int,
    taken: Sequence[str] = (),
) -> Plan:
    """The plan of a pass; ``taken`` are the names of the arrays that the store has already.

    Raises CapabilityError for features that no store can hold.
    """
    infos, size = _row_infos(extractor)
    shapes = {key: info.shape(1, *size)[1:] for key, info in infos.items()}
    dtype = "float16" if extractor.request.dtype == "float16" else "float32"  # Zarr has no bfloat16
    row_bytes = sum(math.prod(shape) for shape in shapes.values()) * np.dtype(dtype).itemsize
    names = array_names(extractor.request.layers, taken)
    return Plan(
        request=extractor.request,
        fingerprint=fingerprint(extractor, registry),
        layers=tuple(LayerRecord(key, names[key], info, shapes[key], dtype) for key, info in infos.items()),
        source=source,
        task_rows=task_rows(row_bytes),
        batch_size=batch_size,
    )


def source_record(source: Source, limit: int | None) -> SourceRecord:
    """What a store says of its source, so that another process can open it."""
    return SourceRecord(
        uri=source.uri,
        kind=source.kind,
        classes=None if source.classes is None else tuple(source.classes),
        skipped=source.skipped,
        stray=source.stray,
        options=dict(source.options),
        reopenable=is_reopenable(source),
        limit=limit,
    )


def _row_infos(extractor: Extractor) -> tuple[Mapping[Layer, FeatureInfo], Size]:
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
