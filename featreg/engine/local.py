"""Extraction on this machine, in this process."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from featreg.engine.difference import check_same_run
from featreg.engine.fingerprint import fingerprint
from featreg.engine.planning import make_plan, source_record
from featreg.engine.run import Run, Work, complete
from featreg.errors import SourceError, SpecError, StoreExistsError
from featreg.extractor import Extractor, create_extractor
from featreg.registry import Registry, default_registry
from featreg.sources import Sample, Source, open_source
from featreg.spec import ExtractionRequest, Layer
from featreg.stores import FeatureStore
from featreg.stores.layout import MANIFEST, PASSES
from featreg.stores.opening import place_at
from featreg.stores.places import Place, write_errors
from featreg.stores.replace import check_free, replacement
from featreg.stores.writer import StoreWriter

__all__ = ["extract"]

BATCH_SIZE = 32


def extract(
    source: Source | str | os.PathLike[str],
    store: str | os.PathLike[str],
    model: str | ExtractionRequest | Extractor,
    layers: Sequence[Layer] | Layer | None = None,
    *,
    batch_size: int | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    part: tuple[int, int] | None = None,
    on_error: Literal["record", "raise"] = "record",
    max_error_rate: float | None = None,
    num_workers: int | None = None,
    progress: bool = False,
    registry: Registry | None = None,
    **fields: Any,
) -> FeatureStore:
    """Run a model over a data set and write every requested layer to a store, one row per sample.

    ``source`` is what :func:`~featreg.sources.open_source` opens; ``model``, ``layers`` and ``fields`` are as for
    :func:`~featreg.create_extractor`. In their place stands an open extractor, such as one of
    :func:`~featreg.from_module`, which stays open. ``batch_size`` is 32, or that which the store was begun with,
    ``limit`` takes the first samples only, ``num_workers`` is the number of threads that read and decode, ``progress``
    shows a bar on standard error where that is a terminal. Returns the opened store; its ``summary`` counts rows and
    failures and has the images per second of this run.

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
    source; StoreExistsError for a path that is taken by anything else; StoreFullError and StoreDeniedError where there
    is no room or no permission; StoreError for a path that is empty; SpecError for what is no path; SourceError for a
    source without samples; CapabilityError for a model whose crops differ in size; and whatever ``create_extractor``
    raises.
    """
    _check_counts(batch_size=batch_size, limit=limit, num_workers=num_workers)
    run = Run(
        batch_size=batch_size,
        num_workers=num_workers,
        part=part,
        raise_errors=_raises(on_error),
        max_error_rate=_rate(max_error_rate),
        progress=progress,
    )
    if overwrite and part is not None:
        raise SpecError("one run of several cannot replace a store", "overwrite=False, or no part", f"part={part!r}")
    place = place_at(store)
    if overwrite or not _is_store(place):
        place = check_free(store, overwrite=overwrite)
    opened, registry = open_source(source), registry or default_registry()
    with (
        replacement(place, overwrite=overwrite) as target,
        _opened(model, layers, registry, fields) as extractor,
    ):
        writer = _begin(
            target, opened, extractor, registry, limit=limit, batch_size=batch_size or BATCH_SIZE, overwrite=overwrite
        )
        summary = complete(writer, Work(opened, registry, extractor), run).summary
    return FeatureStore(place, seconds=summary.seconds, done=summary.done, done_before=summary.done_before)


def _begin(
    place: Place,
    source: Source,
    extractor: Extractor,
    registry: Registry,
    *,
    limit: int | None,
    batch_size: int,
    overwrite: bool,
) -> StoreWriter:
    """A new store, or the one that is there, if it is of the same run."""
    if overwrite or not _is_planned(place):
        plan = make_plan(lambda: source_record(source, limit), extractor, registry, batch_size=batch_size)
        try:
            return StoreWriter.create(place, plan, _index(source, limit), overwrite=overwrite)
        except StoreExistsError:
            if not _is_planned(place):
                raise
    writer = StoreWriter(place)
    check_same_run(writer.manifest, fingerprint(extractor, registry), source, limit, place.uri)
    return writer


def _is_store(place: Place) -> bool:
    with write_errors(place):
        return place.exists(MANIFEST)


def _is_planned(place: Place) -> bool:
    """Whether a store is there whose samples are fixed; elsewhere than on a local path it may not have come so far."""
    return _is_store(place) and bool(place.names(PASSES))


def _index(source: Source, limit: int | None) -> Iterator[Sample]:
    """The samples of a source; raises SourceError where there is none."""
    samples = itertools.islice(source.index(), limit)
    first = next(samples, None)
    if first is None:
        raise SourceError(f"no images found in {source.uri!r}", "at least one sample", "an empty index")
    yield first
    yield from samples


def _opened(
    model: str | ExtractionRequest | Extractor, layers: Any, registry: Registry, fields: Mapping[str, Any]
) -> AbstractContextManager[Extractor]:
    if not isinstance(model, Extractor):
        return create_extractor(model, layers, registry=registry, **fields)
    if layers is not None or fields:
        raise SpecError("an extractor has its request", "extract(source, store, extractor)", "layers or fields besides")
    return nullcontext(model)


def _raises(on_error: str) -> bool:
    if on_error not in ("record", "raise"):
        raise SpecError(f"on_error is {on_error!r}", "'record' or 'raise'", repr(on_error))
    return on_error == "raise"


def _rate(rate: Any) -> float | None:
    if rate is None or (isinstance(rate, int | float) and not isinstance(rate, bool) and 0 <= rate <= 1):
        return rate
    raise SpecError("max_error_rate is out of range", "a share from 0 to 1", repr(rate))


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise SpecError(f"{name} is out of range", "a whole number of at least 1", repr(count))
