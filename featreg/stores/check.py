"""Looking at every byte of a store: each document, each receipt, each shard, each row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, TypeAlias

import attrs

from featreg.errors import StoreDamagedError, StoreError
from featreg.stores.frame import frame, says_the_same
from featreg.stores.layout import (
    FINISHED,
    FORMAT,
    MANIFEST,
    RECEIPTS,
    SAMPLES,
    STAGED,
    WORKERS,
    Header,
    IndexPart,
    Manifest,
    Pass,
    Receipt,
    Task,
    pass_name,
)
from featreg.stores.places import Place
from featreg.stores.receipts import count_passes, read_finish, read_header, read_pass, read_receipt
from featreg.stores.tables import iter_samples

__all__ = ["Finding", "Kind", "examine", "intact_pass", "readable_manifest"]

Kind: TypeAlias = Literal["damaged", "pending", "stray"]


@attrs.frozen
class Finding:
    """What is not as it should be with a file of a store.

    ``damaged`` is a file that is missing, torn or changed, ``pending`` what was not done yet, ``stray`` a file that
    belongs to no store and changes nothing. ``task`` is the one whose rows a damage concerns.
    """

    kind: Kind
    name: str
    problem: str
    task: Task | None = None


def examine(place: Place) -> Iterator[Finding]:
    """Everything that is wrong with a store, file by file; nothing at all is said of a finished one that is whole.

    Raises StoreError where there is no store at all, or one of another layout.
    """
    yield from _check_documents(place)
    manifest = readable_manifest(place)
    if manifest is None:
        return
    for samples in manifest.index:
        yield from _check_index(place, samples)
    finished = _is_finished(place, manifest)
    for part in manifest.passes:
        for task in part.iter_tasks():
            yield from _check_task(place, manifest, part, task, finished)
    yield from _check_frame(place, manifest)
    yield from _check_finish(place, manifest)
    yield from _find_strays(place, manifest)


def _check_documents(place: Place) -> Iterator[Finding]:
    try:
        read_header(place)
    except StoreError as error:
        if not count_passes(place):
            raise
        yield Finding("damaged", MANIFEST, error.got or error.problem)
    for number in range(count_passes(place)):
        for copy in (False, True):
            name = pass_name(number, copy=copy)
            try:
                read_pass(place, name)
            except StoreError as error:
                yield Finding("damaged", name, error.got)


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


def _check_index(place: Place, part: IndexPart) -> Iterator[Finding]:
    try:
        if place.sha256(part.name) != part.sha256:
            yield Finding("damaged", part.name, "its checksum is not that of the pass")
    except FileNotFoundError:
        yield Finding("damaged", part.name, "missing")


def _is_finished(place: Place, manifest: Manifest) -> bool:
    try:
        return read_finish(place, manifest) is not None
    except StoreError:
        return False


def _check_task(place: Place, manifest: Manifest, part: Pass, task: Task, finished: bool) -> Iterator[Finding]:
    try:
        receipt = read_receipt(place, task)
    except StoreError as error:
        yield Finding("damaged", task.receipt, error.got, task)
        return
    if receipt is None:
        problem = "missing" if finished else "not done yet"
        yield Finding("damaged" if finished else "pending", task.receipt, f"{problem}: {_rows(task)}", task)
        return
    if set(receipt.shards) != {layer.shard(task) for layer in part.layers} or not _rows_fit(receipt, task):
        yield Finding("damaged", task.receipt, "it does not fit its pass", task)
        return
    for layer in part.layers:
        name = layer.shard(task)
        if any(place.exists(later.receipt) for later in manifest.later(task, layer.array)):
            continue  # a later pass wrote this shard anew, with the rows of this one
        yield from _check_shard(place, name, str(receipt.shards[name]), task)


def _check_shard(place: Place, name: str, expected: str, task: Task) -> Iterator[Finding]:
    try:
        if place.sha256(name) != expected:
            yield Finding("damaged", name, f"its checksum is not that of the receipt: {_rows(task)}", task)
    except FileNotFoundError:
        yield Finding("damaged", name, f"missing: {_rows(task)}", task)


def _rows(task: Task) -> str:
    return f"rows {task.start} to {task.stop - 1}"


def _rows_fit(receipt: Receipt, task: Task) -> bool:
    return all(row.isdigit() and task.start <= int(row) < task.stop for row in receipt.errors)


def _check_frame(place: Place, manifest: Manifest) -> Iterator[Finding]:
    for name, data in frame(manifest).items():
        if not place.exists(name):
            yield Finding("damaged", name, "missing")
        elif not says_the_same(place.read(name), data):
            yield Finding("damaged", name, "it does not describe the layers of the passes")


def _check_finish(place: Place, manifest: Manifest) -> Iterator[Finding]:
    try:
        finish = read_finish(place, manifest)
    except StoreError as error:
        yield Finding("damaged", FINISHED, error.got)
        yield from _check_table(place, manifest)
        return
    if finish is None:
        yield Finding("pending", FINISHED, "the store is not finished")
        yield from _check_table(place, manifest)
        return
    for name, expected in finish.files.items():
        try:
            if place.sha256(name) != expected:
                yield Finding("damaged", name, f"its checksum is not that of {FINISHED}")
        except FileNotFoundError:
            yield Finding("damaged", name, "missing")


def _check_table(place: Place, manifest: Manifest) -> Iterator[Finding]:
    """The sample table of a store that is not finished: it is of earlier passes, or was about to be finished."""
    if place.exists(SAMPLES):
        try:
            for _ in iter_samples(place, manifest):
                pass
        except StoreDamagedError as error:
            if error.problem.startswith(repr(SAMPLES)):
                yield Finding("damaged", SAMPLES, error.got)


def _find_strays(place: Place, manifest: Manifest) -> Iterator[Finding]:
    known = {MANIFEST, SAMPLES, FINISHED, *(part.name for part in manifest.index), *frame(manifest)}
    known |= {pass_name(part.number, copy=copy) for part in manifest.passes for copy in (False, True)}
    counted = list(_counted(manifest))
    at_work = (f"{STAGED}/", f"{WORKERS}/") if not place.exists(FINISHED) else ()
    for name in place.walk():
        if name not in known and not name.startswith(at_work) and not any(_is_one_of(name, *some) for some in counted):
            yield Finding("stray", name, "it belongs to no row and no document")


def _counted(manifest: Manifest) -> Iterator[tuple[re.Pattern[str], int, int]]:
    """What the receipts and the shards are called, and from which to before which number they go."""
    for part in manifest.passes:
        first = part.start // part.task_rows
        receipts = re.compile(rf"{RECEIPTS}/{part.number:04d}/([0-9]{{8,}})\.json")
        yield receipts, first, first + part.count
        for layer in part.layers:
            yield (
                re.compile(rf"{re.escape(layer.array)}/c/([0-9]+){'/0' * len(layer.shape)}"),
                first,
                first + part.count,
            )


def _is_one_of(name: str, pattern: re.Pattern[str], first: int, last: int) -> bool:
    match = pattern.fullmatch(name)
    return match is not None and first <= int(match[1]) < last
