"""How far a store is, and who says that he is at work on it."""

from __future__ import annotations

import itertools
import json
import os
import socket
from typing import Any

import attrs

from featreg.errors import StoreError
from featreg.spec import Layer
from featreg.stores.layout import WORKERS, Manifest
from featreg.stores.places.place import Place
from featreg.stores.receipts import finished_tasks, read_finish, try_receipts

__all__ = ["SILENT", "PassWork", "Progress", "Worker", "at_work", "progress", "seen", "workers"]

SILENT = 300.0
"""Seconds after which a worker of another machine that says nothing is taken for dead: it speaks after each task."""


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
class PassWork:
    """What one run saw done of a pass: its layers in the rows from ``start`` to before ``stop``.

    ``before`` rows were finished when it began, ``done`` were finished since, by it and by others.
    """

    number: int
    layers: tuple[Layer, ...]
    start: int
    stop: int
    before: int
    done: int


@attrs.frozen
class Worker:
    """What a worker says of itself; no other worker goes by it.

    Times are in seconds since 1970, by the clock of its machine.

    ``rows`` counts what it has committed; ``rate`` are its computed rows per second, those of a task under way too.
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
        tasks = itertools.tee(task for task in part.iter_tasks() if task.number in there)
        for task, receipt in zip(tasks[0], try_receipts(place, tasks[1]), strict=True):
            if isinstance(receipt, StoreError):
                damaged += 1
            elif receipt is not None:
                done += task.rows
                failed += len(receipt.errors)
    try:
        finished = read_finish(place, manifest) is not None
    except StoreError:
        finished = False
    return Progress(rows, done, failed, damaged, finished)


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


def at_work(place: Place, now: float) -> list[Worker]:
    """The workers that seem to be alive ``now``, in seconds since 1970: processes of this machine, and recent signs."""
    return [worker for worker in workers(place) if _is_alive(worker, now)]


def seen(place: Place) -> list[Worker]:
    """The workers but those that are known to be dead: of another machine nobody knows, and its last sign tells."""
    return [worker for worker in workers(place) if not _is_here(worker) or _runs(worker)]


def _is_alive(worker: Worker, now: float) -> bool:
    return _runs(worker) if _is_here(worker) else abs(now - worker.updated) < SILENT


def _is_here(worker: Worker) -> bool:
    return worker.host == socket.gethostname() and os.name == "posix"


def _runs(worker: Worker) -> bool:
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # there, and somebody else's
        return True
    return True
