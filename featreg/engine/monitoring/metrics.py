"""Progress for programs: one JSON object a line, in a file that only grows. The fields: ``docs/metrics.md``."""

from __future__ import annotations

import json
import os
import time
import warnings
from typing import Any

from featreg.engine.monitoring.facts import Facts, peak_memory
from featreg.engine.monitoring.stages import Clock

__all__ = ["EVERY", "FORMAT", "Metrics"]

FORMAT = 1
"""The version of the fields; a field that is added does not change it."""

EVERY = 10.0
"""Seconds between two lines."""


class Metrics:
    """Appends how far a worker is to a file, every :data:`EVERY` seconds and at the end of each pass.

    Each line is written at once, so that several workers may share a file. One that cannot be written is worth a
    warning, and no more.
    """

    def __init__(self, path: str | os.PathLike[str], worker: str, pass_number: int, *, now: Clock = time.time) -> None:
        self._path = os.fspath(path)
        self._fixed = {"worker": worker, "pass": pass_number}
        self._now = now
        self._told = 0.0
        self._broken = False

    def tell(self, facts: Facts) -> None:
        if facts.elapsed - self._told >= EVERY:
            self._told = facts.elapsed
            self._append(self._document(facts, last=False))

    def close(self, facts: Facts) -> None:
        self._append(self._document(facts, last=True))

    def _document(self, facts: Facts, *, last: bool) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "time": self._now(),
            **self._fixed,
            "rows": facts.rows,
            "there": facts.there,
            "done": facts.done,
            "failed": facts.failed,
            "elapsed": facts.elapsed,
            "rate": facts.rate,
            "eta": facts.eta,
            "batch_size": facts.batch_size,
            "seconds": dict(facts.seconds),
            "waited": dict(facts.waited),
            "bottleneck": facts.bottleneck,
            "peak_memory": peak_memory(),
            "last": last,
        }

    def _append(self, document: dict[str, Any]) -> None:
        if self._broken:
            return
        try:
            with open(self._path, "ab", buffering=0) as file:
                file.write(json.dumps(document).encode() + b"\n")
        except (OSError, ValueError) as error:  # ValueError: a NUL, which no file name has
            self._broken = True
            warnings.warn(f"the metrics cannot be written to {self._path!r}, the run goes on: {error}", stacklevel=2)
