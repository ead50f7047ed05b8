"""Looking at every byte of a store: each document, each receipt, each shard, each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Literal, TypeAlias

import attrs

from featreg.errors import StoreDamagedError, StoreError
from featreg.stores.frame import frame, says_the_same
from featreg.stores.index import BLOCK_ROWS
from featreg.stores.layout import (
    FINISHED,
    FORMAT,
    MANIFEST,
    SAMPLES,
    STAGED,
    Header,
    LayerRecord,
    Manifest,
    Pass,
    Receipt,
    Task,
    pass_name,
)
from featreg.stores.places.oserrors import no_file
from featreg.stores.places.place import Place, read_errors
from featreg.stores.reading.records import evenly
from featreg.stores.receipts import count_passes, read_finish, read_header, read_pass, read_receipt
from featreg.stores.staging import is_superseded, is_whole, staged_shards
from featreg.stores.strays import find_strays
from featreg.stores.tables import Counts, made_samples, table_samples

__all__ = ["Finding", "Kind", "examine", "intact_pass", "readable_manifest"]

Kind: TypeAlias = Literal["damaged", "unreadable", "pending", "stray"]

Waiting: TypeAlias = Mapping[tuple[int, int, str], str]
"""The staged files, by the pass, the task, and the SHA-256 of what is in them."""


@attrs.frozen
class Finding:
    """What is not as it should be with a file of a store.

    ``damaged`` is a file that is missing, torn or changed, ``unreadable`` one that the file system does not give now,
    and may give later, ``pending`` what was not done yet, ``stray`` a file that belongs to no store and changes
    nothing. ``task`` is the one whose rows a damage concerns.
    """

    kind: Kind
    name: str
    problem: str
    task: Task | None = None


def examine(place: Place) -> Iterator[Finding]:
    """Everything that is wrong with a store, file by file; nothing at all is said of a finished one that is whole.

    Raises StoreError where there is no store at all, or one of another layout.
    """
    worst: set[Kind] = set()
    for finding in _examine(place):
        worst.add(finding.kind)
        yield finding
    manifest = readable_manifest(place)
    if manifest is not None and worst.isdisjoint({"damaged", "unreadable", "pending"}):
        yield from _check_rows(place, manifest)


def _examine(place: Place) -> Iterator[Finding]:
    """What is wrong with each file by itself."""
    manifest = readable_manifest(place)
    finished = manifest is not None and _is_finished(place, manifest)
    yield from _check_documents(place, finished=finished)
    if manifest is None:
        return
    for samples in manifest.index:
        yield from _check_file(place, samples.name, samples.sha256, "its checksum is not that of the pass")
    for fit in manifest.fits:
        for name in (fit.name, fit.copy):
            yield from _check_file(place, name, fit.sha256, "its checksum is not that of its name")
    staged = () if finished else staged_shards(place)
    waiting = {(shard.pass_number, shard.task_number, shard.sha256): shard.name for shard in staged}
    for part in manifest.passes:
        for task in part.iter_tasks():
            yield from _check_task(place, manifest, part, task, finished=finished, waiting=waiting)
    yield from _check_frame(place, manifest, finished=finished)
    yield from _check_finish(place, manifest)
    for name in find_strays(place, manifest, finished=finished):
        yield Finding("stray", name, "it belongs to no row and no document")


def _check_documents(place: Place, *, finished: bool) -> Iterator[Finding]:
    try:
        read_header(place)
    except StoreError as error:
        if not count_passes(place):
            raise
        yield _found(MANIFEST, error)
    count = count_passes(place)
    for number in range(count):
        for copy in (False, True):
            name = pass_name(number, copy=copy)
            try:
                read_pass(place, name)
            except StoreError as error:
                if copy and number == count - 1 and not finished and not place.exists(name):
                    yield Finding("pending", name, "not written yet")  # who planned it may not have come so far
                else:
                    yield _found(name, error)


def _found(name: str, error: StoreError, task: Task | None = None) -> Finding:
    cause = error.__cause__
    refused = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError) and not no_file(cause)
    kind: Kind = "unreadable" if refused and not isinstance(error, StoreDamagedError) else "damaged"
    return Finding(kind, name, error.got or error.problem, task)


def readable_manifest(place: Place) -> Manifest | None:
    """The manifest, from the copies of what is damaged; None where a pass and its copy are."""
    passes = []
    for number in range(count_passes(place)):
        part = intact_pass(place, number)
        if part is None:
            return None
        passes.append(part)
    return Manifest(Header(FORMAT, passes[0].featreg), tuple(passes)) if passes else None


def intact_pass(place: Place, number: int) -> Pass | None:
    """A pass, from its document or from the copy of it; None where both are damaged."""
    for copy in (False, True):
        try:
            return read_pass(place, pass_name(number, copy=copy))
        except StoreError:
            continue
    return None


def _check_file(place: Place, name: str, expected: str, problem: str) -> Iterator[Finding]:
    try:
        with read_errors(place, name):
            if place.sha256(name) != expected:
                yield Finding("damaged", name, problem)
    except FileNotFoundError:
        yield Finding("damaged", name, "missing")
    except StoreError as error:
        yield _found(name, error)


def _is_finished(place: Place, manifest: Manifest) -> bool:
    try:
        return read_finish(place, manifest) is not None
    except StoreError:
        return False


def _check_task(
    place: Place, manifest: Manifest, part: Pass, task: Task, *, finished: bool, waiting: Waiting
) -> Iterator[Finding]:
    try:
        receipt = read_receipt(place, task)
    except StoreError as error:
        yield _found(task.receipt, error, task)
        return
    if receipt is None:
        problem = "missing" if finished else "not done yet"
        yield Finding("damaged" if finished else "pending", task.receipt, f"{problem}: {_rows(task)}", task)
        return
    if set(receipt.shards) != {layer.shard(task) for layer in part.layers} or not _rows_fit(receipt, task):
        yield Finding("damaged", task.receipt, "it does not fit its pass", task)
        return
    if not _goes_on(place, manifest, part, task, receipt):
        yield Finding("damaged", task.receipt, f"it goes on with other rows than are before it: {_rows(task)}", task)
        return
    for layer in part.layers:
        name = layer.shard(task)
        staged = waiting.get((task.pass_number, task.number, receipt.shards[name]))
        for finding in _check_shard(place, manifest, layer, task, receipt.shards[name]):
            if staged is not None and is_whole(place, staged, receipt.shards[name]):
                yield Finding("pending", name, f"it waits in {STAGED}/: {_rows(task)}", task)
            else:
                yield finding


def _check_shard(place: Place, manifest: Manifest, layer: LayerRecord, task: Task, expected: str) -> Iterator[Finding]:
    name = layer.shard(task)
    try:
        with read_errors(place, name):
            if is_superseded(place, manifest, task, layer.array):
                return  # a later pass wrote this shard anew, with the rows of this one
            if place.sha256(name) != expected:
                yield Finding("damaged", name, f"its checksum is not that of the receipt: {_rows(task)}", task)
    except FileNotFoundError:
        yield Finding("damaged", name, f"missing: {_rows(task)}", task)
    except StoreError as error:
        yield _found(name, error, task)


def _goes_on(place: Place, manifest: Manifest, part: Pass, task: Task, receipt: Receipt) -> bool:
    """Whether a task went on with the shards that the tasks before it had left, where their receipts can be read."""
    for layer in part.layers:
        before, name = manifest.begun(task, layer.array), layer.shard(task)
        try:
            earlier = None if before is None else read_receipt(place, before)
        except StoreError:
            continue
        if earlier is not None and receipt.begun.get(name) != earlier.shards.get(name):
            return False
    return True


def _rows(task: Task) -> str:
    return f"rows {task.start} to {task.stop - 1}"


def _rows_fit(receipt: Receipt, task: Task) -> bool:
    return all(row.isdigit() and task.start <= int(row) < task.stop for row in receipt.errors)


def _check_frame(place: Place, manifest: Manifest, *, finished: bool) -> Iterator[Finding]:
    planning = len(manifest.passes) > 1 and not finished  # who planned the last pass may not have come so far
    before = frame(attrs.evolve(manifest, passes=manifest.passes[:-1])) if planning else {}
    for name, data in frame(manifest).items():
        try:
            with read_errors(place, name):
                found = place.read(name)
                if name in before and not says_the_same(found, data) and says_the_same(found, before[name]):
                    yield Finding("pending", name, "the last pass is not in it yet")
                elif not says_the_same(found, data):
                    yield Finding("damaged", name, "it does not describe the layers of the passes")
        except FileNotFoundError:
            yield Finding("pending" if planning and name not in before else "damaged", name, "missing")
        except StoreError as error:
            yield _found(name, error)


def _check_finish(place: Place, manifest: Manifest) -> Iterator[Finding]:
    try:
        finish = read_finish(place, manifest)
    except StoreError as error:
        yield _found(FINISHED, error)
        yield from _check_table(place, manifest)
        return
    if finish is None:
        yield Finding("pending", FINISHED, "the store is not finished")
        yield from _check_table(place, manifest)
        return
    for name, expected in finish.files.items():
        yield from _check_file(place, name, expected, f"its checksum is not that of {FINISHED}")


def _check_table(place: Place, manifest: Manifest) -> Iterator[Finding]:
    """The sample table of a store that is not finished: it is of earlier passes, or was about to be finished."""
    try:
        for _ in table_samples(place, manifest) or ():
            pass
    except StoreError as error:
        yield _found(SAMPLES, error)


def _check_rows(place: Place, manifest: Manifest) -> Iterator[Finding]:
    """Whether the sample table of a finished store says what its index and its receipts say, and is counted right."""
    finish, said = read_finish(place, manifest), table_samples(place, manifest)
    if finish is None or said is None:
        return
    counts = Counts()
    for ours, theirs in zip_longest(evenly(made_samples(place, manifest), BLOCK_ROWS), evenly(said, BLOCK_ROWS)):
        if ours is None or theirs is None or not ours.equals(theirs):
            yield Finding("damaged", SAMPLES, "it does not say what the index and the receipts say")
            return
        counts.add(ours)
    if finish != attrs.evolve(finish, rows=manifest.rows, ok=counts.ok, failed=counts.failed):
        yield Finding("damaged", FINISHED, "it does not count the rows of the sample table")
