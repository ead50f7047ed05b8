"""The receipts and the other documents of a store, read and listed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from featreg.errors import StoreError
from featreg.stores.documents import damaged, parse, unseal
from featreg.stores.layout import (
    FINISHED,
    FORMAT,
    MANIFEST,
    PASSES,
    RECEIPTS,
    Finish,
    Header,
    Manifest,
    Pass,
    Receipt,
    Task,
    pass_name,
)
from featreg.stores.numbers import TaskNumbers
from featreg.stores.places.disk import left_aside
from featreg.stores.places.place import LocalPlace, Place, read_errors

__all__ = [
    "Ledger",
    "count_passes",
    "finished_tasks",
    "read_finish",
    "read_header",
    "read_manifest",
    "read_pass",
    "read_receipt",
    "read_receipts",
    "try_receipts",
]

_PASS = re.compile(r"[0-9]{4}(\.copy)?\.json")

_AT_ONCE = 1024
"""How many receipts are read together at most."""


def read_manifest(place: Place) -> Manifest:
    """The passes of a store, in order.

    Raises StoreError where there is no store, where a document is damaged or cannot be read, and for another version of
    the layout.
    """
    header = read_header(place)
    passes = [read_pass(place, pass_name(number)) for number in range(count_passes(place))]
    if not passes:
        raise StoreError(
            f"the store {place.uri!r} was never planned: its making was interrupted",
            f"{pass_name(0)!r}",
            "no pass",
            remedy="the same featreg extract once more",
        )
    return Manifest(header, tuple(passes))


def count_passes(place: Place) -> int:
    """How many passes there are, by their documents or the copies of these.

    A listing may be old, as over a network: what it does not know is asked for by name.
    """
    with read_errors(place, PASSES):
        numbers = [int(name[:4]) for name in place.names(PASSES) if _PASS.fullmatch(name)]
        count = max(numbers, default=-1) + 1
        while place.exists(pass_name(count)):
            count += 1
    return count


def read_pass(place: Place, name: str) -> Pass:
    """A pass; raises StoreDamagedError, and StoreError where it cannot be read."""
    try:
        with read_errors(place, name):
            part = unseal(Pass, place.read(name), name)
    except FileNotFoundError as error:
        raise damaged(name, "nothing") from error
    if part.number != int(name.rpartition("/")[2][:4]):
        raise damaged(name, f"pass {part.number}")
    return part


def read_header(place: Place) -> Header:
    """``manifest.json``; raises StoreError as :func:`read_manifest` does."""
    try:
        with read_errors(place):
            data = _read_header(place)
    except FileNotFoundError as error:
        there, aside = place.is_taken(), _left_aside(place)
        raise StoreError(
            f"{place.uri!r} is not a feature store" if there else f"there is no store at {place.uri!r}",
            "a folder that featreg extract wrote",
            f"no {MANIFEST} there" if there else "nothing",
            remedy=f"one that was to replace it, or gave way, is whole: move {aside!r} there" if aside else "",
        ) from error
    plain = parse(data, MANIFEST)
    if plain.get("format") != FORMAT:
        raise StoreError(
            f"the store {place.uri!r} has another layout",
            f"format {FORMAT}",
            f"format {plain.get('format')!r}, written by featreg {plain.get('featreg')}",
            remedy="open it with the version of featreg that wrote it",
        )
    return unseal(Header, data, MANIFEST)


def _read_header(place: Place) -> bytes:
    try:
        return place.read(MANIFEST)
    except (NotADirectoryError, IsADirectoryError) as error:
        raise FileNotFoundError(str(error)) from error


def _left_aside(place: Place) -> str:
    """A finished store that a run which was killed as it replaced one has left hidden; empty where there is none."""
    found = left_aside(place.root) if isinstance(place, LocalPlace) and not place.is_taken() else []
    return next((str(path) for path in found if (path / FINISHED).is_file()), "")


def read_receipt(place: Place, task: Task) -> Receipt | None:
    """The receipt of a task, None where it is not finished.

    Raises StoreDamagedError for one that is damaged or of another pass, StoreError where it cannot be read.
    """
    [data] = place.read_all([task.receipt])
    return _receipt_of(place, data, task)


def read_receipts(place: Place, tasks: Iterable[Task]) -> Iterator[Receipt | None]:
    """As :func:`read_receipt` for several tasks, in order; at a URL many of them are on the way at once."""
    for found in try_receipts(place, tasks):
        if isinstance(found, StoreError):
            raise found
        yield found


def try_receipts(place: Place, tasks: Iterable[Task]) -> Iterator[Receipt | StoreError | None]:
    """As :func:`read_receipts`, with the error in the place of a receipt that it would be raised for."""
    remaining = iter(tasks)
    while some := list(itertools.islice(remaining, _AT_ONCE)):
        for task, data in zip(some, place.read_all(task.receipt for task in some), strict=True):
            try:
                yield _receipt_of(place, data, task)
            except StoreError as error:
                yield error


def _receipt_of(place: Place, data: bytes | OSError, task: Task) -> Receipt | None:
    if isinstance(data, FileNotFoundError):
        return None
    with read_errors(place, task.receipt):
        if isinstance(data, OSError):
            raise data
        return _receipt(data, task)


def _receipt(data: bytes, task: Task) -> Receipt:
    receipt = unseal(Receipt, data, task.receipt)
    if (receipt.task, receipt.start, receipt.stop) != (task.number, task.start, task.stop):
        got = f"task {receipt.task}, rows {receipt.start} to {receipt.stop}"
        raise damaged(task.receipt, got, f"task {task.number}, rows {task.start} to {task.stop}")
    if receipt.plan != task.plan:
        raise damaged(task.receipt, f"one of a pass {receipt.plan}", f"a receipt of the pass {task.plan}")
    return receipt


def finished_tasks(place: Place, part: Pass) -> TaskNumbers:
    """The numbers of the tasks of a pass that have a receipt, by one listing."""
    names = place.iter_names(f"{RECEIPTS}/{part.number:04d}")
    stems = (name[:-5] for name in names if name.endswith(".json"))
    return TaskNumbers(part.start // part.task_rows, part.count, (int(stem) for stem in stems if stem.isdigit()))


def read_finish(place: Place, manifest: Manifest) -> Finish | None:
    """``finished.json`` where it covers all passes of a store, else None.

    Raises StoreDamagedError, and StoreError where it cannot be read.
    """
    try:
        with read_errors(place, FINISHED):
            finish = unseal(Finish, place.read(FINISHED), FINISHED)
    except FileNotFoundError:
        return None
    return finish if finish.passes == len(manifest.passes) else None


class Ledger:
    """The receipts of a store as they are asked for, those of the last rows kept in memory."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._kept: dict[int, dict[int, Receipt | None]] = {}

    def over(self, part: Pass, start: int, stop: int) -> Iterator[tuple[Task, Receipt | None]]:
        """The tasks of a pass with some rows from ``start`` to before ``stop``, each with its receipt."""
        tasks = list(part.tasks_of(start, stop))
        before = self._kept.get(part.number, {})
        new = [task for task in tasks if task.number not in before]
        found = {task.number: receipt for task, receipt in zip(new, read_receipts(self._place, new), strict=True)}
        kept = {task.number: before.get(task.number) or found.get(task.number) for task in tasks}
        self._kept[part.number] = kept
        return ((task, kept[task.number]) for task in tasks)
