"""Checks of what a caller of :func:`featreg.extract` says, and what it stands for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import attrs

from featreg.engine import run
from featreg.errors import SpecError, near_matches
from featreg.stores import FeatureStore
from featreg.stores.outside import check_outside
from featreg.stores.places.place import Place
from featreg.stores.writer import StoreWriter

__all__ = ["ENGINES", "Engine", "check_counts", "engine_named", "raises_errors", "run_of", "share"]

ENGINES = ("local", "ray")

_RUN = ("batch_size", "num_workers", "part", "on_error", "max_error_rate", "progress", "metrics")
"""The arguments of a run that goes on with a store, or adds to one."""

Complete: TypeAlias = Callable[[StoreWriter, run.Work, run.Run], FeatureStore]


@attrs.frozen
class Engine:
    """What completes a store, and what has to be ready before one is planned for a model on a device."""

    complete: Complete
    ready: Callable[[Place, run.Work, str], AbstractContextManager[None]] = lambda *_: nullcontext()


def engine_named(name: str, *, num_gpus: float | None, num_workers: int | None, address: str | None) -> Engine:
    """The engine of a name; raises SpecError, and MissingDependencyError for Ray where it is not installed."""
    if name not in ENGINES:
        matches = near_matches(str(name), ENGINES)
        raise SpecError(f"there is no engine {name!r}", " or ".join(map(repr, ENGINES)), repr(name), matches)
    if name == "ray":
        from featreg.engine import ray

        asked: dict[str, Any] = {"num_gpus": num_gpus, "num_workers": num_workers, "address": address}
        return Engine(functools.partial(ray.complete, **asked), functools.partial(ray.ready, **asked))
    if num_gpus is not None or address is not None:
        raise SpecError("num_gpus and address are those of Ray", "engine='ray', or neither of them", "engine='local'")
    return Engine(run.complete)


def run_of(fields: Mapping[str, Any], names: Collection[str] = _RUN) -> run.Run:
    """How a run on a store that is there goes about it; raises SpecError for an argument that it has not."""
    unknown = sorted(set(fields) - set(names))
    if unknown:
        matches = near_matches(unknown[0], names)
        raise SpecError(f"no such argument: {', '.join(unknown)}", f"some of {', '.join(names)}", matches=matches)
    check_counts(batch_size=fields.get("batch_size"), num_workers=fields.get("num_workers"))
    share(fields.get("max_error_rate"))
    if fields.get("metrics") is not None:
        check_outside(fields["metrics"], "the file of the metrics")
    asked = {name: value for name, value in fields.items() if name != "on_error"}
    return attrs.evolve(run.Run(**asked), raise_errors=raises_errors(fields.get("on_error", "record")))


def raises_errors(on_error: Any) -> bool:
    """Whether the first sample that fails stops the run; raises SpecError."""
    if on_error not in ("record", "raise"):
        raise SpecError(f"on_error is {on_error!r}", "'record' or 'raise'", repr(on_error))
    return bool(on_error == "raise")


def share(rate: Any) -> float | None:
    """A share of all rows, or None; raises SpecError."""
    if rate is None or (isinstance(rate, int | float) and not isinstance(rate, bool) and 0 <= rate <= 1):
        return rate
    raise SpecError("max_error_rate is out of range", "a share from 0 to 1", repr(rate))


def check_counts(batch_size: Any = None, **counts: Any) -> None:
    """Raise SpecError for what is no number of things; a batch size may be ``"auto"``."""
    sizes = {} if batch_size == "auto" else {"batch_size": batch_size}
    for name, count in {**sizes, **counts}.items():
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise SpecError(f"{name} is out of range", "a whole number of at least 1", repr(count))
