"""How far a worker is: the numbers behind the progress bar, the plain lines and the metrics."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Protocol

import attrs

from featreg.engine.monitoring.stages import Lane, Stage

__all__ = ["Facts", "Teller", "peak_memory"]


@attrs.frozen
class Facts:
    """How far one worker is with one pass.

    ``rows`` are all rows of the pass; ``there`` were done by an earlier run, or meanwhile by another worker; ``done``
    has this run computed in ``elapsed`` seconds, and ``failed`` of them. ``seconds`` and ``waited`` are those of
    :class:`~featreg.engine.monitoring.stages.Stages`, ``batch_size`` is the largest batch that is tried.
    """

    rows: int
    there: int
    done: int
    failed: int
    elapsed: float
    batch_size: int
    seconds: Mapping[Stage, float]
    waited: Mapping[Lane, float]
    bottleneck: Stage | None

    @property
    def rate(self) -> float:
        """Rows per second of this run."""
        return self.done / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds until this worker alone has done the rest; None while nobody knows."""
        return (self.rows - self.there - self.done) / self.rate if self.rate > 0 else None


class Teller(Protocol):
    """Somebody who is told the facts often, and tells them on as seldom as he likes."""

    def tell(self, facts: Facts) -> None: ...

    def close(self, facts: Facts) -> None:
        """The last facts of a pass, whether it is finished or was stopped."""


def peak_memory() -> int | None:
    """The most memory that this process has held, in bytes; None where the system does not say."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return _peak_of_rusage()


def _peak_of_rusage() -> int | None:
    """Where there is no /proc; on Linux this would count what the parent process took as well."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
