"""The kit on trial: every mutant of a backend, and whether the check that names it notices."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeAlias

import attrs
import numpy as np

from featreg.conformance.mutants.base import Mutant, MutantRegistry, all_mutants
from featreg.conformance.planning import Item, Plan
from featreg.conformance.running import run_item
from featreg.conformance.subject import Subject

__all__ = ["Verdict", "restored", "self_test"]

Fate: TypeAlias = Literal["killed", "survived", "inapplicable", "untestable"]


@attrs.frozen
class Verdict:
    """What became of a mutant: killed on ``case`` with ``message``; ``survived`` is a gap in the author's cases.

    ``inapplicable`` changes nothing in any model of the cases; ``untestable`` means that the check is not run, or fails
    on the backend as it is.
    """

    mutant: Mutant
    fate: Fate
    case: str = ""
    message: str = ""


def self_test(
    plan: Plan,
    progress: Callable[[Verdict], None] | None = None,
    mutants: Iterable[Mutant] | None = None,
) -> tuple[Verdict, ...]:
    """Break a backend in every way that the kit knows, or in some; each mutant must be killed by the check it names."""
    verdicts = []
    sound: dict[tuple[str, str], bool] = {}
    for mutant in all_mutants() if mutants is None else mutants:
        verdicts.append(_try(mutant, plan, sound))
        if progress is not None:
            progress(verdicts[-1])
    return tuple(verdicts)


def _try(mutant: Mutant, plan: Plan, sound: dict[tuple[str, str], bool]) -> Verdict:
    cases = {item.subject_case.name: item.subject_case for item in plan.items}
    if not any(mutant.when(Subject(plan.backend, case, plan.registry).info) for case in cases.values()):
        return Verdict(mutant, "inapplicable")
    items = [item for item in plan.items if item.check.id == mutant.killed_by and _changes(mutant, plan, item)]
    tested = False
    for item in items:
        if item.key not in sound:
            sound[item.key] = run_item(_bare(plan), item).status == "passed"
        if sound[item.key]:
            tested = True
            message = _killed(mutant, plan, item)
            if message:
                return Verdict(mutant, "killed", item.case, message)
    return Verdict(mutant, "survived" if tested else "untestable")


def _changes(mutant: Mutant, plan: Plan, item: Item) -> bool:
    return mutant.when(Subject(plan.backend, item.subject_case, plan.registry).info)


def _bare(plan: Plan) -> Plan:
    return attrs.evolve(plan, expected=())


def _killed(mutant: Mutant, plan: Plan, item: Item) -> str:
    """The message of the check that killed a mutant; empty where it lives."""
    with restored():
        broken = attrs.evolve(_bare(plan), registry=MutantRegistry(plan.registry, plan.backend, mutant))
        outcome = run_item(broken, item)
    return outcome.message if outcome.status == "failed" else ""


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """What mutants spoil on purpose, put back."""
    folder, environment, errors = os.getcwd(), dict(os.environ), np.geterr()
    states: tuple[Any, Any] = random.getstate(), np.random.get_state()
    torch: Any = sys.modules.get("torch")
    grad = None if torch is None else torch.is_grad_enabled()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        np.seterr(**errors)
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch is not None:
            torch.set_grad_enabled(grad)
