"""Several stores of the same run, over different samples, as one."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import numpy as np

from featreg import serialize
from featreg.engine.planning.difference import differences, same_values
from featreg.errors import SpecError, StoreDamagedError, StoreError, StoreFullError, StoreMismatchError
from featreg.spec import Layer
from featreg.stores.check import examine
from featreg.stores.fits import read_fit, write_fit
from featreg.stores.index import Index
from featreg.stores.layout import IndexPart, Pass, SourceRecord, Task
from featreg.stores.places.place import LocalPlace, Place
from featreg.stores.reading.reader import FeatureStore, open_store
from featreg.stores.receipts import Ledger
from featreg.stores.replace import check_free, move_in, temporary_name
from featreg.stores.writer import Plan, StoreWriter

__all__ = ["merge_stores"]

_FITS = "outputs.fits"
"""Where fits came from makes no difference: the layers say which they are."""

SHOWN = 5
"""How many clashing keys an error names."""


def merge_stores(
    out: str | os.PathLike[str],
    stores: Sequence[FeatureStore | str | os.PathLike[str]],
    *,
    prefixes: Sequence[str] | None = None,
    overwrite: bool = False,
) -> FeatureStore:
    """Write the rows of finished stores, in the order given, to a new store; returns it.

    The stores have the same layers, fingerprints and classes, and derived layers the same fits, as ``fit_from`` gives
    them. Rows that failed stay failed. ``prefixes`` has what is put before the keys of each store. Each store is
    verified first: shards and receipts are made anew, and what is damaged would pass for whole after that. One task's
    rows are held in memory at a time, and nine bytes for each key. The new store is written aside and takes its place
    when it is complete; with ``overwrite`` a feature store may be in the way until then.

    Raises StoreMismatchError that names what differs, StoreDamagedError that names a damaged file, StoreError for a
    store with pending rows and for keys that come twice, StoreExistsError for a path that is taken, and SpecError for
    prefixes that do not fit.
    """
    opened = [store if isinstance(store, FeatureStore) else open_store(store) for store in stores]
    if not opened or (prefixes is not None and len(prefixes) != len(opened)):
        raise SpecError(
            "stores and prefixes do not fit",
            "at least one store, and one prefix for each or none",
            f"{len(opened)} stores, {len(prefixes or ())} prefixes",
        )
    parts = [_Part(store, prefix) for store, prefix in zip(opened, prefixes or [""] * len(opened), strict=True)]
    place = check_free(out, overwrite=overwrite)
    _check_alike(opened)
    _check_keys(parts)
    _check_whole(opened)
    with _new_place(place, overwrite=overwrite) as aside:
        _write(aside, parts)
    return FeatureStore(place)


@attrs.frozen
class _Row:
    """A sample of the merged index."""

    key: str
    uri: str
    target: int | None
    size: int | None


class _Part:
    """One of the stores, and what is put before its keys."""

    def __init__(self, store: FeatureStore, prefix: str) -> None:
        self.store = store
        self.prefix = prefix
        self._ledger = Ledger(store.place)

    def samples(self) -> Iterator[_Row]:
        """The index, from one block of it at a time."""
        for block in Index(self.store.place, self.store.manifest.index).blocks():
            for sample in block.to_pylist():
                yield _Row(self.prefix + sample["key"], sample["uri"], sample["target"], sample["size"])

    def errors(self, group: tuple[str, ...], start: int, stop: int) -> Iterator[tuple[int, str]]:
        """The rows from ``start`` to before ``stop`` whose layers of a group failed, and why."""
        for part in self.store.manifest.passes:
            if part.group == group:
                for _, receipt in self._ledger.over(part, start, stop):
                    found = {} if receipt is None else receipt.errors
                    yield from ((int(row), error) for row, error in found.items() if start <= int(row) < stop)


def _write(place: Place, parts: Sequence[_Part]) -> None:
    first, *others = parts[0].store.manifest.groups.values()
    source = _source([part.store for part in parts])
    index = itertools.chain.from_iterable(part.samples() for part in parts)

    def plan(aside: Place, _: Sequence[IndexPart]) -> Plan:
        for fit in parts[0].store.manifest.fits:
            write_fit(aside, read_fit(parts[0].store.place, fit))
        return Plan.of(first, source)

    writer = StoreWriter.create(place, plan, index)
    for group in others:
        writer.add_pass(Plan.of(group, source), 0, writer.manifest.rows)
    for added in writer.manifest.passes:
        for task in added.iter_tasks():
            writer.commit(task, *_rows(parts, added, task))
    writer.finalize()


def _rows(
    parts: Sequence[_Part], added: Pass, task: Task
) -> tuple[Mapping[Layer, np.ndarray[Any, Any]], dict[int, str]]:
    """The features of a task's rows, and the errors of those that failed, from the stores that hold them."""
    features: dict[Layer, list[np.ndarray[Any, Any]]] = {layer.key: [] for layer in added.layers}
    errors: dict[int, str] = {}
    base = 0
    for part in parts:
        start, stop = max(task.start - base, 0), min(task.stop - base, len(part.store))
        if start < stop:
            for layer, blocks in features.items():
                blocks.append(part.store[layer][start:stop])
            errors |= {base + row: error for row, error in part.errors(added.group, start, stop)}
        base += len(part.store)
    return {layer: np.concatenate(blocks) for layer, blocks in features.items()}, errors


def _source(stores: Sequence[FeatureStore]) -> SourceRecord:
    """What the merged rows come from: no source that could be opened again."""
    records = [store.manifest.source for store in stores]
    options = {"sources": [{"kind": record.kind, "uri": record.uri} for record in records]}
    skipped, stray = sum(record.skipped for record in records), sum(record.stray for record in records)
    return SourceRecord("merge:", "merge", records[0].classes, skipped, stray, options)


def _check_alike(stores: Sequence[FeatureStore]) -> None:
    """Raise StoreError where rows are pending, StoreMismatchError where a store is of another run than the first."""
    for store in stores:
        if not store.complete:
            raise StoreError(
                f"{store.summary.pending} of the {len(store)} rows of {store.uri!r} are pending",
                "finished stores",
                remedy="finish it with featreg extract or featreg worker",
            )
        found = _differences(stores[0], store)
        if found:
            lines = "".join(f"\n    {name}: {old!r} there, {new!r} here" for name, (old, new) in found.items())
            raise StoreMismatchError(
                f"the store {store.uri!r} is of another run than {stores[0].uri!r}:{lines}",
                "the same layers, fits, fingerprint and classes in every store",
                f"{len(found)} {'difference' if len(found) == 1 else 'differences'}",
                remedy=_remedy(found, stores[0].uri),
            )


def _remedy(found: Mapping[str, Any], first: str) -> str:
    """What to do where nothing differs but what derived layers have learnt, each for itself."""
    if not all(name.startswith("layers.") and ".fit" in name for name in found):
        return ""
    return f"extract or derive again with what one store has learnt: fit_from={first!r} (--fit-from)"


def _differences(first: FeatureStore, second: FeatureStore) -> dict[str, tuple[Any, Any]]:
    if first.classes != second.classes:
        return {"classes": (first.classes, second.classes)}
    ours, theirs = first.manifest.groups, second.manifest.groups
    if set(ours) != set(theirs):
        return {"layers": (list(ours), list(theirs))}
    found: dict[str, tuple[Any, Any]] = {}
    for group, part in ours.items():
        values = same_values(part.fingerprint, theirs[group].fingerprint)
        found |= {name: pair for name, pair in values.items() if not name.startswith(_FITS)}
        for one, other in zip(part.layers, theirs[group].layers, strict=True):
            fields = differences(serialize.to_dict(one), serialize.to_dict(other))
            found |= {f"layers.{one.key}.{name}": pair for name, pair in fields.items()}
    return found


def _check_whole(stores: Sequence[FeatureStore]) -> None:
    """Raise StoreDamagedError for the first file of a store that is damaged, or that cannot be read."""
    for store in stores:
        for finding in examine(store.place):
            if finding.kind in ("damaged", "unreadable"):
                raise StoreDamagedError(
                    f"the store {store.uri!r} is {finding.kind}",
                    f"{finding.name!r} as it was written",
                    finding.problem,
                    remedy="featreg verify STORE, then featreg repair STORE and featreg worker STORE",
                )


def _check_keys(parts: Sequence[_Part]) -> None:
    """Raise StoreError for keys that come twice: those of two stores, or of one that is given twice."""
    rows = sum(len(part.store) for part in parts)
    samples = itertools.chain.from_iterable(part.samples() for part in parts)
    hashes = np.fromiter(map(_digest, samples), np.uint64, rows)
    hashes.sort()
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    homes: dict[str, set[int]] = {}
    for number, part in enumerate(parts if suspects else ()):
        for sample in part.samples():
            if _digest(sample) in suspects:
                homes.setdefault(sample.key, set()).add(number)
    clashing = [key for key, numbers in homes.items() if len(numbers) > 1]
    if clashing:
        more = f" and {len(clashing) - SHOWN} more" if len(clashing) > SHOWN else ""
        raise StoreError(
            f"{len(clashing)} keys are in more than one store: {', '.join(map(repr, clashing[:SHOWN]))}{more}",
            "each key once",
            remedy="each store once, or prefixes=[...] (--prefix, once for each): what to put before its keys",
        )


def _digest(sample: _Row) -> int:
    return int.from_bytes(hashlib.blake2b(sample.key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


@contextmanager
def _new_place(place: Place, *, overwrite: bool) -> Iterator[Place]:
    """Where to write: a folder aside, which moves in when the block ends; an object store has no aside."""
    if not isinstance(place, LocalPlace):
        yield place
        return
    aside = temporary_name(place.root)
    try:
        yield LocalPlace(aside)
        check_free(place.root, overwrite=overwrite)
        move_in(aside, place.root, overwrite=overwrite)
    except StoreFullError as error:  # nothing that is finished is kept, unlike in a run
        remedy = "make room and merge again; nothing of the new store is left"
        raise StoreFullError(error.problem, error.expected, error.got, remedy=remedy) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
