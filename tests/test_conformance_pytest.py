"""The kit under pytest, in sessions of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = """
from featreg.conformance import suite
test_conformance = suite("numpy"{arguments})
"""
SKIPPING = """
import pytest

from featreg.conformance import make_plan

def pytest_collection_modifyitems(items):
    for item in items{which}:
        item.add_marker(pytest.mark.skip(reason="flaky"))
"""


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "pytest_featreg", "-p", "no:cacheprovider", "-q", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


def plan_elsewhere() -> tuple[int, int]:
    """How many checks run and are skipped in a new process: some are for processes that hold a framework alone."""
    code = "plan = make_plan('numpy'); print(len(plan.items), sum(left.skipped for left in plan.left))"
    command = [sys.executable, "-c", f"from featreg.conformance import make_plan; {code}"]
    ran, skipped = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(ran), int(skipped)


def test_the_suite_in_one_line(tmp_path: Path) -> None:
    write(tmp_path, "test_conformance.py", SUITE.format(arguments=""))
    done = run_pytest(tmp_path)
    assert done.returncode == 0, done.stdout
    ran, skipped = plan_elsewhere()
    assert f"{ran + skipped} planned = {ran} ran + 0 expected failures + {skipped} skipped" in done.stdout
    assert f"{ran + 1} passed, {skipped} skipped" in done.stdout


def test_a_backend_by_option(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "--pyargs", "featreg.conformance", "--featreg-backend", "numpy", "-k", "values")
    assert done.returncode == 0, done.stdout
    assert "no proof of the whole" in done.stdout
    assert run_pytest(tmp_path, "--pyargs", "featreg.conformance").returncode != 0


@pytest.mark.parametrize("which", ["", "[:1]"])
def test_tests_that_are_skipped_from_outside_make_the_session_fail(tmp_path: Path, which: str) -> None:
    write(tmp_path, "test_conformance.py", SUITE.format(arguments=""))
    write(tmp_path, "conftest.py", SKIPPING.format(which=which))
    done = run_pytest(tmp_path)
    assert done.returncode == 1
    assert "failed" not in done.stdout.splitlines()[-1]
    assert "LOST" in done.stdout


@pytest.mark.parametrize("autoload", [True, False])
def test_a_session_without_the_plugin_is_red_before_it_begins(tmp_path: Path, autoload: bool) -> None:
    """Who leaves the ledger out could skip every test and be green."""
    write(tmp_path, "test_conformance.py", SUITE.format(arguments=""))
    write(tmp_path, "conftest.py", SKIPPING.format(which=""))
    environment = {**os.environ, **({} if autoload else {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})}
    blocked = ["-p", "no:featreg"] if autoload else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *blocked]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    done = run()
    assert done.returncode != 0, done.stdout
    assert "the ledger of the conformance suite is not kept" in done.stdout
    assert run("-p", "pytest_featreg", "--collect-only").returncode == 0


def test_expected_failures_are_strict(tmp_path: Path) -> None:
    entry = 'check = "{}"\ncase = "tinynet"\nreason = "r"\nurl = "https://example.org"\nuntil = "numpy>=999"\n'
    checks = ("values.repeat", "values.gone")
    write(tmp_path, "x.toml", "".join(f"[[failure]]\n{entry.format(check)}" for check in checks))
    write(tmp_path, "test_conformance.py", SUITE.format(arguments=', xfails="x.toml"'))
    done = run_pytest(tmp_path)
    assert done.returncode == 1
    assert "remove it from the expected failures" in done.stdout
    assert "values.gone on tinynet is stale" in done.stdout
    assert "2 failed" in done.stdout


def test_other_tests_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, "test_other.py", "def test_other():\n    import sys\n    assert 'featreg' not in sys.modules\n")
    done = run_pytest(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "conformance" not in done.stdout
