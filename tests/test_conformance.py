"""The conformance kit: a perfect backend passes, every broken one is caught, and rot in the kit itself turns red."""

from __future__ import annotations

import json
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import attrs
import numpy as np
import pytest
from click.testing import CliRunner
from packaging.version import Version

from featreg import errors
from featreg.cli.main import cli
from featreg.conformance import make_plan, run_plan, self_test
from featreg.conformance.cases import default_cases, outside_sizes, sizes_of
from featreg.conformance.model import Check, Page, all_checks, find_check
from featreg.conformance.mutants.base import MutantRegistry, all_mutants
from featreg.conformance.page import CHECKS, render_checks
from featreg.conformance.page import MUTANTS as MUTANTS_PAGE
from featreg.conformance.planning import Item, Left, Plan, written_for
from featreg.conformance.running import Report
from featreg.conformance.trial import Verdict
from featreg.registry import Registry, default_registry
from featreg.spec import InputRule

MUTANTS = {mutant.name: mutant for mutant in all_mutants()}
INAPPLICABLE = {  # what the reference network has nothing to break in
    "DroppedPrefix",
    "BareError",
    "PrefixLast",
    "SwappedTwins",
    "IgnoresStride",
    "IgnoresFloat16",
    "OverflowsBfloat16",
    "MovesParameters",
    "StaysInTraining",
    "TrainsAfterwards",
    "LeaksHooks",
    "AlwaysAGraph",
    "CutGraph",
    "HalvedGradient",
    "FrozenParameters",
    "HidesGrad",
    "HidesOutputStride",
    "HidesFloat16",
    "HidesBfloat16",
    "HidesCuda",
    "HidesText",
    "RunsOnTheCpu",
    "IgnoresNativeDtype",
    "IgnoresBfloat16",
    "ClaimsThreads",
    "IgnoresWeights",
    "RunsPickles",
    "ForgetsTheFile",
    "LoadsWhatFits",
    "SaysOnlyThatItFails",
    "KnownByName",
    "RandomByDefault",
    "TrainsUnderGrad",
    "SharesTheNetwork",
    "OtherFramework",
    "CountsThePrefix",
    "LastForClass",
    "CropsAnySize",
    "UnnormalisedTensors",
    "OtherTensors",
    "NormalisesTensorsInPlace",
    "InferenceTensors",
    *(mutant.name for mutant in all_mutants() if mutant.killed_by.startswith("text.")),
}
OF_TORCH = {mutant.name for mutant in all_mutants() if mutant.killed_by.startswith(("callers.", "state.framework"))}
"""Those that break something where another test has imported torch."""

OF_CASES = {"values.has_oracle", "text.has_oracle"}
"""The checks of what an author gives, which no broken backend changes."""

XFAIL = """
[[failure]]
check = "{check}"
case = "{case}"
reason = "known upstream"
url = "https://example.org/1"
until = "{until}"
"""


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan("numpy", registry=Registry({}))


@pytest.fixture(scope="module")
def report(plan: Plan) -> Report:
    return run_plan(plan)


@pytest.fixture(scope="module")
def verdicts(plan: Plan) -> dict[str, Verdict]:
    return {verdict.mutant.name: verdict for verdict in self_test(plan)}


def only(plan: Plan, *checks: str) -> Plan:
    return attrs.evolve(plan, items=tuple(item for item in plan.items if item.check.id in checks), left=())


def with_check(plan: Plan, check_id: str, **changes: Any) -> Plan:
    items = [
        attrs.evolve(item, check=attrs.evolve(item.check, **changes)) if item.check.id == check_id else item
        for item in plan.items
    ]
    return attrs.evolve(plan, items=tuple(items))


def broken(plan: Plan, mutant: str) -> Plan:
    registry = MutantRegistry(plan.registry, plan.backend, MUTANTS[mutant])
    return attrs.evolve(plan, registry=registry)


def xfails(folder: Path, *entries: tuple[str, str, str]) -> Path:
    path = folder / "xfails.toml"
    path.write_text("".join(XFAIL.format(check=check, case=case, until=until) for check, case, until in entries))
    return path


# --- the kit on a perfect backend ---------------------------------------------------------------------------------


def test_the_reference_backend_passes_everything(report: Report) -> None:
    assert [outcome.message for outcome in report.outcomes if outcome.status != "passed"] == []
    assert report.is_green
    assert report.ledger.expected == report.ledger.shortfall == 0
    assert report.ledger.planned == report.ledger.ran + report.ledger.skipped


def test_only_undeclared_capabilities_are_skipped(report: Report) -> None:
    declared = {"native_array", "native_names", "thread_safe"}
    for left in report.left:
        assert left.skipped == bool(set(left.check.needs) - declared)
        assert left.reason


def test_a_network_with_a_free_size_is_tried_at_every_form(plan: Plan) -> None:
    (case,) = {item.subject_case for item in plan.items}
    ratios = {height > width for height, width in case.sizes if height != width}
    assert ratios == {True, False}
    assert any(height % 2 and width % 2 for height, width in case.sizes)
    assert (1, 1) in case.sizes


# --- the kit on broken backends -----------------------------------------------------------------------------------


def test_there_are_enough_mutants() -> None:
    assert len(MUTANTS) >= 50


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_killed_by_the_check_that_names_it(name: str, verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts[name]
    if name in OF_TORCH:
        assert verdict.fate in ("killed", "inapplicable")
    else:
        assert verdict.fate == ("inapplicable" if name in INAPPLICABLE else "killed")
    if verdict.fate == "killed":
        assert verdict.message.startswith(verdict.mutant.killed_by)


@pytest.mark.parametrize("name", sorted(set(MUTANTS) - INAPPLICABLE - {"CloseFails", "Handles"}))
def test_mutants_die_of_what_they_break_and_not_of_a_bug_in_them(name: str, verdicts: dict[str, Verdict]) -> None:
    assert "Traceback" not in verdicts[name].message


@pytest.mark.parametrize("check", [check for check in all_checks() if check.id not in OF_CASES])
def test_every_check_has_a_mutant(check: Check) -> None:
    assert check.id in {mutant.killed_by for mutant in MUTANTS.values()}


def test_mutants_leave_the_registry_as_it_was(verdicts: dict[str, Verdict], plan: Plan) -> None:
    assert verdicts
    assert run_plan(plan).is_green


def test_a_case_without_an_oracle_is_told_and_fails_nothing(plan: Plan) -> None:
    bare = [attrs.evolve(item, subject_case=attrs.evolve(item.subject_case, oracle=None)) for item in plan.items]
    report = run_plan(only(attrs.evolve(plan, items=tuple(bare)), "values.has_oracle", "values.repeat"))
    assert report.is_green
    assert [outcome.check.id for outcome in report.warnings] == ["values.has_oracle"]


def test_a_failure_is_a_bug_report_whose_snippet_runs(plan: Plan) -> None:
    (outcome,) = run_plan(only(broken(plan, "Rescaled"), "values.oracle")).outcomes
    assert outcome.status == "failed"
    for part in ("numpy:tinynet", "layer: 'C1'", "case: tinynet (64x64, seed 0)", "expected: ", "got: ", "--explain"):
        assert part in outcome.message
    lines = outcome.message.split("reproduce:\n")[1].splitlines()
    snippet = "\n".join(line[4:] for line in lines if line.startswith("    "))
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert names["got"].shape == (2, 8, 32, 32)


# --- rot in the kit -----------------------------------------------------------------------------------------------


def test_a_check_that_asserts_nothing_is_lost(plan: Plan) -> None:
    report = run_plan(with_check(plan, "values.repeat", run=lambda subject: None))
    assert not report.is_green
    assert report.ledger.shortfall == 1
    assert [outcome.check.id for outcome in report.failures] == ["values.repeat"]


def test_a_check_that_always_passes_lets_its_mutants_live(plan: Plan) -> None:
    blind = with_check(plan, "values.repeat", run=lambda subject: subject.expect(True, "never"))
    survivors = {verdict.mutant.name for verdict in self_test(blind) if verdict.fate == "survived"}
    assert survivors == {"Drifts", "DropsOut"}


def _skip(subject: Any) -> None:
    pytest.skip("too slow")


def _skip_as_unittest(subject: Any) -> None:
    raise unittest.SkipTest("too slow")


@pytest.mark.parametrize("run", [_skip, _skip_as_unittest])
def test_a_check_that_skips_itself_is_lost(plan: Plan, run: Callable[[Any], None]) -> None:
    report = run_plan(with_check(plan, "values.repeat", run=run))
    assert not report.is_green
    assert report.ledger.shortfall == 1
    assert f"1 of {report.ledger.planned} planned checks have no verdict" in report.faults


def test_an_item_that_is_dropped_is_missed(plan: Plan) -> None:
    outcomes = run_plan(only(plan, "values.repeat", "values.batch")).outcomes
    report = Report.of(plan, outcomes)
    assert not report.is_green
    assert report.ledger.shortfall == len(plan.items) - 2


def test_a_run_of_skips_alone_is_red(plan: Plan) -> None:
    left = tuple(Left(item.check, item.case, "not declared: grad", skipped=True) for item in plan.items)
    report = run_plan(attrs.evolve(plan, items=(), left=left))
    assert report.ledger.shortfall == 0
    assert not report.is_green
    assert "nothing ran" in report.faults[0]


def test_a_backend_that_declares_nothing_is_not_green_by_it(plan: Plan) -> None:
    assert not run_plan(only(broken(plan, "NoNativeNames"), "capabilities.native_names")).is_green


# --- expected failures --------------------------------------------------------------------------------------------


def test_an_expected_failure_is_expected(tmp_path: Path, plan: Plan) -> None:
    path = xfails(tmp_path, ("values.repeat", "tinynet", "numpy>=999"))
    listed = make_plan("numpy", xfails=path, checks=["values.repeat"])
    report = run_plan(attrs.evolve(listed, registry=broken(plan, "Drifts").registry))
    assert report.is_green
    assert (report.ledger.ran, report.ledger.expected, report.ledger.shortfall) == (0, 1, 0)
    (outcome,) = report.outcomes
    assert "known upstream (https://example.org/1, until numpy>=999)" in outcome.message


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (("values.repeat", "tinynet", "numpy>=999"), "passes on tinynet: remove it"),
        (("values.repeat", "tinynet", "numpy>=1"), "is over: numpy>=1 is installed"),
        (("values.repeat", "tinynett", "numpy>=999"), "did you mean values.repeat on tinynet"),
        (("values.repaet", "tinynet", "numpy>=999"), "is stale: no such item"),
        (("values.*", "tinynet", "numpy>=999"), "is stale: no such item"),
        (("arrays.float16", "tinynet", "numpy>=999"), "is stale: skipped: not declared: float16"),
    ],
)
def test_an_expected_failure_that_is_out_of_date_is_red(
    tmp_path: Path, entry: tuple[str, str, str], fault: str
) -> None:
    report = run_plan(make_plan("numpy", xfails=xfails(tmp_path, entry), checks=["values.repeat"]))
    assert not report.is_green
    assert any(fault in text for text in (*report.faults, *(outcome.message for outcome in report.failures)))


@pytest.mark.parametrize(
    "text",
    [
        "no toml",
        '[[failure]]\ncheck = "values.repeat"\n',
        XFAIL.format(check="values.repeat", case="tinynet", until="numpy>=999").replace("https", "nowhere"),
        XFAIL.format(check="values.repeat", case="tinynet", until="some day"),
        XFAIL.format(check="values.repeat", case="tinynet", until="numpy>=999") * 2,
        'globs = ["values.*"]\n',
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "xfails.toml"
    path.write_text(text)
    with pytest.raises(errors.SpecError):
        make_plan("numpy", xfails=path)


# --- checks -------------------------------------------------------------------------------------------------------


def test_ids_are_unique_and_every_page_is_whole() -> None:
    checks = all_checks()
    assert len({check.id for check in checks}) == len(checks) >= 50
    for check in checks:
        assert all(len(part) > 20 for part in attrs.astuple(check.page)), check.id


def test_a_page_without_its_parts_is_refused() -> None:
    with pytest.raises(errors.SpecError, match="not explained"):
        Page.parse("some.check", "It asserts something.\n\nWhy: because.")


def test_an_unknown_check_is_named_with_its_nearest() -> None:
    with pytest.raises(errors.RequestError) as caught:
        find_check("values.orcale")
    assert "values.oracle" in caught.value.matches


@pytest.mark.parametrize(
    ("declared", "version"),
    [(">=1.0,<2", "1.0"), ("~=1.3", "1.0"), ("==1.*", "1.0"), ("<2", "1.0"), (">=0.5,<2", "1.0"), (">0.9,<2", "1.0")],
)
def test_the_version_that_a_backend_was_written_for(declared: str, version: str) -> None:
    assert written_for(declared) == Version(version)


def test_a_check_of_a_later_version_is_a_preview_that_fails_nothing(plan: Plan) -> None:
    later = with_check(only(broken(plan, "Drifts"), "values.repeat", "values.finite"), "values.repeat", since="1.1")
    report = run_plan(later)
    assert report.is_green
    assert [outcome.preview for outcome in report.warnings] == [True]
    assert not run_plan(attrs.evolve(later, written_for=Version("1.1"))).is_green


def test_the_page_in_the_docs_is_that_of_the_checks() -> None:
    folder = Path(__file__).parents[1] / "docs"
    assert (folder / CHECKS).read_text(encoding="utf-8") == render_checks(), "python -m featreg.conformance.page docs/"


def test_the_page_of_mutants_in_the_docs_is_of_these_mutants_and_all_are_dead() -> None:
    page = (Path(__file__).parents[1] / "docs" / MUTANTS_PAGE).read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.count(" | ") > 2][1:]
    found = {(row[0].removeprefix("| "), row[2].strip("`")) for row in rows if not row[0].startswith("| ---")}
    assert found == {(mutant.name, mutant.killed_by) for mutant in MUTANTS.values()}, "nox -s mutants"
    assert "**" not in page, "a mutant lives, or was not tried"


# --- cases --------------------------------------------------------------------------------------------------------


def test_cases_of_a_backend_whose_author_gives_none() -> None:
    (case,) = default_cases("numpy", default_registry())
    assert case.model == "tinynet"
    assert case.layers == ("C1", "C2", "C3", "C4", "C5", "features", "pooled", "logits")
    assert case.oracle is None


def test_sizes_of_every_form() -> None:
    sizes = sizes_of("numpy", "tinynet", default_registry())
    assert sizes == ((64, 64), (96, 64), (64, 96), (65, 67), (1, 1))


@pytest.mark.parametrize(
    ("rule", "inside", "outside"),
    [
        (InputRule(), (64, 64), ()),
        (InputRule(fixed=(32, 32)), (32, 32), ((33, 32), (32, 33), (32, 16))),
        (InputRule(minimum=(8, 16)), (64, 64), ((7, 64), (64, 15))),
        (InputRule(multiple_of=4), (64, 64), ((65, 64), (64, 65))),
    ],
)
def test_sizes_outside_a_rule(rule: InputRule, inside: tuple[int, int], outside: tuple[tuple[int, int], ...]) -> None:
    assert outside_sizes(rule, inside) == outside
    for size in outside:
        with pytest.raises(errors.InputError):
            rule.check(*size)


def test_the_oracle_of_the_reference_is_right_and_its_own() -> None:
    from featreg.reference import backend
    from featreg.reference.oracle import oracle

    images = np.random.default_rng(3).standard_normal((1, 3, 4, 4), dtype=np.float32)
    first = backend.weights()[0][0].astype(float)
    by_hand = sum(
        float(images[0, c, y, x]) * first[5, c, y - 1, x - 1] for c in range(3) for y in (1, 2, 3) for x in (1, 2, 3)
    )
    assert oracle("tinynet", None)(images)["C1"][0, 5, 1, 1] == pytest.approx(max(by_hand, 0))


def test_an_unknown_model_pattern_is_refused() -> None:
    with pytest.raises(errors.UnknownModelError):
        make_plan("numpy", models="resnet*")


# --- the command line ---------------------------------------------------------------------------------------------


def conform(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["conform", *map(str, arguments)])


def test_the_command_writes_all_four_reports(tmp_path: Path) -> None:
    paths = {kind: tmp_path / f"r.{kind}" for kind in ("json", "junit", "html", "badge")}
    done = conform("numpy", *(part for kind, path in paths.items() for part in (f"--{kind}", path)))
    assert done.exit_code == 0, done.output
    assert "numpy conforms" in done.output
    found = json.loads(paths["json"].read_text())
    ledger = found["ledger"]
    assert found["green"]
    assert ledger["planned"] == ledger["ran"] + ledger["expected"] + ledger["skipped"]
    suite = ElementTree.fromstring(paths["junit"].read_text())
    assert int(suite.attrib["tests"]) == ledger["planned"] == len(suite)
    assert suite.attrib["failures"] == "0"
    page = paths["html"].read_text()
    assert "conforms" in page
    assert "src=" not in page
    assert "href=" not in page
    assert f"{ledger['ran']}/{ledger['ran']}" in paths["badge"].read_text()


def test_a_failure_ends_in_exit_code_one(tmp_path: Path) -> None:
    path = xfails(tmp_path, ("values.repeat", "tinynet", "numpy>=999"))
    done = conform("numpy", "--check", "values.repeat", "--xfails", path)
    assert done.exit_code == 1
    assert "does not conform" in done.output


def test_a_narrowed_run_says_so(tmp_path: Path) -> None:
    done = conform("numpy", "--check", "values.repeat", "--badge", tmp_path / "b.svg")
    assert done.exit_code == 0
    assert "no proof of the whole" in done.output
    assert "narrowed" in (tmp_path / "b.svg").read_text()


def test_listing_and_explaining() -> None:
    listed = conform("--list").output
    assert all(check.id in listed for check in all_checks())
    page = conform("--explain", "values.oracle").output
    assert all(f"{part}: " in page for part in ("asserts", "why", "caught", "mend"))
    assert conform("--explain", "values.orcale").exit_code == 2
    assert conform().exit_code == 2


def test_the_self_test_on_the_command_line(tmp_path: Path) -> None:
    done = conform("numpy", "--self-test", "--json", tmp_path / "mutants.json")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "mutants.json").read_text())
    assert {entry["mutant"] for entry in found} == set(MUTANTS)


def test_mutants_that_live_end_in_exit_code_one() -> None:
    done = conform("numpy", "--self-test", "--check", "values.finite")
    assert done.exit_code == 1
    assert "untestable: Drifts" in done.output


def test_item_ids() -> None:
    check = find_check("values.repeat")
    (case,) = default_registry().cases("numpy")
    assert Item(check, case.name, case).id == "values.repeat-tinynet"
