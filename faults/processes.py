"""Children that are forked from a process in which everything is imported and nothing has run, and may die any time."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

__all__ = ["Child", "run"]

FAILED = 70
"""The exit code of a child that raised."""


class Child:
    """A call in a process of its own, whose output goes to a file; ``killed`` counts those that SIGKILL ended."""

    killed = 0

    def __init__(self, call: Callable[[], object], log: Path) -> None:
        self._log = log
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = FAILED
            try:
                with open(log, "wb", buffering=0) as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                result = call()
                code = result if isinstance(result, int) else 0
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException:  # noqa: BLE001  (the end of a process)
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def kill(self, after: float) -> None:
        """SIGKILL after so many seconds, unless it has ended by itself."""
        end = time.monotonic() + after
        while time.monotonic() < end:
            pid, _ = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return
            time.sleep(0.001)
        os.kill(self.pid, signal.SIGKILL)

    def wait_stopped(self) -> bool:
        """Wait until it has stopped itself; False where it has ended instead, which :meth:`wait` then tells."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            return True
        self._code = os.waitstatus_to_exitcode(status)
        return False

    def go_on(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def wait(self) -> int | None:
        """The exit code, negative for a signal; None where :meth:`kill` found it ended."""
        if not self.pid:
            return None
        if self._code is not None:
            return self._code
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        Child.killed += code == -signal.SIGKILL
        return code

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")


def run(call: Callable[[], object], log: Path) -> tuple[int, str]:
    """A child that nobody harms: its exit code and what it said."""
    child = Child(call, log)
    code = child.wait()
    return FAILED if code is None else code, child.output
