"""Signs of life, for ``featreg status``, and for ``featreg repair``, which waits for nobody to be at work."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time

import attrs

from featreg.engine.monitoring.facts import Facts
from featreg.engine.monitoring.stages import Clock
from featreg.stores.layout import WORKERS
from featreg.stores.places.place import Place
from featreg.stores.progress import Worker

__all__ = ["Heartbeat"]

EVERY = 10.0
"""Seconds between two signs of life."""


class Heartbeat:
    """One worker's sign of life: a small file that says how far it is. A disk that cannot take it is no error.

    It counts rows that have their receipts, and is told the rate of what is computed, also within a task.
    """

    def __init__(self, place: Place, part: tuple[int, int] | None, *, clock: Clock = time.monotonic) -> None:
        self._place = place
        host, now = socket.gethostname(), time.time()
        name = f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
        self._worker = Worker(
            name, host, os.getpid(), None if part is None else f"{part[0]}/{part[1]}", now, now, 0, 0, 0.0
        )
        self._clock = clock
        self._told = clock()
        self._tell()

    @property
    def name(self) -> str:
        """What this worker is called: its machine, its process, and a number drawn for this run."""
        return self._worker.name

    @property
    def rows(self) -> int:
        """How many rows this worker has done."""
        return self._worker.rows

    def beat(self, rows: int, failed: int) -> None:
        """Count finished and failed rows, and tell of them now and then."""
        worker = self._worker
        self._worker = attrs.evolve(worker, rows=worker.rows + rows, failed=worker.failed + failed)
        self._tell_on()

    def tell(self, facts: Facts) -> None:
        """Take over the rate of the pass under way, and tell of it now and then."""
        self._worker = attrs.evolve(self._worker, rate=facts.rate)
        self._tell_on()

    def close(self, facts: Facts) -> None:
        """The pass has ended: another one may follow."""
        self._worker = attrs.evolve(self._worker, rate=facts.rate)

    def stop(self) -> None:
        """Take the sign of life back."""
        try:
            self._place.remove(self._file)
        except OSError:
            return

    @property
    def _file(self) -> str:
        return f"{WORKERS}/{self._worker.name}.json"

    def _tell_on(self) -> None:
        now = self._clock()
        if now - self._told >= EVERY:
            self._told = now
            self._worker = attrs.evolve(self._worker, updated=time.time())
            self._tell()

    def _tell(self) -> None:
        try:
            self._place.write(self._file, json.dumps(attrs.asdict(self._worker)).encode())
        except OSError:
            return
