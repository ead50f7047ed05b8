"""Completing a store: whatever of its passes has no receipt yet, by as many workers as are started."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Literal, Protocol

import attrs

from featreg.engine.derivation import derive_tasks
from featreg.engine.loop.options import Options
from featreg.engine.loop.worker import Committed, run_tasks
from featreg.engine.monitoring.facts import Teller
from featreg.engine.monitoring.heartbeat import Heartbeat
from featreg.engine.monitoring.metrics import Metrics
from featreg.engine.monitoring.monitor import Monitor
from featreg.engine.monitoring.progress import progress_teller
from featreg.engine.planning.difference import refuse, same_model
from featreg.engine.planning.estimate import estimate_store
from featreg.engine.planning.fingerprint import fingerprint
from featreg.engine.planning.plan import check_part, task_order
from featreg.errors import ErrorRateError, StoreExistsError
from featreg.extractor import Extractor, create_extractor
from featreg.registry import Registry
from featreg.sources import Source
from featreg.spec import ExtractionRequest
from featreg.stores.layout import Pass, Task
from featreg.stores.places.place import Place
from featreg.stores.progress import PassWork
from featreg.stores.reading.reader import FeatureStore
from featreg.stores.receipts import finished_tasks, read_receipts
from featreg.stores.staging import place_staged
from featreg.stores.writer import Plan, StoreWriter

__all__ = ["MAX_THREADS", "DoTasks", "Run", "Work", "complete", "do_tasks_here"]

MAX_THREADS = 8
"""The most threads that decode by default: beyond, Pillow's share of the interpreter lock leaves nothing to gain."""


@attrs.frozen
class Run:
    """How one worker goes about it: see :func:`~featreg.extract`."""

    batch_size: int | Literal["auto"] | None = None
    num_workers: int | None = None
    part: tuple[int, int] | None = attrs.field(default=None, converter=check_part)
    seed: int | None = None
    raise_errors: bool = False
    max_error_rate: float | None = None
    progress: bool = False
    metrics: str | os.PathLike[str] | None = None

    def options(self, part: Pass) -> Options:
        """How a pass is gone through: with the batches that it was begun with, where no number is asked for."""
        threads = self.num_workers or min(MAX_THREADS, _cpus())
        asked = self.batch_size if isinstance(self.batch_size, int) else None
        return Options(asked or part.batch_size, threads, self.raise_errors)

    def monitor(self, part: Pass, done: Collection[int], heart: Heartbeat) -> Monitor:
        """What counts the rows of a pass, of whose tasks those in ``done`` are done, and tells of them as asked for."""
        rows = part.stop - part.start
        there = sum(task.rows for task in part.iter_tasks() if task.number in done)
        tellers: list[Teller] = [heart, *([progress_teller(rows, there)] if self.progress else [])]
        if self.metrics is not None:
            tellers.append(Metrics(self.metrics, heart.name, part.number))
        return Monitor(rows, there, batch_size=self.options(part).batch_size, tellers=tellers)


@attrs.frozen
class Work:
    """What models and sources a run has at hand."""

    source: Source
    registry: Registry
    extractor: Extractor | None = None
    device: str | None = None

    @contextmanager
    def opened(self, part: Pass) -> Iterator[Extractor]:
        """The extractor of a pass: the one at hand, or one that is opened from the store's request.

        Raises StoreMismatchError where it would make other values than the pass was begun with.
        """
        at_hand = self.extractor
        if at_hand is not None and not same_model(part.fingerprint, fingerprint(at_hand, self.registry)):
            yield at_hand
            return
        with create_extractor(_on(part.request, self.device), registry=self.registry) as extractor:
            refuse(
                same_model(part.fingerprint, fingerprint(extractor, self.registry)),
                f"this machine cannot go on with pass {part.number} of the store",
                "the versions of the store on this machine, or extract again",
            )
            yield extractor


class DoTasks(Protocol):
    """Does the tasks of a pass but those in ``done``, by their numbers; tells ``committed`` of each with a receipt."""

    def __call__(
        self,
        writer: StoreWriter,
        part: Pass,
        work: Work,
        run: Run,
        *,
        done: Collection[int],
        committed: Committed,
        monitor: Monitor,
    ) -> None: ...


def complete(
    writer: StoreWriter,
    work: Work,
    run: Run,
    do_tasks: DoTasks | None = None,
    *,
    only: Callable[[Pass], bool] = lambda _: True,
) -> FeatureStore:
    """Do every task that has no receipt, then finalize the store.

    ``do_tasks`` does those of a pass, in this process where it is None. Of the passes are done those for which ``only``
    is true; the store may be unfinished then.

    Raises ErrorRateError, StoreFullError where it is clear before that the disk has not the room, and whatever stops a
    task; what is finished is kept.
    """
    before = _rows_done(writer)
    started = time.perf_counter()
    done = 0
    while True:
        _cover_all_rows(writer)
        done += _run_passes(writer, work, run, do_tasks or do_tasks_here, only)
        finish = writer.finalize_if_complete()
        if finish is not None:
            _check_rate(finish.failed, finish.rows, run.max_error_rate)
            break
        if not _left(writer, only) and _left(writer):  # else somebody has added something meanwhile
            break
    seconds = time.perf_counter() - started
    return FeatureStore(
        writer.place,
        seconds=seconds if done else None,
        done=done,
        done_before=sum(before.values()),
        worked=_worked(writer, before),
    )


def _worked(writer: StoreWriter, before: Mapping[int, int]) -> tuple[PassWork, ...]:
    """The passes that rows were finished of since each had so many as ``before`` says."""
    now = _rows_done(writer)
    return tuple(
        PassWork(part.number, tuple(layer.key for layer in part.layers), part.start, part.stop, there, done)
        for part in writer.manifest.passes
        for there in [before.get(part.number, 0)]
        if (done := now[part.number] - there)
    )


def _left(writer: StoreWriter, only: Callable[[Pass], bool] = lambda _: True) -> list[Pass]:
    """The passes with tasks that have no receipt."""
    passes = filter(only, writer.manifest.passes)
    return [part for part in passes if len(finished_tasks(writer.place, part)) < part.count]


def _run_passes(writer: StoreWriter, work: Work, run: Run, do_tasks: DoTasks, only: Callable[[Pass], bool]) -> int:
    """Do what is left of the passes; how many rows this run has done itself, and nobody else."""
    left = _left(writer, only)
    if not left:
        return 0
    writer.check_writable()
    estimate_store(writer.place, writer.manifest, left).check_room()
    place_staged(writer.place)
    heart = Heartbeat(writer.place, run.part)
    try:
        for part in left:
            done = finished_tasks(writer.place, part)
            if len(done) < part.count:
                _run_pass(writer, part, work, run, heart, done=done, do_tasks=do_tasks)
    finally:
        heart.stop()
    return heart.rows


def do_tasks_here(
    writer: StoreWriter,
    part: Pass,
    work: Work,
    run: Run,
    *,
    done: Collection[int],
    committed: Committed,
    monitor: Monitor,
) -> None:
    """Do the tasks of a pass that are not among ``done``, in this process."""
    with work.opened(part) as extractor:
        run_tasks(
            _tasks(part, run, done),
            work.source,
            extractor,
            writer,
            run.options(part),
            committed=committed,
            monitor=monitor,
        )


def _derive_tasks_here(
    writer: StoreWriter,
    part: Pass,
    work: Work,
    run: Run,
    *,
    done: Collection[int],
    committed: Committed,
    monitor: Monitor,
) -> None:
    """Do the tasks of a pass whose layers are derived from others of the store: without a model or a source."""
    for task, failed, own in derive_tasks(writer, part, _tasks(part, run, done), run.options(part)):
        committed(task, failed, own)


def _tasks(part: Pass, run: Run, done: Collection[int]) -> Iterator[Task]:
    """The tasks of a pass that are not among ``done``, in the order of this run."""
    return (task for task in map(part.task, task_order(part.count, run.part, run.seed)) if task.number not in done)


def _run_pass(
    writer: StoreWriter,
    part: Pass,
    work: Work,
    run: Run,
    heart: Heartbeat,
    *,
    done: Collection[int],
    do_tasks: DoTasks,
) -> None:
    failures = 0 if run.max_error_rate is None else _failures(writer.place, part, done)
    _check_rate(failures, part.stop - part.start, run.max_error_rate)

    def committed(task: Task, failed: int, own: bool) -> None:
        nonlocal failures
        monitor.committed(task.rows, failed)
        failures += failed
        if own:
            heart.beat(task.rows, failed)
        _check_rate(failures, part.stop - part.start, run.max_error_rate)

    with run.monitor(part, done, heart) as monitor:
        do_those = do_tasks if part.origin == "model" else _derive_tasks_here
        do_those(writer, part, work, run, done=done, committed=committed, monitor=monitor)


def _failures(place: Place, part: Pass, done: Collection[int]) -> int:
    """How many rows have failed in the tasks of a pass that are done."""
    receipts = read_receipts(place, (task for task in part.iter_tasks() if task.number in done))
    return sum(len(receipt.errors) for receipt in receipts if receipt is not None)


def _cover_all_rows(writer: StoreWriter) -> None:
    """Plan what an append that was killed has left out: each group of layers has all rows."""
    while short := [part for part in writer.manifest.groups.values() if part.stop < writer.manifest.rows]:
        part = short[0]
        plan = Plan.of(part, writer.manifest.source)
        with suppress(StoreExistsError):  # another worker has planned it, and the manifest is read anew
            writer.add_pass(plan, part.stop, writer.manifest.rows)


def _rows_done(writer: StoreWriter) -> dict[int, int]:
    """The rows that each pass has done already, by its number."""
    return {
        part.number: sum(task.rows for task in part.iter_tasks() if task.number in done)
        for part in writer.manifest.passes
        for done in [finished_tasks(writer.place, part)]
    }


def _cpus() -> int:
    """The processors that this process may use: fewer than the machine has, in a job of a cluster."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _check_rate(failed: int, rows: int, most: float | None) -> None:
    if most is not None and failed > most * rows:
        raise ErrorRateError(
            f"{failed} of {rows} rows failed",
            f"at most {most:g} of them (max_error_rate)",
            f"{failed / rows:.3g}",
            remedy="featreg.open_store(STORE).errors says why; a larger max_error_rate goes on with what is finished",
        )


def _on(request: ExtractionRequest, device: str | None) -> ExtractionRequest:
    return request if device is None else attrs.evolve(request, device=device)
