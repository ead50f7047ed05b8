"""Questions that are put to another Python process, and their answers as JSON."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from featreg.errors import BackendError

__all__ = ["ask", "ask_neighbour"]

TIMEOUT = 300

ANSWERING = """
import contextlib, io, json, os, sys, traceback
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever a framework prints by itself
for line in sys.stdin:
    program, sys.argv[1:] = json.loads(line)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(program, {"__name__": "__main__"})
        answer = [True, printed.getvalue()]
    except Exception:
        answer = [False, traceback.format_exc()]
    print(json.dumps(answer), file=answers, flush=True)
"""


def ask(program: str, *arguments: str, installed: bool = False) -> Any:
    """What a program prints last, as JSON, with the arguments in ``sys.argv[1:]`` and this process's import path.

    ``installed`` leaves the import path as every new process has it, without the working directory, which an empty
    entry of PYTHONPATH stands for too. Raises BackendError where it fails.
    """
    done = subprocess.run(
        [sys.executable, *(["-P"] if installed else []), "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        env=_without_here(os.environ) if installed else _environment(),
    )
    return _read(done.returncode == 0, done.stdout, done.stderr.strip())


def ask_neighbour(program: str, *arguments: str) -> Any:
    """As :func:`ask`, in a process that stays until this one ends: what it has imported, the next question finds."""
    with _ASKING:
        neighbour = _neighbour(os.getpid())
        with _limited(neighbour):
            assert neighbour.stdin is not None
            assert neighbour.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps([program, arguments]), file=neighbour.stdin, flush=True)
            line = neighbour.stdout.readline()
        if not line:  # it has died: the next question goes to another
            _neighbour.cache_clear()
    done, said = json.loads(line) if line else (False, "it ended without an answer")
    return _read(done, said, said)


_ASKING = threading.Lock()


@functools.cache
def _neighbour(parent: int) -> subprocess.Popen[str]:
    """The neighbour of a process; a forked one gets its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", ANSWERING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=_environment(),
    )
    atexit.register(_end, process)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@contextlib.contextmanager
def _limited(process: subprocess.Popen[str]) -> Iterator[None]:
    """End a process that takes too long."""
    timer = threading.Timer(TIMEOUT, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _without_here(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment whose PYTHONPATH has no empty entries; ``python -P`` leaves them in."""
    entries = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    others = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    return {**others, "PYTHONPATH": os.pathsep.join(entries)} if entries else others


def _environment() -> dict[str, str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "1"}


def _read(done: bool, printed: str, wrong: str) -> Any:
    lines = printed.splitlines()
    if not done or not lines:
        raise BackendError("another process failed", "no error, and an answer", wrong or printed)
    return json.loads(lines[-1])
