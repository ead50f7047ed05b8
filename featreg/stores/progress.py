"""How far a store is, and who says that he is at work on it."""

from __future__ import annotations

import json
from typing import Any

import attrs

from featreg.errors import StoreError
from featreg.stores.layout import WORKERS, Manifest, Task
from featreg.stores.places import Place
from featreg.stores.receipts import finished_tasks, read_finish, read_receipt

__all__ = ["Progress", "Worker", "progress", "workers"]


@attrs.frozen
class Progress:
    """How many rows are done and how many of these failed, over all passes: a row counts once for each.

    ``damaged`` counts receipts that cannot be read.
    """

    rows: int
    done: int
    failed: int
    damaged: int
    finished: bool

    @property
    def left(self) -> int:
        return self.rows - self.done


@attrs.frozen
class Worker:
    """What a worker says of itself, for information only. Times are in seconds since 1970, by the clock of its machine.

    ``rows`` counts what it has done, ``rate`` are its rows per second.
    """

    name: str
    host: str
    pid: int
    part: str | None
    started: float
    updated: float
    rows: int
    failed: int
    rate: float


def progress(place: Place, manifest: Manifest) -> Progress:
    """How far the passes of a store are, from the receipts; raises StoreDamagedError."""
    rows = sum(part.stop - part.start for part in manifest.passes)
    done = failed = damaged = 0
    for part in manifest.passes:
        there = finished_tasks(place, part)
        for task in part.iter_tasks():
            if task.number in there:
                try:
                    failed += _failed(place, task)
                    done += task.rows
                except StoreError:
                    damaged += 1
    try:
        finished = read_finish(place, manifest) is not None
    except StoreError:
        finished = False
    return Progress(rows, done, failed, damaged, finished)


def _failed(place: Place, task: Task) -> int:
    receipt = read_receipt(place, task)
    return 0 if receipt is None else len(receipt.errors)


def workers(place: Place) -> list[Worker]:
    """The workers that have left a sign of life and not taken it back; a killed one cannot."""
    found = []
    for name in place.names(WORKERS):
        try:
            plain: dict[str, Any] = json.loads(place.read(f"{WORKERS}/{name}"))
            found.append(Worker(**plain))
        except (OSError, ValueError, TypeError):  # gone, or half of it: it is information only
            continue
    return found
