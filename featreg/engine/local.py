"""Extraction on this machine, in this process."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any

import numpy as np

import featreg
from featreg.engine.fingerprint import fingerprint
from featreg.engine.plan import task_rows
from featreg.engine.worker import Advance, run_tasks
from featreg.errors import CapabilityError, SourceError, SpecError
from featreg.extractor import Extractor, create_extractor
from featreg.extras import data_extra
from featreg.preprocess import crop_size
from featreg.registry import Registry, default_registry
from featreg.sources import Sample, Source, open_source
from featreg.spec import ExtractionRequest, FeatureInfo, Layer, Size
from featreg.stores import FeatureStore
from featreg.stores.layout import FORMAT, LayerRecord, Manifest, SourceRecord, array_names
from featreg.stores.writer import StoreWriter, check_free, replacement

with data_extra():
    from tqdm import tqdm

__all__ = ["extract"]

MAX_THREADS = 8
"""The most threads that decode by default: beyond, Pillow's share of the interpreter lock leaves nothing to gain."""


def extract(
    source: Source | str | os.PathLike[str],
    store: str | os.PathLike[str],
    model: str | ExtractionRequest | Extractor,
    layers: Sequence[Layer] | Layer | None = None,
    *,
    batch_size: int = 32,
    limit: int | None = None,
    overwrite: bool = False,
    num_workers: int | None = None,
    progress: bool = False,
    registry: Registry | None = None,
    **fields: Any,
) -> FeatureStore:
    """Run a model over a data set and write every requested layer to a new store, one row per image.

    ``source`` is a folder or a :class:`~featreg.sources.Source`; ``model``, ``layers`` and ``fields`` are as for
    :func:`~featreg.create_extractor`. In their place stands an open extractor, such as one of
    :func:`~featreg.from_module`, which stays open. ``limit`` takes the first images only, ``num_workers`` is the number
    of threads that read and decode, ``progress`` shows a bar on standard error where that is a terminal. Returns the
    opened store; its ``summary`` counts rows and failures and has the images per second of this run.

    An image that cannot be read or decoded becomes a row with an error and NaN features. Anything else stops the run:
    the store then opens with what is finished, the other rows pending. Memory does not grow with the number of images,
    but for their names.

    With ``overwrite``, a feature store in the way stays as it is until the new one is complete; a run that stops before
    leaves the old store and nothing of the new one.

    Raises StoreExistsError for a path that is taken (with ``overwrite``: by anything but a feature store), StoreError
    for one that is empty or no local path, SpecError for what is no path, SourceError for a source without images,
    CapabilityError for a model whose crops differ in size, and whatever ``create_extractor`` raises.
    """
    _check_counts(batch_size=batch_size, limit=limit, num_workers=num_workers)
    root = check_free(store, overwrite=overwrite)
    images = open_source(source)
    samples = images.samples if limit is None else images.samples[:limit]
    if not samples:
        raise SourceError(f"no images found in {images.uri!r}", "at least one sample", "an empty index")
    registry = registry or default_registry()
    with (
        replacement(root, overwrite=overwrite) as place,
        _opened(model, layers, registry, fields) as extractor,
    ):
        manifest = _manifest(images, samples, extractor, registry)
        writer = StoreWriter.create(place, manifest, samples, overwrite=overwrite)
        threads = num_workers or min(MAX_THREADS, os.cpu_count() or 1)
        started = time.perf_counter()
        with _bar(len(samples), progress) as advance:
            run_tasks(
                manifest.tasks,
                images,
                samples,
                extractor,
                writer,
                batch_size=batch_size,
                threads=threads,
                advance=advance,
            )
        writer.finalize()
        seconds = time.perf_counter() - started
    return FeatureStore(root, seconds=seconds)


def _opened(
    model: str | ExtractionRequest | Extractor, layers: Any, registry: Registry, fields: Mapping[str, Any]
) -> AbstractContextManager[Extractor]:
    if not isinstance(model, Extractor):
        return create_extractor(model, layers, registry=registry, **fields)
    if layers is not None or fields:
        raise SpecError("an extractor has its request", "extract(source, store, extractor)", "layers or fields besides")
    return nullcontext(model)


def _manifest(source: Source, samples: Sequence[Sample], extractor: Extractor, registry: Registry) -> Manifest:
    infos, size = _row_infos(extractor)
    shapes = {key: info.shape(1, *size)[1:] for key, info in infos.items()}
    dtype = "float16" if extractor.request.dtype == "float16" else "float32"  # Zarr has no bfloat16
    row_bytes = sum(math.prod(shape) for shape in shapes.values()) * np.dtype(dtype).itemsize
    names = array_names(extractor.request.layers)
    return Manifest(
        format=FORMAT,
        featreg=featreg.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=len(samples),
        task_rows=task_rows(row_bytes),
        request=extractor.request,
        fingerprint=fingerprint(extractor, registry),
        layers=tuple(LayerRecord(key, names[key], info, shapes[key], dtype) for key, info in infos.items()),
        source=SourceRecord(source.uri, source.kind, source.classes, source.skipped, source.stray),
    )


def _row_infos(extractor: Extractor) -> tuple[Mapping[Layer, FeatureInfo], Size]:
    """The layers as they are for the size of the crops; raises CapabilityError where the rows have no one shape."""
    request, size = extractor.request, crop_size(extractor.preprocess)
    if any(info.head == "text_embedding" for info in extractor.feature_info.values()):
        raise CapabilityError("texts cannot be extracted from images", "image layers", str(list(request.layers)))
    if request.array != "numpy" or request.grad:
        raise CapabilityError("a store holds NumPy arrays without gradients", "array='numpy', grad=False")
    if size is None:
        raise CapabilityError(
            f"{request.model} crops to no fixed size, and the rows of a store have one shape",
            "a crop size",
            "None",
            remedy="give extract(...) an extractor of its module with a preprocess of your own: "
            "featreg.from_module(extractor.module, layers, preprocess=featreg.Preprocess(...))",
        )
    return extractor.describe(size), size


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Advance]:
    with tqdm(total=total, unit="image", disable=None if shown else True) as bar:  # None: only on a terminal
        yield bar.update


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise SpecError(f"{name} is out of range", "a whole number of at least 1", repr(count))
