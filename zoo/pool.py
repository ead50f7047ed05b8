"""Worker processes that may die: every task has an outcome, whatever its worker does.

``concurrent.futures`` gives up the whole pool when a process is killed, and cannot end one task that takes too long.
Here each worker holds one task at a time over a pipe of its own, so that its end is the end of that task alone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Literal, TypeVar

import attrs
import psutil

__all__ = ["Limits", "Lost", "Outcome", "run_tasks"]

T = TypeVar("T")
R = TypeVar("R")
_TICK = 0.5
_GRACE = 10
_PATIENCE = 4
_SPAWN = multiprocessing.get_context("spawn")  # frameworks with threads of their own do not survive a fork


@attrs.frozen
class Limits:
    """What one worker may use. ``seconds`` and ``gibibytes`` are per task, ``tasks`` the age at which it is replaced.

    Seconds are of CPU time, so that a busy machine changes no outcome; four times as many may pass by the clock. A
    worker that holds more than half of ``gibibytes`` after a task is replaced as well.
    """

    workers: int = 2
    seconds: float = 300.0
    gibibytes: float = 5.5
    tasks: int = 100


@attrs.frozen
class Lost:
    """A task whose worker did not come back."""

    kind: Literal["timeout", "memory", "crash"]
    detail: str


@attrs.frozen
class Outcome(Generic[T, R]):
    """What became of a task: what the work returned, or how it was lost. ``peak`` is the worker's memory in bytes."""

    task: T
    result: R | Lost
    peak: int = 0


def run_tasks(
    work: Callable[[T], R],
    tasks: Sequence[T],
    limits: Limits = Limits(),
    *,
    group: Callable[[T], Any] = lambda task: None,
    deadline: float | None = None,
) -> Iterator[Outcome[T, R]]:
    """Yield an outcome for each task as they finish; ``work`` must be importable, tasks and results pickle.

    A worker is replaced where the ``group`` of its tasks changes. After ``deadline`` (of ``time.monotonic``) no task is
    started. An exception of ``work`` ends its worker and counts as a crash.
    """
    waiting = list(reversed(tasks))
    crew: list[_Worker[T, R]] = [_Worker(work, limits) for _ in range(min(limits.workers, len(tasks)))]
    try:
        while True:
            for worker in crew:
                open_for_more = deadline is None or time.monotonic() < deadline
                if worker.idle and waiting and open_for_more:
                    task = waiting.pop()
                    worker.start(task, group(task))
            busy = [worker for worker in crew if not worker.idle]
            if not busy:
                return
            wait([worker.pipe for worker in busy], timeout=_TICK)
            for worker in busy:
                outcome = worker.poll()
                if outcome is not None:
                    yield outcome
    finally:
        for worker in crew:
            worker.stop()


class _Worker(Generic[T, R]):
    """One place in the crew; the process behind it changes."""

    def __init__(self, work: Callable[[T], R], limits: Limits) -> None:
        self._work = work
        self._limits = limits
        self._process: Any = None
        self._done = 0
        self._group: Any = None
        self._task: T | None = None
        self._peak = 0
        self._began = self._used = 0.0
        self.idle = True

    def start(self, task: T, group: Any) -> None:
        worn = self._done >= self._limits.tasks or self._memory() > self._limits.gibibytes * 2**30 / 2
        if self._process is not None and (worn or group != self._group):
            self.stop()
        if self._process is None:
            self.pipe, end = _SPAWN.Pipe()
            self._process = _SPAWN.Process(target=_serve, args=(self._work, end), daemon=True)
            self._process.start()
            end.close()  # so that the worker's death is the end of the pipe
            self._done, self._group = 0, group
        self._task, self._peak, self.idle = task, 0, False
        self._began, self._used = time.monotonic(), self._cpu()
        with contextlib.suppress(OSError):  # it died while it waited: polling says so
            self.pipe.send(task)

    def poll(self) -> Outcome[T, R] | None:
        """The outcome of the task, if there is one by now."""
        self._peak = max(self._peak, self._memory())
        result: R | Lost
        if self.pipe.poll():
            try:
                result = self.pipe.recv()
                self._done += 1
            except (EOFError, OSError):
                result = self._crashed()
        elif self._peak > self._limits.gibibytes * 2**30:
            result = self._killed("memory", f"more than {self._limits.gibibytes:g} GiB")
        elif self._is_late():
            result = self._killed("timeout", f"more than {self._limits.seconds:g} seconds")
        else:
            return None
        assert self._task is not None
        outcome: Outcome[T, R] = Outcome(self._task, result, self._peak)
        self._task, self.idle = None, True
        return outcome

    def stop(self) -> None:
        """End the process: kindly while it waits for a task, else at once."""
        if self._process is not None:
            if self.idle:
                with contextlib.suppress(OSError):
                    self.pipe.send(None)
            self._end(_GRACE if self.idle else 0)

    def _end(self, grace: float = 0) -> int | None:
        """Wait for the process to end by itself for ``grace`` seconds, then kill it; its exit code."""
        self._process.join(grace)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        code: int | None = self._process.exitcode
        self.pipe.close()
        self._process = None
        return code

    def _crashed(self) -> Lost:
        return Lost("crash", f"the worker ended with exit code {self._end(_GRACE)}")

    def _killed(self, kind: Literal["timeout", "memory"], detail: str) -> Lost:
        self._end()
        return Lost(kind, detail)

    def _is_late(self) -> bool:
        passed, used = time.monotonic() - self._began, self._cpu() - self._used
        return used > self._limits.seconds or passed > _PATIENCE * self._limits.seconds

    def _cpu(self) -> float:
        try:
            return float(sum(psutil.Process(self._process.pid).cpu_times()[:2]))
        except psutil.Error:
            return self._used

    def _memory(self) -> int:
        if self._process is None:
            return 0
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:
            return 0


def _serve(work: Callable[[Any], Any], pipe: Connection) -> None:
    while True:
        try:
            task = pipe.recv()
        except EOFError:  # the parent is gone
            return
        if task is None:
            return
        pipe.send(work(task))
