"""How processes of a Ray cluster die: each is armed as it starts, and tickets say which shall die, and when."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["TICKETS", "arm", "casualties", "issue"]

TICKETS = "FEATREG_FAULTS_TICKETS"
"""The environment variable with the folder of the tickets: a file each, which the process that dies takes away."""


def issue(folder: Path, tickets: list[dict[str, Any]]) -> None:
    """Put tickets there: ``kind`` is worker, actor or reader, the rest is the moment."""
    folder.mkdir(exist_ok=True)
    for left in folder.iterdir():
        left.unlink()
    for number, ticket in enumerate(tickets):
        (folder / f"{ticket['kind']}-{number}.json").write_text(json.dumps(ticket))
    os.environ[TICKETS] = str(folder)


def casualties(folder: Path) -> int:
    """How many processes have died so far."""
    return len(list(folder.glob("died-*")))


def arm() -> None:
    """Called by Ray in every process that it starts: whatever does a featreg step later on may have to die."""
    from featreg.engine.ray import extracting, reading

    folder = Path(os.environ[TICKETS])
    if not any(folder.glob("*.json")):
        return
    _around(extracting.TaskExtractor, "__init__", lambda: _arm_worker(folder))
    _around(extracting.TaskExtractor, "__call__", lambda: _count_down(folder, "actor", _leave_for_good))
    _around(reading.Reader, "_samples", lambda: _count_down(folder, "reader", _die))


def _around(kind: type, method: str, before: Callable[[], None]) -> None:
    original = getattr(kind, method)

    def patched(*arguments: Any) -> Any:
        before()
        return original(*arguments)

    setattr(kind, method, patched)


def _arm_worker(folder: Path) -> None:
    from faults import kills

    ticket = _taken(folder, "worker")
    if ticket is not None:
        setattr(kills, "_die", _die)  # noqa: B010  (with a note of it)
        kills.die_at(ticket["moment"], ticket["number"], ticket["torn"])


_calls: dict[str, int] = {}


def _count_down(folder: Path, kind: str, end: Callable[[], None]) -> None:
    """Die at the call that a ticket names, the first process of those that come so far."""
    _calls[kind] = _calls.get(kind, -1) + 1
    for path in sorted(folder.glob(f"{kind}-*.json")):
        if json.loads(path.read_text())["number"] <= _calls[kind] and _taken(folder, path.stem):
            end()


def _taken(folder: Path, prefix: str) -> dict[str, Any] | None:
    """A ticket that no other process has taken."""
    for path in sorted(folder.glob(f"{prefix}*.json")):
        taken = path.with_suffix(f".{os.getpid()}")
        try:
            path.rename(taken)
        except FileNotFoundError:
            continue
        ticket: dict[str, Any] = json.loads(taken.read_text())
        return ticket
    return None


def _note() -> None:
    (Path(os.environ[TICKETS]) / f"died-{os.getpid()}").touch()


def _die() -> None:
    _note()
    os.kill(os.getpid(), signal.SIGKILL)


def _leave_for_good() -> None:
    """``ray.kill``: Ray does not start this actor again."""
    import ray

    _note()
    ray.kill(ray.get_runtime_context().current_actor)
    signal.pause()
