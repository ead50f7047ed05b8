"""``featreg conform``: what is refused before a run, and reports that are written whatever becomes of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from featreg.cli import conform as command
from featreg.cli.main import cli

ONE_CHECK = ("numpy", "--check", "values.repeat")


def conform(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["conform", *map(str, arguments)])


@pytest.fixture
def no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: Any) -> None:
        raise AssertionError("it ran")

    for name in ("run_plan", "self_test", "compare_backends"):
        monkeypatch.setattr(command, name, run)


@pytest.mark.usefixtures("no_run")
@pytest.mark.parametrize("arguments", [ONE_CHECK, (*ONE_CHECK, "--self-test"), ("--across",)])
@pytest.mark.parametrize(("path", "fault"), [("gone/r.json", "no folder"), ("folder", "a folder")])
def test_a_report_that_cannot_be_written_is_refused_before_the_run(
    arguments: tuple[str, ...], path: str, fault: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    done = conform(*arguments, "--json", tmp_path / path)
    assert done.exit_code == 2
    assert "a report cannot be written" in done.output
    assert fault in done.output
    assert not (tmp_path / "gone").exists()


@pytest.mark.usefixtures("no_run")
def test_every_such_report_is_named(tmp_path: Path) -> None:
    done = conform(*ONE_CHECK, "--json", tmp_path / "a" / "r.json", "--html", tmp_path / "b" / "r.html")
    assert "r.json" in done.output
    assert "r.html" in done.output


def test_the_other_reports_are_written_where_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def full(path: Path, *arguments: Any, **options: Any) -> int:
        if path.suffix == ".json":
            raise OSError(28, "No space left on device")
        return write(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    done = conform(
        *ONE_CHECK, "--json", tmp_path / "r.json", "--html", tmp_path / "r.html", "--badge", tmp_path / "b.svg"
    )
    assert done.exit_code == 2
    assert "No space left on device" in done.output
    assert "numpy conforms" in done.output, "the verdict is told all the same"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.svg", "r.html"]


@pytest.mark.usefixtures("no_run")
@pytest.mark.parametrize("option", ["--html", "--junit", "--badge"])
def test_the_self_test_writes_json_alone(option: str, tmp_path: Path) -> None:
    done = conform(*ONE_CHECK, "--self-test", option, tmp_path / "r")
    assert done.exit_code == 2
    assert "--self-test takes --json" in done.output


def test_a_check_that_is_named_twice_is_run_once(tmp_path: Path) -> None:
    done = conform(*ONE_CHECK, "--check", "values.repeat", "--json", tmp_path / "r.json")
    assert done.exit_code == 0
    assert json.loads((tmp_path / "r.json").read_text())["ledger"]["planned"] == 1
