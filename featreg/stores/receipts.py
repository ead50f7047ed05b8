"""The receipts and the other documents of a store, read and listed."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from featreg.errors import StoreDeniedError, StoreError
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
from featreg.stores.places import Place

__all__ = [
    "Ledger",
    "count_passes",
    "finished_tasks",
    "read_finish",
    "read_header",
    "read_manifest",
    "read_pass",
    "read_receipt",
]

_PASS = re.compile(r"[0-9]{4}(\.copy)?\.json")


def read_manifest(place: Place) -> Manifest:
    """The passes of a store, in order.

    Raises StoreError where there is no store, where a document is damaged, and for another version of the layout.
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
    """How many passes there are, by their documents or the copies of these."""
    numbers = [int(name[:4]) for name in place.names(PASSES) if _PASS.fullmatch(name)]
    return max(numbers, default=-1) + 1


def read_pass(place: Place, name: str) -> Pass:
    """A pass; raises StoreDamagedError."""
    try:
        part = unseal(Pass, place.read(name), name)
    except FileNotFoundError as error:
        raise damaged(name, "nothing") from error
    if part.number != int(name.rpartition("/")[2][:4]):
        raise damaged(name, f"pass {part.number}")
    return part


def read_header(place: Place) -> Header:
    """``manifest.json``; raises StoreError as :func:`read_manifest` does."""
    try:
        data = place.read(MANIFEST)
    except PermissionError as error:
        raise StoreDeniedError(
            f"the store {place.uri!r} cannot be read", "a folder that may be read", f"PermissionError: {error}"
        ) from error
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        there = place.is_taken()
        raise StoreError(
            f"{place.uri!r} is not a feature store" if there else f"there is no store at {place.uri!r}",
            "a folder that featreg extract wrote",
            f"no {MANIFEST} there" if there else "nothing",
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


def read_receipt(place: Place, task: Task) -> Receipt | None:
    """The receipt of a task, None where it is not finished; raises StoreDamagedError for a damaged one."""
    try:
        data = place.read(task.receipt)
    except FileNotFoundError:
        return None
    receipt = unseal(Receipt, data, task.receipt)
    if (receipt.task, receipt.start, receipt.stop) != (task.number, task.start, task.stop):
        got = f"task {receipt.task}, rows {receipt.start} to {receipt.stop}"
        raise damaged(task.receipt, got, f"task {task.number}, rows {task.start} to {task.stop}")
    return receipt


def finished_tasks(place: Place, part: Pass) -> set[int]:
    """The numbers of the tasks of a pass that have a receipt, by one listing."""
    names = place.names(f"{RECEIPTS}/{part.number:04d}")
    return {int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()}


def read_finish(place: Place, manifest: Manifest) -> Finish | None:
    """``finished.json`` where it covers all passes of a store, else None; raises StoreDamagedError."""
    try:
        finish = unseal(Finish, place.read(FINISHED), FINISHED)
    except FileNotFoundError:
        return None
    return finish if finish.passes == len(manifest.passes) else None


class Ledger:
    """The receipts of a store as they are asked for, the last few kept in memory."""

    def __init__(self, place: Place) -> None:
        self._read = functools.lru_cache(maxsize=8)(functools.partial(read_receipt, place))

    def over(self, part: Pass, start: int, stop: int) -> Iterator[tuple[Task, Receipt | None]]:
        """The tasks of a pass with some rows from ``start`` to before ``stop``, each with its receipt."""
        first, last = max(start, part.start), min(stop, part.stop)
        if first < last:
            base = part.start // part.task_rows
            for number in range(first // part.task_rows, (last - 1) // part.task_rows + 1):
                task = part.task(number - base)
                yield task, self._read(task)
