"""Backends against each other: a small slice of the real ones, and planted differences, each of which must show."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from click.testing import CliRunner

import featreg
from featreg import errors
from featreg.cli.main import cli
from featreg.conformance import across
from featreg.conformance.agreement import architectures
from featreg.conformance.agreement.architectures import Architecture, Deviations, Level, Member, load_architectures
from featreg.conformance.agreement.matrix import Matrix, Row
from featreg.conformance.agreement.reports import cell_text, matrix_dict, matrix_page
from featreg.plugin import (
    Array,
    Backend,
    BackendExtractor,
    BackendSpec,
    ExtractionRequest,
    FeatureInfo,
    ModelInfo,
    Size,
)
from featreg.reference.backend import NumpyBackend, NumpyExtractor
from featreg.registry import Plugin, Registry

SMALL: tuple[Size, ...] = ((64, 64), (33, 47))

# --- backends that are the reference one, but for what a test plants --------------------------------------------------


class Twin(Backend):
    """The reference backend under another name, which ``info`` and ``change`` make differ."""

    def __init__(
        self,
        name: str,
        info: Callable[[ModelInfo], ModelInfo] = lambda info: info,
        change: Callable[[Array, FeatureInfo], Array] = lambda array, _: array,
    ) -> None:
        self.name, self.describe, self.change = name, info, change
        self.inner = NumpyBackend()

    def models(self) -> Sequence[str]:
        return self.inner.models()

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        return self.describe(attrs.evolve(self.inner.info(model, input_size), backend=self.name))

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        alike = dict(request.options).get("alike", False)
        opened = self.inner.open(attrs.evolve(request, options={}))
        info = self.info(request.model)
        assert isinstance(opened, NumpyExtractor)
        changed = Changed(opened, attrs.evolve(info, deviations=()) if alike else info)
        changed.change = (lambda array, _: array) if alike else self.change
        return changed


class Changed(BackendExtractor):
    def __init__(self, inner: NumpyExtractor, info: ModelInfo) -> None:
        self.inner, self.info = inner, info
        self.features = tuple(info.resolve(feature.level or feature.head or feature.name) for feature in inner.features)
        self.change: Callable[[Array, FeatureInfo], Array] = lambda array, _: array

    def forward(self, batch: Array) -> list[Array]:
        return [self.change(array, info) for array, info in zip(self.inner.forward(batch), self.features, strict=True)]


class Twins(Registry):
    def __init__(self, *twins: Backend) -> None:
        super().__init__({"FEATREG_ONLY": "nothing"})
        self.twins = {twin.name: twin for twin in twins}  # type: ignore[attr-defined]

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.twins))

    def spec(self, name: str) -> BackendSpec:
        return BackendSpec(name, "a:B", capabilities=self.twins[name].info("tinynet").capabilities)

    def plugin(self, name: str) -> Plugin:
        return Plugin(name, "twins", "featreg-twins", "1.0")

    def backend(self, name: str) -> Backend:
        return self.twins[name]


CHANNELS = {"C1": 8, "C2": 16, "C3": 24, "C4": 32, "C5": 48}
TINY = Architecture(
    "tinynet",
    (64, 64),
    tuple(
        Level(name, channels, 2**k, (channels, 64 // 2**k, 64 // 2**k))
        for k, (name, channels) in enumerate(CHANNELS.items(), start=1)
    ),
    (Member("one", "tinynet"), Member("two", "tinynet")),
)


def recording(deviates: Deviations, alike: Mapping[str, Any] | None = None) -> Architecture:
    """The table with a record of how far the second backend is off."""
    return attrs.evolve(TINY, members=(TINY.members[0], Member("two", "tinynet", alike or {}, deviates)))


LARGER: Deviations = {"C3": {(64, 64): 0.25, (33, 47): 0.25}}


def compare(*twins: Backend, table: Architecture = TINY, sizes: Sequence[Size] = SMALL) -> Matrix:
    return across(table, sizes=sizes, registry=Twins(*twins))


def verdicts(row: Row) -> dict[str, str]:
    return {cell.level: cell.verdict for cell in row.cells}


def at(level: str, change: Callable[[Any], Any]) -> Callable[[Array, FeatureInfo], Array]:
    return lambda array, info: change(array) if info.level == level else array


def test_twins_agree_bit_for_bit() -> None:
    matrix = compare(Twin("one"), Twin("two"))
    first, second = matrix.rows
    assert matrix.is_green
    assert matrix.backends == {"one": "featreg-twins 1.0", "two": "featreg-twins 1.0"}
    assert set(verdicts(first).values()) == {"reference"}
    assert verdicts(second) == dict.fromkeys([*CHANNELS, "logits"], "equal")
    assert [cell_text(cell) for cell in second.cells] == ["="] * 6
    assert second.cells[0].shapes == {(64, 64): (1, 8, 32, 32), (33, 47): (1, 8, 17, 24)}


PLANTED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a part in ten thousand": (
        lambda array: array * np.float32(1.0002),
        "values apart by 0.0002 of the largest at 64x64",
    ),
    "one value": (lambda array: _with(array, 1.0), "values apart by"),
    "swapped axes": (lambda array: np.ascontiguousarray(array.swapaxes(2, 3)), "values apart by"),
    "not a number": (lambda array: _with(array, np.nan), "values that are not finite at 64x64"),
    "doubles": (lambda array: array.astype(np.float64), "no C-contiguous float32 array at 64x64"),
    "another layout": (lambda array: array.copy(order="F"), "no C-contiguous float32 array at 64x64"),
}


def _with(array: Any, value: float) -> Any:
    changed = array.copy()
    changed[0, 0, 0, 0] += value
    return changed


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_difference_is_red(name: str) -> None:
    change, problem = PLANTED[name]
    matrix = compare(Twin("one"), Twin("two", change=at("C3", change)), sizes=((64, 64),))
    row = matrix.rows[1]
    assert not matrix.is_green
    assert row.is_red
    assert verdicts(row) == {**dict.fromkeys([*CHANNELS, "logits"], "equal"), "C3": "differs"}
    json.dumps(matrix_dict(matrix), allow_nan=False)
    (found,) = [cell.problems for cell in row.cells if cell.level == "C3"]
    assert any(problem in text for text in found), found


def test_rounding_is_no_difference() -> None:
    change = at("C3", lambda array: array * np.float32(1.000001))
    row = compare(Twin("one"), Twin("two", change=change)).rows[1]
    assert verdicts(row)["C3"] == "equal"
    assert 0 < (row.cells[2].worst or 0) < 1e-5


def test_atol_shrinks_with_small_features() -> None:
    """What is far below 1 all over is not equal to everything else far below 1."""
    one = Twin("one", change=at("C2", lambda array: array * np.float32(1e-6)))
    two = Twin("two", change=at("C2", lambda array: array * np.float32(2e-6)))
    assert verdicts(compare(one, two).rows[1])["C2"] == "differs"


def declaring(*sentences: str) -> Callable[[ModelInfo], ModelInfo]:
    return lambda info: attrs.evolve(info, deviations=sentences)


def test_a_declared_deviation_is_told_with_its_size() -> None:
    two = Twin("two", declaring("stage 3 is larger"), at("C3", lambda array: array * np.float32(1.25)))
    matrix = compare(Twin("one"), two, table=recording(LARGER))
    row = matrix.rows[1]
    assert matrix.is_green
    assert row.deviations == ("stage 3 is larger",)
    assert verdicts(row)["C3"] == "deviates"
    assert verdicts(row)["C4"] == "equal"
    assert row.cells[2].worst == pytest.approx(0.25)
    assert not row.is_idle
    told = "the backends agree, 1 level deviates as declared, by at most 0.25 of the largest value"
    assert matrix.headline == matrix_dict(matrix)["headline"] == told
    assert told in matrix_page(matrix)


def test_a_deviation_without_a_recorded_size_is_red() -> None:
    two = Twin("two", declaring("stage 3 is larger"), at("C3", lambda array: array * np.float32(1.25)))
    (problem, *_) = compare(Twin("one"), two).rows[1].cells[2].problems
    assert problem == (
        "values apart by 0.25 of the largest at 64x64: a deviation is declared, and its size is recorded nowhere"
    )


EPS: Deviations = {level: {(64, 64): 0.0024} for level in (*CHANNELS, "logits")}
"""As another epsilon of batch normalisation deviates."""


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_small_deviation_excuses_no_large_error(factor: float) -> None:
    """Rows in another order, and three times too large, are no epsilon."""
    two = Twin("two", declaring("adds 1e-5"), lambda array, _: array[:, ::-1].copy() * np.float32(factor))
    row = compare(Twin("one"), two, table=recording(EPS)).rows[1]
    assert set(verdicts(row).values()) == {"differs"}
    assert "0.0024 is recorded" in row.cells[0].problems[0]


@pytest.mark.parametrize(("factor", "verdict"), [(1.002, "deviates"), (1.0047, "deviates"), (1.0049, "differs")])
def test_twice_the_recorded_size_is_the_most(factor: float, verdict: str) -> None:
    two = Twin("two", declaring("adds 1e-5"), at("C3", lambda array: array * np.float32(factor)))
    assert verdicts(compare(Twin("one"), two, table=recording(EPS)).rows[1])["C3"] == verdict


def test_a_record_is_of_one_level_and_one_size() -> None:
    """Even padding and TensorFlow's are the same at odd sizes: there a backend that deviates by it must agree."""
    padding: Deviations = {"C3": {(64, 64): 1.2, (33, 47): 0}}
    two = Twin("two", declaring("pads otherwise"), at("C3", lambda array: array * np.float32(1.1)))
    (problem,) = compare(Twin("one"), two, table=recording(padding)).rows[1].cells[2].problems
    assert problem == "values apart by 0.1 of the largest at 33x47: 0 is recorded"
    two = Twin("two", declaring("pads otherwise"), at("C4", lambda array: array * np.float32(1.1)))
    assert not compare(Twin("one"), two, table=recording(padding)).is_green


def test_a_record_excuses_nothing_that_is_not_declared() -> None:
    two = Twin("two", change=at("C3", lambda array: array * np.float32(1.25)))
    assert not compare(Twin("one"), two, table=recording(LARGER)).is_green


def test_options_must_explain_a_deviation_away() -> None:
    """What is left with the options that make a backend compute alike is excused by no record."""

    class Stubborn(Twin):
        def open(self, request: ExtractionRequest) -> BackendExtractor:
            return super().open(attrs.evolve(request, options={}))

    two = Stubborn("two", declaring("is larger"), at("C3", lambda array: array * np.float32(1.25)))
    _, plain, alike = compare(Twin("one"), two, table=recording(LARGER, {"alike": True})).rows
    assert (verdicts(plain)["C3"], verdicts(alike)["C3"]) == ("deviates", "differs")


def test_the_same_deviation_undeclared_is_red() -> None:
    two = Twin("two", change=at("C3", lambda array: array * np.float32(1.25)))
    assert not compare(Twin("one"), two).is_green


def test_a_deviation_that_does_not_show_is_told() -> None:
    matrix = compare(Twin("one"), Twin("two", declaring("pads otherwise")))
    assert matrix.is_green
    assert matrix.rows[1].is_idle
    assert "does not show" in matrix_page(matrix)


def test_no_deviation_excuses_another_description() -> None:
    def wider(info: ModelInfo) -> ModelInfo:
        features = [attrs.evolve(one, channels=25) if one.level == "C3" else one for one in info.features]
        return attrs.evolve(info, features=features, deviations=("is wider",))

    two = Twin("two", wider, at("C3", lambda array: np.concatenate([array, array[:, :1]], axis=1)))
    matrix = compare(Twin("one"), two)
    assert not matrix.is_green
    assert verdicts(matrix.rows[1])["C3"] == "differs"


def test_other_shapes_are_red_unless_declared() -> None:
    def floor(info: ModelInfo) -> ModelInfo:
        features = [attrs.evolve(one, rounding="floor") if one.level == "C1" else one for one in info.features]
        return attrs.evolve(info, features=features)

    def declared(info: ModelInfo) -> ModelInfo:
        return attrs.evolve(floor(info), deviations=("rounds down",))

    table = recording({"C1": {(64, 64): 0, (33, 47): None}})
    change = at("C1", lambda array: np.ascontiguousarray(array[:, :, : array.shape[2] // 2 * 2, : array.shape[3]]))
    cut = at("C1", lambda array: np.ascontiguousarray(array[:, :, :16, :23]) if array.shape[2] == 17 else array)
    assert not compare(Twin("one"), Twin("two", floor, cut), table=table).is_green
    assert not compare(Twin("one"), Twin("two", declared, cut), table=recording({"C1": {(33, 47): 0.1}})).is_green
    matrix = compare(Twin("one"), Twin("two", declared, cut), table=table)
    (cell,) = [cell for cell in matrix.rows[1].cells if cell.level == "C1"]
    assert matrix.is_green
    assert (cell.verdict, cell.differences[33, 47], cell_text(cell)) == ("deviates", None, "shape =")
    assert matrix.headline.endswith(
        "1 level deviates as declared, by at most 0 of the largest value, 1 of them in shape"
    )
    wrong = compare(Twin("one"), Twin("two", declared, change), table=table)
    assert not wrong.is_green, "no deviation excuses a wrong prediction"


def test_a_missing_level_is_red() -> None:
    def without(info: ModelInfo) -> ModelInfo:
        return attrs.evolve(info, features=[one for one in info.features if one.level != "C2"])

    matrix = compare(Twin("one"), Twin("two", without))
    assert not matrix.is_green
    assert matrix.rows[1].problems == ("has the levels C1, C3, C4, C5, not C1, C2, C3, C4, C5",)


def test_the_first_backend_is_held_against_the_table() -> None:
    wrong = attrs.evolve(TINY, levels=(*TINY.levels[:4], attrs.evolve(TINY.levels[4], shape=(48, 1, 1))))
    matrix = compare(Twin("one"), Twin("two"), table=wrong)
    assert not matrix.is_green
    assert "shape at 64x64 (1, 48, 2, 2), not (1, 48, 1, 1)" in matrix.rows[0].cells[4].problems


def test_options_that_mend_a_deviation_are_tried_too() -> None:
    table = recording({"C3": {(64, 64): 1.0}}, {"alike": True})
    two = Twin("two", declaring("is larger"), at("C3", lambda array: array * np.float32(2)))
    _, plain, alike = compare(Twin("one"), two, table=table).rows
    assert (verdicts(plain)["C3"], verdicts(alike)["C3"]) == ("deviates", "equal")
    assert alike.way.label == "two (alike=True)"
    assert alike.deviations == ()


def test_a_backend_that_fails_is_red_and_the_others_are_still_compared() -> None:
    def broken(info: ModelInfo) -> ModelInfo:
        raise RuntimeError("out of order")

    table = attrs.evolve(TINY, members=(*TINY.members, Member("three", "tinynet")))
    registry = Twins(Twin("one"), Twin("two"), Twin("three"))
    registry.twins["two"] = Twin("two", broken)
    registry.spec = lambda name: BackendSpec(name, "a:B", capabilities=("synthetic_weights",))  # type: ignore[method-assign]
    matrix = across(table, sizes=SMALL, registry=registry)
    assert [row.is_red for row in matrix.rows] == [False, True, False]
    assert "out of order" in matrix.rows[1].problems[0]


def test_a_size_that_is_not_taken_is_told_and_the_others_compared() -> None:
    def fixed(info: ModelInfo) -> ModelInfo:
        return attrs.evolve(info, input_rule=attrs.evolve(info.input_rule, fixed=(64, 64)))

    matrix = compare(Twin("one"), Twin("two", fixed))
    assert matrix.is_green
    assert list(matrix.rows[1].refused) == [(33, 47)]
    assert list(matrix.rows[1].cells[0].differences) == [(64, 64)]


def test_a_size_that_the_rule_allows_and_the_backend_refuses_is_red() -> None:
    def refuse(array: Any, info: FeatureInfo) -> Any:
        if info.level == "C1" and array.shape[2] == 17:
            raise errors.InputError("too odd")
        return array

    matrix = compare(Twin("one"), Twin("two", change=refuse))
    assert not matrix.is_green
    assert "too odd" in matrix.rows[1].problems[0]


def test_sizes_that_no_two_backends_share_are_red() -> None:
    def fixed(info: ModelInfo) -> ModelInfo:
        return attrs.evolve(info, input_rule=attrs.evolve(info.input_rule, fixed=(96, 96)))

    assert not compare(Twin("one"), Twin("two", fixed)).is_green


def test_one_backend_alone_proves_nothing() -> None:
    matrix = compare(Twin("one"))
    assert set(verdicts(matrix.rows[0]).values()) == {"alone"}
    assert not matrix.is_green
    assert "nothing was compared" in matrix.faults[0]
    assert not compare().is_green


# --- reports ----------------------------------------------------------------------------------------------------------


def test_json_holds_everything() -> None:
    two = Twin("two", declaring("is larger"), at("C3", lambda array: array * np.float32(1.25)))
    found = json.loads(json.dumps(matrix_dict(compare(Twin("one"), two, table=recording(LARGER)))))
    assert (found["green"], found["seed"], found["sizes"]) == (True, 0, [[64, 64], [33, 47]])
    row = found["rows"][1]
    assert (row["backend"], row["model"], row["deviations"], row["red"]) == ("two", "tinynet", ["is larger"], False)
    cell = row["cells"][2]
    assert (cell["level"], cell["verdict"], cell["shapes"]["33x47"]) == ("C3", "deviates", [1, 24, 5, 6])
    assert cell["differences"]["64x64"] == pytest.approx(0.25)
    assert cell["recorded"] == {"64x64": 0.25, "33x47": 0.25}


def test_the_page_needs_nothing_else_and_escapes_what_it_shows() -> None:
    two = Twin("two", declaring("<script>alert(1)</script>"), at("C3", lambda array: array * np.float32(1.25)))
    page = matrix_page(compare(Twin("one"), two, table=recording(LARGER)))
    assert "<script" not in page
    assert "src=" not in page
    assert "http" not in page
    assert "&lt;script&gt;" in page
    assert "the backends agree, 1 level deviates" in page
    assert "the backends do not agree (1 red row)" in matrix_page(
        compare(Twin("one"), Twin("two", change=at("C3", lambda array: array * 2)))
    )


# --- the real backends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "regnet_x_400mf"])
def test_the_smallest_architectures_agree(name: str) -> None:
    (table,) = [table for table in load_architectures() if table.name == name]
    matrix = across(name, sizes=((64, 96), (65, 65)))
    rows = {row.way.label: row for row in matrix.rows}
    installed = set(featreg.list_backends())  # MindSpore is not, where NumPy 2 is
    assert {row.way.backend for row in matrix.rows} == {member.backend for member in table.members} & installed
    assert matrix.is_green, [row.problems for row in matrix.rows]
    assert set(rows) >= {"torchvision", "timm"}
    assert [cell.level for cell in rows["timm"].cells] == [*(level.name for level in table.levels), "logits"]
    if name == "mobilenet_v3_small":
        assert all(cell.verdict == "deviates" for cell in rows["timm"].cells)
        assert 1e-4 < (rows["timm"].cells[0].worst or 0) < 1e-2
    else:
        assert all(cell.worst == 0 for cell in rows["timm"].cells)
    for label in [label for label in rows if label.startswith("mindspore")]:
        declared = bool(rows[label].deviations)
        assert any(cell.verdict == "deviates" for cell in rows[label].cells) == declared == (label == "mindspore")


# --- tables and the command -------------------------------------------------------------------------------------------


def test_every_table_is_loaded() -> None:
    folder = Path(__file__).parent.parent / "specs" / "architectures"
    assert [table.name for table in load_architectures()] == sorted(path.stem for path in folder.glob("*.json"))
    resnet = {table.name: table for table in load_architectures()}["resnet18"]
    assert attrs.evolve(resnet.members[2], deviates={}) == Member("mindspore", "resnet18", {"padding": "torch"})
    assert 0 < (resnet.members[2].deviates["C2"][224, 224] or 0) < 1
    assert resnet.levels[0] == Level("C1", 64, 2, (64, 112, 112))


def test_tables_of_a_wheel_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "architectures").mkdir()
    table = Path(__file__).parent.parent / "specs" / "architectures" / "vgg16.json"
    (tmp_path / "architectures" / "vgg16.json").write_text(table.read_text())
    monkeypatch.setattr(architectures, "files", lambda package: tmp_path)
    assert [one.name for one in load_architectures()] == ["vgg16"]


def test_an_unknown_architecture() -> None:
    with pytest.raises(errors.RequestError, match="no table of the architecture 'resnet19'") as caught:
        across("resnet19")
    assert "resnet18" in caught.value.matches


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = compare(Twin("one"), Twin("two", change=at("C3", lambda array: array * 2)))
    asked: list[Any] = []

    def recorded(architecture: str | None, *, seed: int, progress: Callable[[Row], None]) -> Matrix:
        asked.append((architecture, seed))
        for row in matrix.rows:
            progress(row)
        return matrix

    monkeypatch.setattr("featreg.cli.across.across", recorded)
    arguments = ["conform", "--across", "--architecture", "resnet18", "--seed", "3", "--json", str(tmp_path / "m.json")]
    result = CliRunner().invoke(cli, [*arguments, "--html", str(tmp_path / "m.html")])
    assert result.exit_code == 1
    assert asked == [("resnet18", 3)]
    assert "tinynet, two: RED  C3: values apart by" in result.output
    assert "the backends do not agree (1 red row)" in result.output
    assert json.loads((tmp_path / "m.json").read_text())["green"] is False
    assert (tmp_path / "m.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    "arguments", [["numpy"], ["--list"], ["--junit", "r.xml"], ["--badge", "b.svg"], ["--check", "order.keys"]]
)
def test_across_goes_with_nothing_of_a_single_backends(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, ["conform", "--across", *arguments])
    assert result.exit_code == 2
    assert "--across takes" in result.output


@pytest.mark.parametrize("arguments", [["--architecture", "resnet18"], ["--seed", "1"]])
def test_options_of_across_alone(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, ["conform", "numpy", *arguments])
    assert result.exit_code == 2
    assert "--across" in result.output


def test_importing_it_imports_no_framework() -> None:
    program = (
        "import sys; from featreg.conformance import across; import featreg.cli.conform;"
        "print([name for name in ('torch', 'timm', 'mindspore') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
