"""What a run spends its time with, stage by stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias, TypeVar

__all__ = ["LANES", "STAGES", "Clock", "Lane", "Stage", "Stages"]

T = TypeVar("T")

Clock: TypeAlias = Callable[[], float]
"""Seconds since any fixed moment."""

Stage: TypeAlias = Literal["read", "decode", "transfer", "model", "write"]
Lane: TypeAlias = Literal["load", "write"]

STAGES: tuple[Stage, ...] = ("read", "decode", "transfer", "model", "write")
"""In the order in which a sample goes through them."""

LANES: tuple[Lane, ...] = ("load", "write")
"""What goes on in threads beside the loop, and what the loop may have to wait for."""


class Stages:
    """Seconds by stage, added up by all threads of a run, and by lane what the loop waited for it.

    Samples are read and decoded by several threads at once, and a task is written while the next one is computed: the
    stages overlap, and their sum may be more than the time that has passed.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._waited: dict[Lane, float] = dict.fromkeys(LANES, 0.0)

    @property
    def seconds(self) -> dict[Stage, float]:
        """The time spent in each stage, over all threads."""
        with self._lock:
            return dict(self._seconds)

    @property
    def waited(self) -> dict[Lane, float]:
        """The time that the loop waited for a sample to be loaded, and for a task to be written."""
        with self._lock:
            return dict(self._waited)

    @contextmanager
    def timed(self, stage: Stage, within: Stage | None = None) -> Iterator[None]:
        """Count the time of the block for a stage; taken off another one, in which the block lies."""
        started = self.clock()
        try:
            yield
        finally:
            passed = self.clock() - started
            with self._lock:
                self._seconds[stage] += passed
                if within is not None:
                    self._seconds[within] -= passed

    def add(self, seconds: Mapping[Stage, float], waited: Mapping[Lane, float]) -> None:
        """Count what another process has counted."""
        with self._lock:
            for stage, passed in seconds.items():
                self._seconds[stage] += passed
            for lane, passed in waited.items():
                self._waited[lane] += passed

    @contextmanager
    def waiting(self, lane: Lane) -> Iterator[None]:
        """Count the time of the block as waiting."""
        started = self.clock()
        try:
            yield
        finally:
            with self._lock:
                self._waited[lane] += self.clock() - started

    def waited_for(self, lane: Lane, items: Iterator[T]) -> Iterator[T]:
        """The same items; the time until each one is there counts as waiting."""
        while True:
            with self.waiting(lane):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    @property
    def bottleneck(self) -> Stage | None:
        """The stage that a faster run would have to shorten: what the loop mostly did or waited for; None at first."""
        seconds, waited = self.seconds, self.waited
        lanes: dict[tuple[Stage, ...], float] = {
            ("read", "decode"): waited["load"],
            ("transfer", "model"): seconds["transfer"] + seconds["model"],
            ("write",): waited["write"],
        }
        lane = max(lanes, key=lambda stages: lanes[stages])
        slowest: Stage = max(lane, key=lambda stage: seconds[stage])
        return slowest if lanes[lane] > 0 else None
