"""Where a child dies: at a file operation, before it, in the middle of it or after it; patched in the child only."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featreg.stores.places import disk
from featreg.stores.places import place as places

__all__ = ["MOMENTS", "die_at", "stall_at"]

MOMENTS = {"shard": 18, "receipt": 6, "place": 18, "finalize": 4, "any": 60}
"""What is being written as the child dies, and how often a whole run does that."""


def die_at(moment: str, number: int, torn: float) -> None:
    """Die at the ``number``-th operation of a kind, with a share of its bytes written: none, some or all of them."""
    due = _countdown(moment, number)
    write = disk.write_aside

    def write_aside(aside: Path, data: bytes, path: Path, into: Callable[[Path, Path], Any]) -> None:
        if not due(str(path)):
            write(aside, data, path, into)
            return
        if torn >= 1:
            write(aside, data, path, into)
        else:
            aside.write_bytes(data[: int(len(data) * torn)])
        _die()

    setattr(places, "write_aside", write_aside)  # noqa: B010  (by its name there, not where it is from)
    _around(places.LocalPlace, "move", lambda _, source, target: due(f"place {target}"), torn)
    _around(places.LocalPlace, "remove_folder", lambda _, folder: due(f"finished {folder}"), torn)
    _around(places._LocalIncoming, "publish", lambda _, name: due(name), torn)


def stall_at(moment: str, number: int) -> None:
    """Stop before the ``number``-th operation of a kind, until SIGCONT; then go on as if nothing had been."""
    due, write = _countdown(moment, number, once=True), disk.write_aside

    def stall(name: str) -> bool:
        if due(name):
            os.kill(os.getpid(), signal.SIGSTOP)
        return False

    def write_aside(aside: Path, data: bytes, path: Path, into: Callable[[Path, Path], Any]) -> None:
        stall(str(path))
        write(aside, data, path, into)

    setattr(places, "write_aside", write_aside)  # noqa: B010  (as above)
    _around(places.LocalPlace, "move", lambda _, source, target: stall(f"place {target}"), 0)
    _around(places.LocalPlace, "remove_folder", lambda _, folder: stall(f"finished {folder}"), 0)
    _around(places._LocalIncoming, "publish", lambda _, name: stall(name), 0)


def _countdown(moment: str, number: int, *, once: bool = False) -> Callable[[str], bool]:
    """Whether the time has come, asked at each operation."""
    countdown = [number]

    def due(name: str) -> bool:
        if moment != "any" and _moment(name) != moment:
            return False
        countdown[0] -= 1
        return countdown[0] == -1 if once else countdown[0] < 0

    return due


def _moment(name: str) -> str:
    for part, moment in (("place ", "place"), ("finished", "finalize"), ("samples.parquet", "finalize")):
        if part in name:
            return moment
    return "receipt" if "/receipts/" in name else "shard" if "/staged/" in name else "plan"


def _around(kind: type, method: str, due: Callable[..., bool], torn: float) -> None:
    original = getattr(kind, method)

    def patched(*arguments: Any) -> Any:
        if not due(*arguments):
            return original(*arguments)
        if torn >= 0.5:
            original(*arguments)
        return _die()

    setattr(kind, method, patched)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
