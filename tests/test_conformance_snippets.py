"""The programs in bug reports: pasted, they fail on the broken backend and pass on the sound one."""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator

import attrs
import pytest

from featreg.case import Case
from featreg.conformance import make_plan, run_plan, self_test
from featreg.conformance.mutants.base import MutantRegistry, all_mutants
from featreg.conformance.planning import Plan
from featreg.conformance.snippets import Scene, comparison, importing, opening, refusal
from featreg.conformance.trial import restored
from featreg.reference.oracle import oracle
from featreg.registry import Registry
from featreg.spec import ExtractionRequest

MUTANTS = {mutant.name: mutant for mutant in all_mutants()}

WITHOUT = {
    "capabilities.consistent",
    "capabilities.one_thread",
    "capabilities.thread_safe",
    "layout.grids",
    "lifecycle.calls_growth",
    "lifecycle.described_elsewhere",
    "lifecycle.offline",
    "lifecycle.process",
    "lifecycle.threads",
    "state.framework",
    "state.importing",
    "state.process",
    "state.random",
    "state.recovers",
}
"""Checks of what only the kit can set up (other threads and processes, the process around a call), and those of the
plugin as a distribution: their reports name the command alone."""


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan("numpy", registry=Registry({}))


@pytest.fixture(scope="module")
def reports(plan: Plan) -> dict[str, str]:
    return {verdict.mutant.name: verdict.message for verdict in self_test(plan) if verdict.fate == "killed"}


@pytest.fixture
def pasting(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    with restored():
        yield monkeypatch


def program_of(report: str) -> str:
    if "  reproduce:\n" not in report:
        return ""
    lines = report.partition("  reproduce:\n")[2].partition("\n  again: ")[0].splitlines()
    assert all(line.startswith("    ") for line in lines)
    return "\n".join(line[4:] for line in lines)


def paste(program: str, registry: Registry, pasting: pytest.MonkeyPatch) -> str:
    """What a program raises where this is what is installed."""
    pasting.setattr("featreg.extractor.default_registry", lambda: registry)
    try:
        exec(program, {"__name__": "pasted"})
    except Exception as error:  # noqa: BLE001  (whatever a broken backend raises)
        return repr(error)
    return ""


@pytest.mark.parametrize("name", MUTANTS)
def test_a_program_fails_on_the_mutant_and_passes_without_it(
    name: str, plan: Plan, reports: dict[str, str], pasting: pytest.MonkeyPatch
) -> None:
    if name not in reports:
        return  # it breaks nothing in the reference network
    program, check = program_of(reports[name]), MUTANTS[name].killed_by
    assert f"--check {check}" in reports[name].split("\n  again: ")[1]
    if not program:
        assert check in WITHOUT or check.startswith("plugin.")
        return
    assert paste(program, MutantRegistry(plan.registry, "numpy", MUTANTS[name]), pasting)
    assert not paste(program, Registry({}), pasting)


def test_most_reports_have_a_program(reports: dict[str, str]) -> None:
    assert sum(bool(program_of(report)) for report in reports.values()) >= 70


def test_a_program_ends_in_what_fails(reports: dict[str, str]) -> None:
    """A call that raises by itself needs no assertion."""
    for report in reports.values():
        program = program_of(report)
        if program and "instead of a result" not in report:
            assert any(isinstance(node, ast.Assert | ast.Raise) for node in ast.walk(ast.parse(program).body[-1]))


def test_the_size_that_failed_is_told(plan: Plan) -> None:
    """``OtherRounding`` is right at even sizes."""
    broken = attrs.evolve(plan, registry=MutantRegistry(plan.registry, "numpy", MUTANTS["OtherRounding"]))
    items = tuple(item for item in plan.items if item.check.id == "shapes.predicted")
    (outcome,) = run_plan(attrs.evolve(broken, items=items, left=())).outcomes
    assert "case: tinynet (65x67, seed 0)" in outcome.message
    assert "standard_normal((1, 3, 65, 67)" in outcome.message


def test_the_command_names_the_case(reports: dict[str, str]) -> None:
    assert "  again: featreg conform numpy --model tinynet --check values.repeat\n" in reports["Drifts"]
    assert "  again: featreg conform numpy --check plugin.documented\n" in reports["NoSummary"]


def test_the_oracle_is_imported_where_it_can_be(plan: Plan, reports: dict[str, str]) -> None:
    assert "from featreg.reference.oracle import oracle\n" in program_of(reports["Rescaled"])
    assert importing(oracle) == "from featreg.reference.oracle import oracle"
    assert not importing(lambda model, module: None)
    assert not importing(types.FunctionType(oracle.__code__, {}, "oracle"))


class Told(Registry):
    """The installed backends; the oracle of the reference one has no import path."""

    def cases(self, name: str) -> tuple[Case, ...]:
        (case,) = super().cases(name)
        return (attrs.evolve(case, oracle=lambda model, module: oracle(model, module)),)  # noqa: PLW0108


def test_an_oracle_without_an_import_path_is_that_of_its_case(pasting: pytest.MonkeyPatch) -> None:
    told, broken = Told({}), MutantRegistry(Told({}), "numpy", MUTANTS["Rescaled"])
    plan = make_plan("numpy", registry=broken, checks=["values.oracle"])
    program = program_of(run_plan(plan).outcomes[0].message)
    assert "case.oracle('tinynet', extractor.module)" in program
    for registry, fails in ((broken, True), (told, False)):
        pasting.setattr("featreg.registry.default_registry", lambda found=registry: found)
        assert bool(paste(program, registry, pasting)) == fails


# --- how they are made ------------------------------------------------------------------------------------------------


def test_a_program_has_what_it_uses_and_no_more() -> None:
    scene = Scene(request=ExtractionRequest("acme:toy", ["C1"], dtype="float16"))
    scene.draw("images", "images = np.zeros((1, 3, 8, 8), np.float32)")
    scene.draw("others", "others = np.ones((1, 3, 8, 8), np.float32)")
    assert scene.program("assert extractor(images)") == (
        "import featreg, numpy as np\nimages = np.zeros((1, 3, 8, 8), np.float32)\n"
        "extractor = featreg.create_extractor('acme:toy', ['C1'], dtype='float16')\nassert extractor(images)"
    )
    assert scene.program("assert featreg.describe('acme:toy')") == "import featreg\nassert featreg.describe('acme:toy')"
    assert scene.last_call().endswith("extractor(others)")


@pytest.mark.parametrize("code", ["", "extractor(images)", "x = (", "assert x\nx"])
def test_code_that_asserts_nothing_at_its_end_is_left_out(code: str) -> None:
    assert not Scene().program(code)


def test_a_comparison_and_a_refusal() -> None:
    assert comparison("x = 1\nx, 2", "got == wanted") == "x = 1\ngot, wanted = x, 2\nassert got == wanted"
    assert not comparison("f(x) - f(y)", "got == wanted")
    assert not comparison("", "got == wanted")
    program = refusal("f()", ["LayerError", "InputError"], "no error")
    assert "except (errors.LayerError, errors.InputError):" in program
    with pytest.raises(AssertionError, match="no error"):
        exec(f"from featreg import errors\n{program}", {"f": int})
    with pytest.raises(ZeroDivisionError):
        exec(f"from featreg import errors\n{program}", {"f": lambda: 1 / 0})
    assert not refusal("", ["LayerError"], "no error")


def test_a_request_is_opened_as_a_caller_writes_it() -> None:
    request = ExtractionRequest("acme:toy", ["C1", 0], options={"texts": ["a"]}, pool="avgpool=3,2,1")
    written = opening(request)
    assert "options={'texts': ['a']}" in written or "options={'texts': ('a',)}" in written
    assert "pool='avgpool=3,2,1'" in written
    assert written.startswith("featreg.create_extractor('acme:toy', ['C1', 0], ")
