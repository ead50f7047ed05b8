"""The whole way from a selection to records: what is known already, what is judged now, what is written."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence

import attrs
from tqdm import tqdm

import featreg
from zoo.judge import judge
from zoo.ledger import Ledger, fingerprint
from zoo.oracles import library_models
from zoo.pool import Limits, Lost, Outcome, run_tasks
from zoo.records import Record, Task

__all__ = ["Listing", "Sweep", "catalogue", "sweep", "totals"]


@attrs.frozen
class Sweep:
    """The records of a sweep, how many models were left for lack of time, and the greatest memory of one worker."""

    records: tuple[Record, ...]
    left: int
    peak: int


@attrs.frozen
class Listing:
    """The models of a backend, as featreg and as the library itself lists them."""

    models: tuple[str, ...]
    library: tuple[str, ...]


def catalogue(backends: Sequence[str]) -> dict[str, Listing]:
    """Every model of these backends, asked in other processes, for it takes their frameworks; may raise LookupError."""
    found: dict[str, Listing] = {}
    for outcome in run_tasks(_list, backends, group=str):
        if isinstance(outcome.result, Lost):
            raise LookupError(f"the models of {outcome.task} cannot be listed: {outcome.result.detail}")
        found[outcome.task] = outcome.result
    return found


def _list(backend: str) -> Listing:
    return Listing(featreg.list_models(backend), library_models(backend))


def sweep(
    tasks: Sequence[Task],
    ledger: Ledger | None,
    limits: Limits,
    *,
    minutes: float | None = None,
    work: Callable[[Task], Record] = judge,
    mark: Callable[[str], str] = fingerprint,
) -> Sweep:
    """Judge what the ledger does not hold yet, for ``minutes`` at most, and add it there."""
    marks = {backend: mark(backend) for backend in {task.backend for task in tasks}}
    known = {} if ledger is None else ledger.settled(marks)
    records = {task.id: known[task.id] for task in tasks if _is_enough(known.get(task.id), task)}
    waiting = [task for task in tasks if task.id not in records]
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    outcomes = run_tasks(work, waiting, limits, group=_backend, deadline=deadline)
    peak = 0
    for outcome in tqdm(outcomes, total=len(waiting), unit="model", file=sys.stderr, disable=None):
        record = _record(outcome)
        records[record.id] = record
        peak = max(peak, outcome.peak)
        if ledger is not None:
            ledger.add(record, marks[record.backend])
    return Sweep(tuple(records[key] for key in sorted(records)), len(tasks) - len(records), peak)


def _is_enough(record: Record | None, task: Task) -> bool:
    """Whether an earlier judgement answers a task: one without values does not answer a task that asks for them."""
    return record is not None and (not task.real or record.values is not None or record.status != "exact")


def _record(outcome: Outcome[Task, Record]) -> Record:
    if isinstance(outcome.result, Lost):
        return Record(outcome.task.id, "failed", outcome.result.kind, outcome.result.detail)
    return outcome.result


def _backend(task: Task) -> str:
    return task.backend


def totals(records: Sequence[Record]) -> Mapping[str, int]:
    """How many records have each status."""
    return {status: sum(r.status == status for r in records) for status in ("exact", "wrong", "refused", "failed")}
