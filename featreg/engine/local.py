"""Extraction from a source into a store, and what it would take."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Literal

from featreg.engine.arguments import check_counts, engine_named, raises_errors, share
from featreg.engine.monitoring.stages import Clock
from featreg.engine.opening import chosen, opened_for, preopened
from featreg.engine.planning.asking import ask, chains_told
from featreg.engine.planning.difference import check_same_run
from featreg.engine.planning.estimate import Estimate, estimate_store, free_bytes
from featreg.engine.planning.fingerprint import fingerprint
from featreg.engine.planning.outputs import Derive, Outputs, StoreDtypes
from featreg.engine.planning.selection import Selection
from featreg.engine.preparing import Job
from featreg.engine.run import Run, Work
from featreg.errors import SpecError, StoreExistsError
from featreg.extractor import Extractor, create_extractor
from featreg.registry import Registry, default_registry
from featreg.sources import Source
from featreg.spec import ExtractionRequest, Layer
from featreg.stores import FeatureStore
from featreg.stores.layout import MANIFEST, PASSES
from featreg.stores.outside import check_outside
from featreg.stores.places.opening import place_at
from featreg.stores.places.place import Place, write_errors
from featreg.stores.replace import check_free, replacement
from featreg.stores.writer import StoreWriter

__all__ = ["estimate", "extract"]


def extract(
    source: Source | str | os.PathLike[str],
    store: str | os.PathLike[str],
    model: str | ExtractionRequest | Extractor,
    layers: Sequence[Layer] | Layer | None = None,
    *,
    derive: Derive = (),
    fit_from: str | os.PathLike[str] | None = None,
    store_dtype: StoreDtypes = None,
    kind: str | None = None,
    source_options: Mapping[str, Any] | None = None,
    batch_size: int | Literal["auto"] | None = None,
    limit: int | None = None,
    fraction: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
    part: tuple[int, int] | None = None,
    on_error: Literal["record", "raise"] = "record",
    max_error_rate: float | None = None,
    num_workers: int | None = None,
    progress: bool = False,
    metrics: str | os.PathLike[str] | None = None,
    engine: Literal["local", "ray"] = "local",
    num_gpus: float | None = None,
    address: str | None = None,
    on_estimate: Callable[[Estimate], object] | None = None,
    registry: Registry | None = None,
    **fields: Any,
) -> FeatureStore:
    """Run a model over a data set and write every requested layer to a store, one row per sample.

    ``source`` is what :func:`~featreg.sources.open_source` opens, with ``kind`` and ``source_options`` where its path
    does not tell them; a .txt file holds texts where the model takes texts.
    ``model``, ``layers`` and ``fields`` are as for :func:`~featreg.create_extractor`. In their place stands an open
    extractor, such as one of :func:`~featreg.from_module`, which stays open. ``derive`` are recipes of layers that are
    computed from others (see :class:`~featreg.Recipe`), which are only kept where they are in ``layers``; what they
    learn, they learn from these samples, or it is taken from the store ``fit_from``. ``store_dtype`` is ``"float32"``
    or ``"float16"``, for all layers or by layer; by default float16 where the model computes in it.

    ``fraction`` takes about that share of the samples, drawn with ``seed``, and ``limit`` the first of those.
    ``batch_size`` is 32, or that which the store was begun with, ``"auto"`` tries what is fastest. ``num_workers`` is
    the number of threads that read and decode, ``progress`` shows how it goes on standard error, ``metrics`` is a file
    that gets it as JSON lines. With ``engine="ray"`` the work is done on a Ray cluster, see
    :func:`featreg.engine.ray.complete`. ``on_estimate`` is told what the run will take before it begins, for which a
    few samples are tried out.

    Returns the opened store; its ``summary`` counts rows and failures and has the images per second of this run.

    A run that stopped is gone on with: its store is completed, and a finished one is returned as it is. Any number of
    runs work on one store at once, on several machines too; ``part=(i, n)`` says that this is run i of n, counted from
    0: it begins with its own part and then helps the others.

    A sample that cannot be read or decoded becomes a row with an error and NaN features; with ``on_error="raise"`` it
    stops the run, as more failures than ``max_error_rate`` (of all rows, from 0 to 1) do. Anything else stops the run
    too: the store then opens with what is finished, the other rows pending. Memory does not grow with the number of
    samples.

    With ``overwrite``, a feature store in the way stays as it is until the new one is complete; a run that stops before
    leaves the old store and nothing of the new one.

    Raises StoreMismatchError, with every difference, for a store of another request, other weights, versions or another
    source; StoreExistsError for a path that is taken by anything else; StoreFullError, before anything is written, and
    StoreDeniedError where there is no room or no permission; StoreError for a path that is empty; SpecError for what is
    no path; SourceError for a source without samples; CapabilityError for a model whose crops differ in size; and
    whatever ``create_extractor`` raises.
    """
    check_counts(batch_size=batch_size, limit=limit, num_workers=num_workers)
    run = Run(
        batch_size=batch_size,
        num_workers=num_workers if engine == "local" else None,
        part=part,
        raise_errors=raises_errors(on_error),
        max_error_rate=share(max_error_rate),
        progress=progress,
        metrics=metrics,
    )
    selection = Selection(limit, fraction, seed)
    at_work = engine_named(engine, num_gpus=num_gpus, num_workers=num_workers, address=address)
    if overwrite and part is not None:
        raise SpecError("one run of several cannot replace a store", "overwrite=False, or no part", f"part={part!r}")
    place = _place(store, overwrite)
    if metrics is not None:
        check_outside(metrics, "the file of the metrics", place)
    outputs = ask(model, layers, fields, derive=derive, store_dtype=store_dtype, fit_from=fit_from)
    source = chosen(source, kind, source_options)
    found, registry = preopened(source), registry or default_registry()
    here = engine == "local" or isinstance(model, Extractor)
    with ExitStack() as ready, replacement(place, overwrite=overwrite) as target:
        with _opened(model, outputs, registry) as extractor:
            job = Job(opened_for(source, found, extractor), extractor, registry, outputs, selection, run)
            work = Work(job.source, registry, extractor if here else None)
            ready.enter_context(at_work.ready(target, work, outputs.request.device))
            writer = _begin(target, job, place.uri, overwrite=overwrite, on_estimate=on_estimate)
            if here:
                summary = at_work.complete(writer, work, run).summary
        if not here:  # workers elsewhere open the model themselves, and this one makes room
            summary = at_work.complete(writer, work, run).summary
    return FeatureStore(
        place,
        seconds=summary.seconds,
        done=summary.done,
        done_before=summary.done_before,
        worked=summary.worked,
    )


def estimate(
    source: Source | str | os.PathLike[str],
    store: str | os.PathLike[str],
    model: str | ExtractionRequest | Extractor,
    layers: Sequence[Layer] | Layer | None = None,
    *,
    derive: Derive = (),
    fit_from: str | os.PathLike[str] | None = None,
    store_dtype: StoreDtypes = None,
    kind: str | None = None,
    source_options: Mapping[str, Any] | None = None,
    batch_size: int | Literal["auto"] | None = None,
    limit: int | None = None,
    fraction: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
    num_workers: int | None = None,
    clock: Clock = time.perf_counter,
    registry: Registry | None = None,
    **fields: Any,
) -> Estimate:
    """What :func:`extract` would take with these arguments: rows, bytes, free disk, and a guess at the time.

    Nothing is written. The samples are counted, which takes one pass over the index of the source, and some of them are
    read, decoded and put through the model, for about ten seconds by ``clock``. Of a store that is to be gone on with,
    what is left is told, and nothing tried. Raises as :func:`extract`, but for StoreFullError:
    :meth:`Estimate.check_room` does that.
    """
    check_counts(batch_size=batch_size, limit=limit, num_workers=num_workers)
    selection, run = Selection(limit, fraction, seed), Run(batch_size=batch_size, num_workers=num_workers)
    place = _place(store, overwrite)
    outputs = ask(model, layers, fields, derive=derive, store_dtype=store_dtype, fit_from=fit_from)
    source = chosen(source, kind, source_options)
    found, registry = preopened(source), registry or default_registry()
    with _opened(model, outputs, registry) as extractor:
        job = Job(opened_for(source, found, extractor), extractor, registry, outputs, selection, run)
        if not overwrite and _is_planned(place):
            return estimate_store(place, _same_run(place, job).manifest)
        return job.estimate(place.uri, free_bytes(place), clock)


def _place(store: str | os.PathLike[str], overwrite: bool) -> Place:
    """Where a store is to be gone on with, or where a new one may be made."""
    place = place_at(store)
    return check_free(store, overwrite=overwrite) if overwrite or not _is_store(place) else place


def _begin(
    place: Place, job: Job, uri: str, *, overwrite: bool, on_estimate: Callable[[Estimate], object] | None
) -> StoreWriter:
    """A new store, or the one that is there, if it is of the same run."""
    if overwrite or not _is_planned(place):
        try:
            return StoreWriter.create(place, job.planner(uri, on_estimate), job.index(), overwrite=overwrite)
        except StoreExistsError:
            if not _is_planned(place):
                raise
    writer = _same_run(place, job)
    if on_estimate is not None:
        on_estimate(estimate_store(place, writer.manifest))
    return writer


def _same_run(place: Place, job: Job) -> StoreWriter:
    writer = StoreWriter(place)
    now = fingerprint(job.extractor, job.registry, job.outputs)
    check_same_run(writer.manifest, now, job.source, job.selection, place.uri)
    return writer


def _is_store(place: Place) -> bool:
    with write_errors(place):
        return place.exists(MANIFEST)


def _is_planned(place: Place) -> bool:
    """Whether a store is there whose samples are fixed; elsewhere than on a local path it may not have come so far."""
    return _is_store(place) and bool(place.names(PASSES))


def _opened(
    model: str | ExtractionRequest | Extractor, outputs: Outputs, registry: Registry
) -> AbstractContextManager[Extractor]:
    if isinstance(model, Extractor):
        return nullcontext(model)
    with chains_told(outputs.recipes):
        return create_extractor(outputs.request, registry=registry)
