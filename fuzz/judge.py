"""Decoding in a child process, under a watchdog, with every write noticed."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import attrs

from fuzz.mutations import Case

__all__ = ["FAILURES", "Verdict", "judge"]

DECODER = "featreg.images:decode"
FAILURES = ("escaped", "crash", "hang", "write")
"""What must never come of an image: another exception, a dead process, no answer; a write, a program, a connection."""

_OUTSIDE = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "subprocess.Popen", "os.system")
_OUTSIDE_BEGIN = ("os.exec", "os.posix_spawn", "os.fork", "socket.", "shutil.")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@attrs.frozen
class Verdict:
    """What came of one case: ``pixels``, ``error``, or one of :data:`FAILURES`."""

    case: Case
    outcome: str
    said: str


def judge(cases: Iterable[Case], *, timeout: float, decoder: str = DECODER) -> Iterator[Verdict]:
    """A verdict on every case, in order; a child that dies or stays silent for ``timeout`` seconds is replaced.

    ``decoder`` is what is judged, as ``module:function`` of bytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        child = _Child(folder, decoder)
        try:
            for case in cases:
                outcome, said = child.ask(case.data, timeout)
                left = sorted(os.listdir(folder))
                yield Verdict(case, "write", str(left)) if left else Verdict(case, outcome, said)
                for name in left:
                    os.remove(os.path.join(folder, name))
        finally:
            child.stop()


class _Child:
    def __init__(self, folder: str, decoder: str) -> None:
        self._folder, self._decoder = folder, decoder
        self._start()

    def ask(self, data: bytes, timeout: float) -> tuple[str, str]:
        try:
            self._connection.send_bytes(data)
            if not self._connection.poll(timeout):
                self.stop()
                self._start()
                return "hang", f"no answer for {timeout:g} s"
            outcome, said = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            self._start()
            return "crash", f"exit code {code}"
        return outcome, said

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._folder, self._decoder), daemon=True)
        self._process.start()
        theirs.close()
        if self._connection.recv() != "ready":  # imports are no part of a case's time
            raise RuntimeError("the child did not start")


def _serve(connection: Connection, folder: str, decoder: str) -> None:
    """The child: decode whatever comes, and say what became of it."""
    from featreg.images import formats

    formats()  # Pillow imports its plugins
    module, _, name = decoder.partition(":")
    decode = getattr(import_module(module), name)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff prints what it thinks of a file
    os.chdir(folder)
    tempfile.tempdir = folder
    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")
    writes: list[str] = []
    watch = _watching(writes)
    connection.send("ready")
    while True:
        try:
            data = connection.recv_bytes()
        except EOFError:
            return
        with watch():
            answer = _decode(decode, data)
        connection.send(("write", "; ".join(writes)) if writes else answer)
        writes.clear()


def _decode(decode: Any, data: bytes) -> tuple[str, str]:
    from featreg.errors import ImageError
    from featreg.images import MAX_PIXELS

    try:
        pixels = decode(data)
    except ImageError as error:
        return "error", error.problem
    except BaseException as error:  # noqa: BLE001  (that is what is looked for)
        return "escaped", f"{type(error).__name__}: {error}"
    height, width, channels = pixels.shape
    if channels != 3 or pixels.dtype != "uint8" or not 0 < height * width <= MAX_PIXELS:
        return "escaped", f"pixels of {pixels.shape} in {pixels.dtype}"
    return "pixels", f"{width}x{height}"


def _watching(writes: list[str]) -> Any:
    """A context in which every write, process and connection of this process is noted (PEP 578)."""
    state = {"on": False}

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not state["on"]:
            return
        writing = event == "open" and isinstance(args[2], int) and args[2] & _WRITING
        if writing or event in _OUTSIDE or event.startswith(_OUTSIDE_BEGIN):
            writes.append(f"{event} {args[0] if args else ''}")

    sys.addaudithook(hook)

    @contextmanager
    def watch() -> Iterator[None]:
        state["on"] = True
        try:
            yield
        finally:
            state["on"] = False

    return watch
