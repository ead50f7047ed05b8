"""What became of a task in a worker, as plain data that crosses the process boundary."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Mapping
from typing import Any

import attrs

from featreg.engine.monitoring.stages import Lane, Stage
from featreg.errors import EngineError
from featreg.extras import data_extra

with data_extra():
    import pyarrow

pa: Any = pyarrow  # a compiled module without types

__all__ = ["Outcome", "Raised", "WorkerTraceback", "outcome_table", "outcomes"]


class WorkerTraceback(Exception):
    """The traceback of an error in another process, as text: the cause of the error in this one."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@attrs.frozen
class Raised:
    """An error of a worker: pickled, which keeps its type, its fields and its notes, and its traceback as text."""

    pickled: bytes
    text: str

    @classmethod
    def of(cls, error: Exception) -> Raised:
        """An error that is being handled; one that cannot be pickled becomes an EngineError that quotes it."""
        text = "".join(traceback.format_exception(error))
        try:
            pickled = pickle.dumps(error)
            pickle.loads(pickled)
        except Exception:  # noqa: BLE001  (whatever somebody else's class does)
            summary = "".join(traceback.format_exception_only(error)).strip()
            pickled = pickle.dumps(EngineError("a worker on Ray failed", got=summary))
        return cls(pickled, text)

    def throw(self) -> None:
        """Raise it in this process, with the traceback of its own as the cause."""
        try:
            error: Exception = pickle.loads(self.pickled)
        except Exception as failed:
            summary = self.text.strip().rpartition("\n")[2]
            raise EngineError(
                "a worker on Ray failed with an error that this process has no class for", got=summary
            ) from failed
        raise error from WorkerTraceback(self.text)


@attrs.frozen
class Outcome:
    """A task has its receipt, or raised: how many rows failed, and whether ``worker`` itself wrote the receipt.

    ``seconds`` and ``waited`` are what it took, as :class:`~featreg.engine.monitoring.stages.Stages` counts.
    """

    number: int
    failed: int
    own: bool
    worker: str
    raised: Raised | None = None
    seconds: Mapping[Stage, float] = attrs.field(factory=dict)
    waited: Mapping[Lane, float] = attrs.field(factory=dict)


def outcome_table(found: list[Outcome]) -> Any:
    """Outcomes as an Arrow table, the form in which Ray Data hands them on."""
    return pa.table({"outcome": pa.array([pickle.dumps(outcome) for outcome in found], pa.binary())})


def outcomes(table: Any) -> list[Outcome]:
    """What :func:`outcome_table` was given."""
    return [pickle.loads(pickled) for pickled in table["outcome"].to_pylist()]
