"""Mending a store: what can be made anew is, and the tasks of what cannot are planned again."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator

import attrs

from featreg.derived import FittedRecipe
from featreg.errors import FeatregError, StoreDamagedError, StoreError
from featreg.stores.check import Finding, examine, intact_pass, readable_manifest
from featreg.stores.documents import seal
from featreg.stores.fits import fit_record, restore_fit, write_fit
from featreg.stores.frame import frame, refresh_frame
from featreg.stores.index import IndexRow, write_index
from featreg.stores.layout import (
    FINISHED,
    FITS,
    INDEX,
    MANIFEST,
    PASSES,
    RECEIPTS,
    SAMPLES,
    STAGED,
    WORKERS,
    FitRecord,
    IndexPart,
    LayerRecord,
    Manifest,
    Pass,
    Task,
    pass_name,
)
from featreg.stores.places.place import Place, write_errors
from featreg.stores.progress import at_work
from featreg.stores.receipts import count_passes, read_receipts
from featreg.stores.retries import note_retries

__all__ = ["Repair", "repair"]

Reindex = Callable[[IndexPart], Iterable[IndexRow]]
Refit = Callable[[Pass, LayerRecord], FittedRecipe | None]


@attrs.define
class Repair:
    """What was done to a store: the files that were made anew or deleted, and the tasks that have to be done again."""

    restored: list[str] = attrs.field(factory=list)
    removed: list[str] = attrs.field(factory=list)
    replanned: list[Task] = attrs.field(factory=list)

    @property
    def rows(self) -> int:
        """How many rows have to be done again."""
        return sum(task.rows for task in self.replanned)


def repair(
    place: Place,
    *,
    retry_failed: bool = False,
    reindex: Reindex | None = None,
    refit: Refit | None = None,
    force: bool = False,
    clock: Callable[[], float] = time.time,
) -> Repair:
    """Mend what :func:`~featreg.stores.check.examine` finds; no worker may be at work meanwhile.

    Documents and metadata are made anew. A task with a damaged shard or receipt loses its receipt, so that the next run
    does it again; with ``retry_failed`` so does every task with a failed row, whose file is taken as it is by now.
    ``reindex`` gives the samples of a damaged part of the index, which must be those that it held; ``refit`` learns
    again what a derived layer has learnt, if it can, where the fit is lost together with its copy, and must find the
    same.

    Raises StoreDamagedError where a pass is lost together with its copy, or an index or a fit cannot be had again, and
    StoreError where files cannot be read for another reason than damage, and where workers are at work, by ``clock``
    and unless with ``force``.
    """
    done = Repair()
    if not force:
        _check_alone(place, clock())
    findings = [finding for finding in examine(place) if finding.kind != "pending"]
    _check_readable(place, findings)
    manifest = readable_manifest(place)
    if manifest is None:
        raise StoreDamagedError(
            f"the store {place.uri!r} cannot be mended",
            f"every pass in {PASSES}/, or its copy",
            "a pass that is lost together with its copy",
            remedy="extract again",
        )
    with write_errors(place):
        _remove_folders(place, findings, done)
        _restore_documents(place, manifest, findings, done)
        _restore_index(place, manifest, findings, reindex, done)
        tasks = {finding.task: None for finding in findings if finding.task is not None}
        if retry_failed:
            for task, rows in list(_failed(place, manifest, set(tasks))):
                note_retries(place, task, rows)
                tasks[task] = None
        _restore_fits(place, manifest, findings, refit, done)
        _replan(place, manifest, list(tasks), findings, done)
        _remove_strays(place, manifest, findings, done)
    return done


def _check_alone(place: Place, now: float) -> None:
    busy = at_work(place, now)
    if busy:
        raise StoreError(
            f"{len(busy)} workers are at work on the store {place.uri!r}",
            "a store that nobody works on",
            ", ".join(f"{one.host}, process {one.pid}" for one in busy[:5]),
            remedy="stop them first; where they are dead, force=True (--force)",
        )


def _check_readable(place: Place, findings: list[Finding]) -> None:
    unreadable = [finding for finding in findings if finding.kind == "unreadable"]
    if unreadable:
        raise StoreError(
            f"{len(unreadable)} files of the store {place.uri!r} cannot be read: that does not make them damaged",
            "files that may be read",
            f"{unreadable[0].name!r}: {unreadable[0].problem}",
            remedy="look at their rights, the disk and the network",
        )


def _remove_folders(place: Place, findings: list[Finding], done: Repair) -> None:
    """Make room where a folder is in the place of a file; what lies in it, and belongs to no row, goes as well."""
    damaged = [finding.name for finding in findings if finding.kind == "damaged"]
    strays = [finding.name for finding in findings if finding.kind == "stray"]
    for name in damaged:
        for stray in strays:
            if stray.startswith(f"{name}/"):
                place.remove(stray)
                done.removed.append(stray)
        place.remove_folder(name)


def _restore_documents(place: Place, manifest: Manifest, findings: list[Finding], done: Repair) -> None:
    damaged = {finding.name for finding in findings if finding.kind == "damaged"}
    if MANIFEST in damaged:
        place.write(MANIFEST, seal(manifest.header))
        done.restored.append(MANIFEST)
    for number in range(count_passes(place)):
        for name in {pass_name(number), pass_name(number, copy=True)} & damaged:
            place.write(name, seal(intact_pass(place, number)))
            done.restored.append(name)
    torn = damaged & set(frame(manifest))
    for name in torn:
        place.remove(name)
    refresh_frame(place, manifest)
    done.restored += sorted(torn)


def _restore_index(
    place: Place, manifest: Manifest, findings: list[Finding], reindex: Reindex | None, done: Repair
) -> None:
    damaged = {finding.name for finding in findings if finding.kind == "damaged"}
    for part in manifest.index:
        if part.name not in damaged:
            continue
        number = int(part.name.removeprefix(f"{INDEX}/")[:4])
        made = None if reindex is None else write_index(place, number, part.start, reindex(part))
        if made != part:
            if made is not None and made.name != part.name:
                place.remove(made.name)
            raise StoreDamagedError(
                f"{part.name!r} cannot be mended",
                "a source that gives the same samples again",
                "no source" if made is None else f"another index, of {made.stop - made.start} samples",
                remedy="give the source as it was, with the version of pyarrow that wrote the index; or extract again",
            )
        done.restored.append(part.name)


def _restore_fits(place: Place, manifest: Manifest, findings: list[Finding], refit: Refit | None, done: Repair) -> None:
    damaged = {finding.name for finding in findings if finding.kind == "damaged"}
    for part in manifest.passes:
        for layer in part.layers:
            fit = layer.fit
            lost = set() if fit is None else {fit.name, fit.copy} & damaged - set(done.restored)
            if fit is None or not lost:
                continue
            if not restore_fit(place, fit):
                _learn_again(place, part, layer, fit, refit)
            done.restored += sorted(lost)


def _learn_again(place: Place, part: Pass, layer: LayerRecord, fit: FitRecord, refit: Refit | None) -> None:
    found: FittedRecipe | None = None
    cause: FeatregError | None = None
    try:
        found = None if refit is None else refit(part, layer)
    except FeatregError as error:
        cause = error
    made = None if found is None else fit_record(found)
    if found is None or made != fit:
        raise StoreDamagedError(
            f"{fit.name!r} cannot be mended, with which the layer {layer.key!r} was derived",
            "its copy, or the rows and the versions that it was learnt from",
            "neither it nor its copy" if made is None else f"another fit, {made.sha256}",
            remedy="put the file there from another store that has it; the rows that are done stay as they are",
        ) from cause
    write_fit(place, found)


def _failed(place: Place, manifest: Manifest, broken: set[Task]) -> Iterator[tuple[Task, list[int]]]:
    """The tasks with failed rows, and those rows."""
    tasks = itertools.tee(task for task in manifest.iter_tasks() if task not in broken)
    for task, receipt in zip(tasks[0], read_receipts(place, tasks[1]), strict=True):
        if receipt is not None and receipt.errors:
            yield task, list(map(int, receipt.errors))


def _replan(place: Place, manifest: Manifest, tasks: list[Task], findings: list[Finding], done: Repair) -> None:
    """Delete the receipts of tasks, and those of later passes that wrote into the same shards.

    What speaks of the whole goes first, so that a repair that is killed leaves an unfinished store.
    """
    whole = [finding.name for finding in findings if finding.kind == "damaged" and finding.task is None]
    again = _with_sharers(manifest, tasks)
    if again or whole:
        for name in (FINISHED, SAMPLES):
            place.remove(name)
        done.removed += sorted({FINISHED, SAMPLES} & set(whole))
    for task in again:
        place.remove(task.receipt)
        done.replanned.append(task)
    for finding in findings:
        if finding.task is not None and finding.name != finding.task.receipt:
            place.remove(finding.name)
            done.removed.append(finding.name)


def _with_sharers(manifest: Manifest, tasks: list[Task]) -> list[Task]:
    """The tasks, and all that have a shard in common with one of them or derive its rows, the latest first."""
    found, waiting = set(tasks), list(tasks)
    while waiting:
        for task in {*_involved(manifest, waiting.pop())} - found:
            found.add(task)
            waiting.append(task)
    return sorted(found, key=lambda task: (-task.pass_number, task.number))


def _involved(manifest: Manifest, task: Task) -> Iterator[Task]:
    """The tasks that write into the same shards, and those that derive layers from these rows."""
    ours = manifest.passes[task.pass_number]
    for part in manifest.passes:
        position = task.number - part.start // part.task_rows
        if set(part.group) & set(ours.group) and 0 <= position < part.count:
            yield part.task(position)
        elif part.origin == "store" and {given.key for given in part.inputs} & {layer.key for layer in ours.layers}:
            yield from part.tasks_of(task.start, task.stop)


def _remove_strays(place: Place, manifest: Manifest, findings: list[Finding], done: Repair) -> None:
    """Delete strays from the folders that are ours; a file of yours beside them stays."""
    own = tuple(f"{folder}/" for folder in (FITS, INDEX, PASSES, RECEIPTS, STAGED, WORKERS))
    own += tuple(f"{layer.array}/" for layer in manifest.layers)
    for finding in findings:
        if finding.kind == "stray" and finding.name.startswith(own):
            place.remove(finding.name)
            done.removed.append(finding.name)
