"""Running a plan: each item to one outcome, and the ledger that must add up."""

from __future__ import annotations

import shlex
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from featreg.conformance.model import Outcome, Status, Violation
from featreg.conformance.planning import BACKEND, Item, Left, Plan
from featreg.conformance.subject import Subject
from featreg.errors import FeatregError
from featreg.spec import Layer

__all__ = ["Ledger", "Report", "run_item", "run_plan"]

UNDECLARED = "the check ended without a verdict: skipping is declared by capabilities, before anything runs"


def run_plan(plan: Plan, progress: Callable[[Outcome], None] | None = None) -> Report:
    """Every item of a plan in order; ``progress`` is told each outcome."""
    outcomes = []
    for item in plan.items:
        outcomes.append(run_item(plan, item))
        if progress is not None:
            progress(outcomes[-1])
    return Report.of(plan, outcomes)


def run_item(plan: Plan, item: Item) -> Outcome:
    """One check on one case, in a Subject of its own, held against the expected failures. Raises nothing but exits."""
    subject = Subject(plan.backend, item.subject_case, plan.registry)
    start = time.perf_counter()
    status, message = _verdict(subject, plan, item)
    entry = plan.reasons.get(item.key)
    if entry is not None and status == "failed":
        status, message = "expected", f"{entry.reason} ({entry.url}, until {entry.until})\n{message}"
    elif entry is not None and status == "passed":
        status, message = "unexpected", f"{item.check.id} passes on {item.case}: remove it from the expected failures"
    preview = item.check.is_preview(plan.written_for)
    return Outcome(item.check, item.case, status, preview, message, time.perf_counter() - start)


def _verdict(subject: Subject, plan: Plan, item: Item) -> tuple[Status, str]:
    try:
        item.check.run(subject)
    except Violation as violation:
        return "failed", _bug_report(subject, plan, item, violation)
    except Exception as error:  # noqa: BLE001  (whatever a backend raises is its failure)
        if type(error).__name__ == "SkipTest":
            return "lost", f"{UNDECLARED}\n{error}"
        return "failed", _bug_report(subject, plan, item, _as_violation(subject, error))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        return "lost", f"{UNDECLARED}\n{type(error).__name__}: {error}"  # as pytest.skip and pytest.exit raise it
    if not subject.asserted:
        return "lost", f"{item.check.id} asserted nothing on {item.case}"
    return "passed", ""


def _as_violation(subject: Subject, error: Exception) -> Violation:
    """An exception that escaped a check; the traceback only where it is none of featreg's."""
    text = str(error) if isinstance(error, FeatregError) else "".join(traceback.format_exception(error)).rstrip()
    return Violation(
        f"{type(error).__name__} instead of a result", "no exception", text, code=subject.scene.last_call()
    )


def _bug_report(subject: Subject, plan: Plan, item: Item, violation: Violation) -> str:
    plugin = plan.registry.plugin(plan.backend)
    layer: Layer | None = violation.layer
    fields = {
        "backend": f"{plan.backend} ({plugin.owner})",
        "model": subject.model,
        "layer": "" if layer is None else repr(layer),
        "case": f"{item.case} ({subject.size[0]}x{subject.size[1]}, seed {item.subject_case.seed})",
        "expected": violation.expected,
        "got": violation.got,
    }
    lines = [f"{item.check.id} ({item.check.level}, specification {item.check.since}): {violation.problem}"]
    lines += [f"  {name}: {_indented(text)}" for name, text in fields.items() if text]
    if violation.code:
        lines += ["  reproduce:", *(f"    {line}" for line in violation.code.splitlines())]
    again = [] if item.case == BACKEND else ["--model", item.case]
    command = shlex.join(["featreg", "conform", plan.backend, *again, "--check", item.check.id])
    return "\n".join([*lines, f"  again: {command}", f"  more: featreg conform --explain {item.check.id}"])


def _indented(text: str) -> str:
    return text.replace("\n", "\n    ")


@attrs.frozen
class Ledger:
    """What was planned and what became of it: ``planned = ran + expected + skipped``, or the run is red.

    ``planned`` counts every check on every case that it applies to, ``ran`` those with a verdict of their own and
    ``skipped`` those that need a capability which is not declared. ``applicable_not`` is apart: those were never due.
    """

    planned: int
    ran: int
    expected: int
    skipped: int
    applicable_not: int

    @property
    def shortfall(self) -> int:
        return self.planned - self.ran - self.expected - self.skipped

    def __str__(self) -> str:
        total = f"{self.planned} planned = {self.ran} ran + {self.expected} expected failures + {self.skipped} skipped"
        lost = f" + {self.shortfall} LOST" if self.shortfall else ""
        return f"{total}{lost} (and {self.applicable_not} that do not apply)"


@attrs.frozen
class Report:
    """The outcomes of a run, the ledger, and every reason for which it is red.

    ``owner`` is the distribution that was judged, with its version, and ``written_for`` the version of the
    specification that it was judged by.
    """

    backend: str
    owner: str
    written_for: str
    outcomes: tuple[Outcome, ...]
    left: tuple[Left, ...]
    ledger: Ledger
    faults: tuple[str, ...]
    narrowed: bool

    @classmethod
    def of(cls, plan: Plan, outcomes: Iterable[Outcome]) -> Report:
        """The report of what came of a plan."""
        found = tuple(outcomes)
        ledger = make_ledger(plan, [outcome.status for outcome in found])
        owner, faults = plan.registry.plugin(plan.backend).owner, (*plan.faults, *ledger_faults(ledger))
        return cls(plan.backend, owner, str(plan.written_for), found, plan.left, ledger, faults, plan.narrowed)

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The outcomes that each make the run red."""
        return tuple(outcome for outcome in self.outcomes if outcome.is_red)

    @property
    def warnings(self) -> tuple[Outcome, ...]:
        """The failures of SHOULD and of previews, which fail nothing."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed" and not outcome.is_red)

    @property
    def is_green(self) -> bool:
        return not self.failures and not self.faults

    @property
    def counts(self) -> dict[str, int]:
        """How many outcomes there are of each status."""
        return dict(Counter[Any](outcome.status for outcome in self.outcomes))


def make_ledger(plan: Plan, statuses: Iterable[Status]) -> Ledger:
    """The ledger of a plan whose items came to these."""
    counted = Counter(statuses)
    skipped = sum(part.skipped for part in plan.left)
    ran = counted["passed"] + counted["failed"] + counted["unexpected"]
    return Ledger(len(plan.items) + skipped, ran, counted["expected"], skipped, len(plan.left) - skipped)


def ledger_faults(ledger: Ledger) -> list[str]:
    """Why a ledger alone makes a run red; a line each."""
    faults = []
    if ledger.shortfall:
        faults.append(f"{abs(ledger.shortfall)} of {ledger.planned} planned checks have no verdict")
    if not ledger.ran + ledger.expected:
        faults.append("nothing ran: a backend that skips everything proves nothing")
    return faults
