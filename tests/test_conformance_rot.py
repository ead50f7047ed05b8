"""Every kind of rot, planted in the kit itself, turns something red."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from packaging.version import Version

from featreg.case import Case
from featreg.conformance import checks as checks_package
from featreg.conformance import make_plan, model, planning, run_plan, self_test
from featreg.conformance import mutants as mutants_package
from featreg.conformance.model import all_checks
from featreg.conformance.mutants.base import Double, Mutant, MutantRegistry, all_mutants
from featreg.conformance.page import living, render_mutants
from featreg.conformance.planning import Plan
from featreg.conformance.reports import verdict_dict
from featreg.conformance.running import Report
from featreg.conformance.subject import Subject
from featreg.hookspecs import BackendSpec
from featreg.registry import Registry

HELPERS = {"base", "greedy", "heavy", "noisy"}
"""Modules of the mutants that register none."""


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan("numpy", registry=Registry({}))


def with_run(plan: Plan, check_id: str, run: Callable[[Subject], None]) -> Plan:
    items = [
        attrs.evolve(item, check=attrs.evolve(item.check, run=run)) if item.check.id == check_id else item
        for item in plan.items
    ]
    return attrs.evolve(plan, items=tuple(items))


def of(check_id: str) -> list[Mutant]:
    return [mutant for mutant in all_mutants() if mutant.killed_by == check_id]


def fates(plan: Plan, check_id: str) -> set[str]:
    """What becomes of the mutants of a check, but for those that break nothing in the reference network."""
    return {verdict.fate for verdict in self_test(plan, mutants=of(check_id))} - {"inapplicable"}


def always_passes(subject: Subject) -> None:
    subject.expect(True, "never")


def always_fails(subject: Subject) -> None:
    subject.expect(False, "always")


# --- checks -----------------------------------------------------------------------------------------------------------


def test_a_check_that_always_passes_lets_its_mutants_live(plan: Plan) -> None:
    planned = {item.check.id for item in plan.items} - {"values.has_oracle"}
    found = {check_id: fates(with_run(plan, check_id, always_passes), check_id) for check_id in planned}
    assert set().union(*found.values()) == {"survived"}
    assert sum(map(bool, found.values())) >= 55, "of the others nothing applies to the reference network"


def test_a_check_that_always_fails_is_red_and_kills_nothing(plan: Plan) -> None:
    broken = with_run(plan, "values.finite", always_fails)
    assert not run_plan(attrs.evolve(broken, items=broken.items)).is_green
    assert fates(broken, "values.finite") == {"untestable"}


def test_a_check_that_excuses_itself_everywhere_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    excused = attrs.evolve(model.find_check("values.finite"), when=lambda subject: "not today")
    monkeypatch.setitem(model._CHECKS, "values.finite", excused)
    plan = make_plan("numpy", registry=Registry({}))
    assert "values.finite" not in {item.check.id for item in plan.items}
    assert fates(plan, "values.finite") == {"untestable"}


def test_a_check_whose_module_nobody_imports_is_found_out() -> None:
    names = {module.name for module in pkgutil.iter_modules(checks_package.__path__)}
    assert names == {check.run.__module__.rpartition(".")[2] for check in all_checks()}
    names = {module.name for module in pkgutil.iter_modules(mutants_package.__path__)}
    assert names - HELPERS == {name for name in vars(mutants_package) if name in names - HELPERS}


def test_assertions_that_never_fail_let_mutants_live(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_count(subject: Subject, *arguments: Any, **fields: Any) -> None:
        subject.asserted += 1

    monkeypatch.setattr(Subject, "expect", only_count)
    for check_id in ("arrays.later_calls", "values.finite", "values.repeat", "plugin.documented"):
        assert fates(plan, check_id) == {"survived"}


def test_a_mutant_that_breaks_nothing_survives(plan: Plan) -> None:
    harmless = Mutant("Harmless", "values.repeat", "Breaks nothing.", Double, lambda info: True)
    assert [verdict.fate for verdict in self_test(plan, mutants=[harmless])] == ["survived"]


# --- cases and the ledger ---------------------------------------------------------------------------------------------


class TwoCases(Registry):
    """The installed backends; the reference one has two cases."""

    def cases(self, name: str) -> tuple[Case, ...]:
        (case,) = super().cases(name)
        return case, attrs.evolve(case, name="again", seed=1)


def test_a_case_that_is_skipped_is_missed() -> None:
    plan = make_plan("numpy", registry=TwoCases({}), checks=["values.repeat", "values.finite", "plugin.models"])
    outcomes = run_plan(plan).outcomes
    assert len(outcomes) == 5
    report = Report.of(plan, [outcome for outcome in outcomes if outcome.case != "again"])
    assert not report.is_green
    assert report.ledger.shortfall == 2
    assert "2 of 5 planned checks have no verdict" in report.faults


def test_an_outcome_that_is_entered_twice_is_red(plan: Plan) -> None:
    two = attrs.evolve(plan, items=plan.items[:2], left=())
    report = run_plan(two)
    assert report.is_green
    assert not Report.of(two, [*report.outcomes, *report.outcomes[:1]]).is_green


# --- the declared range of specification versions ---------------------------------------------------------------------


class Declaring(MutantRegistry):
    """The installed backends; the reference one is broken, and declares another range of versions."""

    def __init__(self, declared: str, mutant: str) -> None:
        (found,) = [one for one in all_mutants() if one.name == mutant]
        super().__init__(Registry({}), "numpy", found)
        self.declared_range = declared

    def spec(self, name: str) -> BackendSpec:
        return attrs.evolve(super().spec(name), spec=self.declared_range)


@pytest.mark.parametrize("declared", [">=0.5,<2", "<2", ">=1.0.5,<2", "~=0.9"])
def test_a_version_that_never_was_switches_nothing_off(declared: str) -> None:
    """Were the lower end taken at its word, every check would be of a later version, and a preview."""
    plan = make_plan("numpy", registry=Declaring(declared, "Rescaled"), checks=["values.oracle"])
    report = run_plan(plan)
    assert [(outcome.status, outcome.preview) for outcome in report.outcomes] == [("failed", False)]
    assert not report.is_green
    assert not run_plan(attrs.evolve(plan, faults=())).is_green, "by the values alone"
    assert not run_plan(attrs.evolve(plan, items=())).is_green, "by the range alone"
    assert "declare '>=1.0,<2'" in report.faults[0]


def test_a_later_version_is_judged_by_the_latest_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "VERSIONS", (Version("1.0"), Version("1.1"), Version("1.4")))
    declared = {">=1.0,<2": "1.0", ">=1.1,<2": "1.1", ">=1.3,<2": "1.1", "~=1.9": "1.4", ">=0.5,<2": "1.0"}
    assert {text: str(planning.written_for(text)) for text in declared} == declared
    assert [text for text in declared if planning.range_faults(text)] == [">=1.3,<2", "~=1.9", ">=0.5,<2"]


# --- the page of mutants ----------------------------------------------------------------------------------------------


def test_the_page_of_mutants_shows_each_that_lives(plan: Plan) -> None:
    blind = with_run(plan, "values.finite", always_passes)
    found = {"numpy": [verdict_dict(verdict) for verdict in self_test(blind, mutants=of("values.finite"))]}
    page = render_mutants(found)
    (row,) = [line for line in page.splitlines() if line.startswith(f"| {of('values.finite')[0].name} |")]
    assert "**survived**" in row
    assert f"numpy: {of('values.finite')[0].name} is survived" in living(found)
    assert "**untried**" in page, "mutants that no run has seen"
    assert any("untried" in line for line in living(found))


# --- pytest -----------------------------------------------------------------------------------------------------------

SUITE = 'from featreg.conformance import suite\ntest_conformance = suite("numpy")\n'

LAX = """
import attrs
import pytest
from featreg.conformance import model

def broken(subject):
    subject.expect(False, "always")

model.all_checks()
model._CHECKS["values.repeat"] = attrs.evolve(model._CHECKS["values.repeat"], run=broken)

def pytest_collection_modifyitems(items):
    for item in items:
        if "values.repeat" in item.name:
            item.add_marker(pytest.mark.xfail(reason="flaky"))
"""

DROPPING = "def pytest_collection_modifyitems(items):\n    del items[3]\n"


def run_pytest(folder: Path, conftest: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_conformance.py").write_text(SUITE)
    (folder / "conftest.py").write_text(conftest)
    command = [sys.executable, "-m", "pytest", "-p", "pytest_featreg", "-p", "no:cacheprovider", "-q"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_failure_that_a_mark_hides_is_red(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, LAX)
    assert "1 xfailed" in done.stdout
    assert done.returncode == 1, done.stdout
    assert "1 failures do not count as such" in done.stdout


def test_a_test_that_is_dropped_is_red(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, DROPPING)
    assert "failed" not in done.stdout.splitlines()[-1]
    assert done.returncode == 1, done.stdout
    assert "1 LOST" in done.stdout
