"""Lists of expected failures: each entry says all that it must, and comes to an end."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest

from featreg import errors
from featreg.conformance import expected, make_plan
from featreg.conformance.expected import ExpectedFailure, read_expected
from featreg.registry import Registry

ENTRY = {
    "check": '"values.repeat"',
    "case": '"tinynet"',
    "reason": '"rounds"',
    "url": '"https://example.org/1"',
    "until": '"numpy>=999"',
}


def write(folder: Path, **fields: str | None) -> Path:
    """A list of one entry, with other fields; None leaves one out."""
    lines = [f"{name} = {value}\n" for name, value in {**ENTRY, **fields}.items() if value is not None]
    path = folder / "xfails.toml"
    path.write_text("".join(["[[failure]]\n", *lines]))
    return path


@pytest.fixture
def new_year(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expected, "today", lambda: datetime.date(2030, 1, 1))


@pytest.mark.usefixtures("new_year")
@pytest.mark.parametrize(
    ("until", "over"),
    [
        ('"2030-01-01"', ""),
        ("2030-01-01", ""),
        ('"2029-12-31"', "2029-12-31 has passed"),
        ("2029-12-31", "2029-12-31 has passed"),
        ('"numpy>=1"', "numpy>=1 is installed"),
        (f'"numpy>{np.__version__}"', ""),
        ('"NumPy == 999"', ""),
    ],
)
def test_an_entry_ends_with_a_version_or_after_a_day(tmp_path: Path, until: str, over: str) -> None:
    path = write(tmp_path, until=until)
    (entry,) = read_expected(path)
    assert entry.over == over
    faults = make_plan("numpy", registry=Registry({}), xfails=path).faults
    assert faults == ((f"the expected failure of values.repeat on tinynet is over: {over}",) if over else ())


@pytest.mark.parametrize(
    ("until", "fault"),
    [
        ('"soon"', "ends with no version"),
        ('"never"', "ends with no version"),
        ('"numpy"', "ends with no version"),
        ("\"numpy>=2; python_version<'3'\"", "ends with no version"),
        ('"nosuch>=1"', "ends with nosuch, which is not installed"),
        ('"some day"', "has no end"),
        ('"2030-13-01"', "ends with no version"),
        ("2030-01-01T00:00:00Z", "until of an expected failure is no text"),
        ("2030", "until of an expected failure is no text"),
        ('" "', "until of an expected failure is empty"),
    ],
)
def test_an_end_that_never_comes_is_refused(tmp_path: Path, until: str, fault: str) -> None:
    with pytest.raises(errors.SpecError) as caught:
        read_expected(write(tmp_path, until=until))
    assert caught.value.problem.endswith(fault)
    assert "a requirement with versions as in 'acme>=2', or a date as in 2030-01-31" in caught.value.expected


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"url": None}, "the expected failure number 1 (values.repeat on tinynet) lacks url"),
        ({"url": None, "until": None}, "the expected failure number 1 (values.repeat on tinynet) lacks url and until"),
        ({"check": None}, "the expected failure number 1 (tinynet) lacks check"),
        ({"link": '"x"'}, "the expected failure number 1 (values.repeat on tinynet) does not know 'link'"),
        (
            {"until": None, "untill": '"numpy>=999"'},
            "the expected failure number 1 (values.repeat on tinynet) lacks until and does not know 'untill'",
        ),
        ({"reason": '""'}, "reason of an expected failure is empty"),
        ({"case": "1"}, "case of an expected failure is no text"),
        ({"url": '"issue 12"'}, "the expected failure of 'values.repeat' has no link"),
    ],
)
def test_what_is_wrong_with_an_entry_is_named(tmp_path: Path, fields: dict[str, str | None], problem: str) -> None:
    with pytest.raises(errors.SpecError) as caught:
        read_expected(write(tmp_path, **fields))
    assert caught.value.problem == problem
    assert caught.value.expected


def test_a_misspelt_key_is_told_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(errors.SpecError) as caught:
        read_expected(write(tmp_path, until=None, untill='"numpy>=999"'))
    assert caught.value.matches == ("until",)


@pytest.mark.parametrize(
    ("check", "why"),
    [
        ("arrays.float16", "skipped: not declared: float16"),
        ("shapes.outside", "does not apply: the model takes every size"),
    ],
)
def test_an_entry_for_a_check_that_is_not_run_is_told_why(tmp_path: Path, check: str, why: str) -> None:
    plan = make_plan("numpy", registry=Registry({}), xfails=write(tmp_path, check=f'"{check}"'))
    assert plan.faults == (f"the expected failure of {check} on tinynet is stale: {why}",)


def test_the_day_is_that_of_the_calendar() -> None:
    assert isinstance(expected.today(), datetime.date)
    past = ExpectedFailure("values.repeat", "tinynet", "rounds", "https://example.org/1", "2020-01-01")
    assert past.over == "2020-01-01 has passed"
