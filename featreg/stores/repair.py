"""Mending a store: what can be made anew is, and the tasks of what cannot are planned again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import attrs

from featreg.errors import StoreDamagedError
from featreg.stores.check import Finding, examine, intact_pass, readable_manifest
from featreg.stores.documents import seal
from featreg.stores.frame import frame, refresh_frame
from featreg.stores.index import IndexRow, write_index
from featreg.stores.layout import FINISHED, INDEX, MANIFEST, PASSES, SAMPLES, IndexPart, Manifest, Task, pass_name
from featreg.stores.places import Place, write_errors
from featreg.stores.receipts import count_passes, read_receipt

__all__ = ["Repair", "repair"]

Reindex = Callable[[IndexPart], Iterable[IndexRow]]


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


def repair(place: Place, *, retry_failed: bool = False, reindex: Reindex | None = None) -> Repair:
    """Mend what :func:`~featreg.stores.check.examine` finds; no worker may be at work meanwhile.

    Documents and metadata are made anew. A task with a damaged shard or receipt loses its receipt, so that the next run
    does it again; with ``retry_failed`` so does every task with a failed row. ``reindex`` gives the samples of a
    damaged part of the index, which must be those that it held.

    Raises StoreDamagedError where a pass is lost together with its copy, or an index cannot be had again.
    """
    done = Repair()
    findings = [finding for finding in examine(place) if finding.kind != "pending"]
    manifest = readable_manifest(place)
    if manifest is None:
        raise StoreDamagedError(
            f"the store {place.uri!r} cannot be mended",
            f"every pass in {PASSES}/, or its copy",
            "a pass that is lost together with its copy",
            remedy="extract again",
        )
    with write_errors(place):
        _restore_documents(place, manifest, findings, done)
        _restore_index(place, manifest, findings, reindex, done)
        tasks = {finding.task: None for finding in findings if finding.task is not None}
        if retry_failed:
            tasks |= dict.fromkeys(_failed(place, manifest, set(tasks)))
        _replan(place, manifest, list(tasks), findings, done)
        _remove_strays(place, manifest, findings, done)
    return done


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
                remedy="give the source as it was, or extract again",
            )
        done.restored.append(part.name)


def _failed(place: Place, manifest: Manifest, broken: set[Task]) -> Iterator[Task]:
    for task in manifest.iter_tasks():
        if task not in broken:
            receipt = read_receipt(place, task)
            if receipt is not None and receipt.errors:
                yield task


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
    """The tasks, and all others that have a shard in common with one of them, the latest first."""
    found = set(tasks)
    for task in tasks:
        for part in manifest.passes:
            sharing = set(part.group) & set(manifest.passes[task.pass_number].group)
            place = task.number - part.start // part.task_rows
            if sharing and 0 <= place < part.count:
                found.add(part.task(place))
    return sorted(found, key=lambda task: (-task.pass_number, task.number))


def _remove_strays(place: Place, manifest: Manifest, findings: list[Finding], done: Repair) -> None:
    """Delete strays from the folders that are ours; a file of yours beside them stays."""
    own = tuple(f"{folder}/" for folder in (INDEX, PASSES, "receipts", "staged", "workers"))
    own += tuple(f"{layer.array}/" for layer in manifest.layers)
    for finding in findings:
        if finding.kind == "stray" and finding.name.startswith(own):
            place.remove(finding.name)
            done.removed.append(finding.name)
