"""What the kit takes from outside: an oracle, which must stand alone, how much is to be drawn, the import path."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner
from hypothesis import settings

import featreg
from featreg.case import Case, Oracle
from featreg.cli.main import cli
from featreg.conformance import make_plan, run_plan
from featreg.conformance.draws import choosing
from featreg.conformance.elsewhere import ask
from featreg.conformance.running import Report
from featreg.conformance.subject import Subject
from featreg.plugin import ExtractionRequest
from featreg.reference.oracle import oracle as sound
from featreg.registry import Registry, default_registry


class Told(Registry):
    """The installed backends; the reference one has another oracle."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__({})
        self.oracle = oracle

    def cases(self, name: str) -> tuple[Case, ...]:
        (case,) = super().cases(name)
        return (attrs.evolve(case, oracle=self.oracle),)


def judge(oracle: Oracle) -> Report:
    return run_plan(make_plan("numpy", registry=Told(oracle), checks=["values.oracle"]))


def runs_the_extractor(model: str, module: Any) -> Any:
    def layers(images: Any) -> Mapping[Any, Any]:
        with featreg.create_extractor(f"numpy:{model}", ["C1"]) as extractor:
            return dict(extractor(images))

    return layers


def opens_at_once(model: str, module: Any) -> Any:
    extractor = featreg.create_extractor(f"numpy:{model}", ["C1"])
    return lambda images: dict(extractor(images))


def goes_below(model: str, module: Any) -> Any:
    def layers(images: Any) -> Mapping[Any, Any]:
        opened = default_registry().backend("numpy").open(ExtractionRequest(f"numpy:{model}", ["C1"]))
        return {"C1": opened.forward(images)[0]}

    return layers


@pytest.mark.parametrize("oracle", [runs_the_extractor, opens_at_once, goes_below])
def test_an_oracle_that_runs_what_it_judges_is_red(oracle: Oracle) -> None:
    report = judge(oracle)
    assert not report.is_green
    assert "the oracle runs the backend 'numpy', which it is there to judge" in report.outcomes[0].message


def test_an_oracle_that_kept_an_extractor_is_red() -> None:
    with featreg.create_extractor("numpy:tinynet", ["C1"]) as kept:
        assert not judge(lambda model, module: lambda images: dict(kept(images))).is_green
        assert kept.feature_info["C1"].channels == 8


def test_an_oracle_of_its_own_is_asked_and_nothing_stays_refused() -> None:
    assert judge(sound).is_green
    with featreg.create_extractor("numpy:tinynet", ["C1"]) as extractor:
        assert extractor.info.backend == "numpy"


# --- hypothesis -------------------------------------------------------------------------------------------------------


@pytest.fixture
def profile() -> Iterator[str]:
    settings.register_profile("featreg-thorough", max_examples=3, derandomize=False)
    before = settings.get_current_profile_name()
    yield "featreg-thorough"
    settings.load_profile(before)


def draw(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the images that ``shapes.drawn`` draws."""
    shapes: list[tuple[int, ...]] = []
    images = Subject.images

    def recorded(subject: Subject, *arguments: Any, **options: Any) -> Any:
        drawn = images(subject, *arguments, **options)
        shapes.append(drawn.shape)
        return drawn

    with monkeypatch.context() as patch:
        patch.setattr(Subject, "images", recorded)
        assert run_plan(make_plan("numpy", registry=Registry({}), checks=["shapes.drawn"])).is_green
    return shapes


def test_the_same_is_drawn_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first = draw(monkeypatch)
    assert first == draw(monkeypatch)
    assert 6 <= len(first) <= 12


def test_more_can_be_drawn_and_from_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = draw(monkeypatch)
    with choosing(30, None):
        assert len(draw(monkeypatch)) > 12
    with choosing(None, 1):
        one = draw(monkeypatch)
        assert one == draw(monkeypatch) != usual
    with choosing(None, 2):
        assert draw(monkeypatch) != one
    assert draw(monkeypatch) == usual


def test_a_profile_of_the_callers_counts(monkeypatch: pytest.MonkeyPatch, profile: str) -> None:
    settings.load_profile(profile)
    assert len(draw(monkeypatch)) <= 3


def test_the_command_draws_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int | None, int | None]] = []

    def recorded(max_examples: int | None, seed: int | None) -> Any:
        asked.append((max_examples, seed))
        return choosing(max_examples, seed)

    monkeypatch.setattr("featreg.cli.conform.choosing", recorded)
    options = ["--max-examples", "2", "--hypothesis-seed", "7"]
    assert CliRunner().invoke(cli, ["conform", "numpy", "--check", "shapes.drawn", *options]).exit_code == 0
    assert asked == [(2, 7)]


# --- what another process imports -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["{}:", ":{}", "{}::{}", ":", ""])
def test_an_empty_entry_of_the_path_is_not_the_working_directory(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "only_here.py").write_text("")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", path.replace(":", os.pathsep).replace("{}", str(tmp_path / "there")))
    answer = "[importlib.util.find_spec('only_here') is None, sys.path]"
    program = f"import importlib.util, json, sys\nprint(json.dumps({answer}))"
    unseen, entries = ask(program, installed=True)
    assert unseen
    assert (str(tmp_path / "there") in entries) == ("{}" in path)
