"""The catalogue commands: readable tables, JSON, errors without tracebacks, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import featreg
from featreg.cli import main as cli_main
from featreg.cli.main import cli
from featreg.cli.tables import format_fields, format_table
from featreg.errors import LayerError
from featreg.registry import default_registry
from featreg.spec import SPEC_VERSION

BACKEND = """
    from featreg.plugin import Backend, BackendSpec, hookimpl
    from featreg.plugin import FeatureInfo, InputRule, MeasuredGrid, ModelInfo, Preprocess

    class Mine(Backend):
        def models(self): return [f"net-{{size}}" for size in "sml"]
        def open(self, request): raise NotImplementedError
        def info(self, model, input_size=None):
            rule = InputRule(multiple_of=4, minimum=(8, 8))
            features = [
                FeatureInfo("block", 6, 4, "map", level="C2", index=0),
                FeatureInfo("odd", 6, 8, "map", index=1, rounding="measured", measured=[MeasuredGrid((8, 8), (1, 1))]),
                FeatureInfo("norm", 7, 4, "tokens", head="tokens", prefix_tokens=1),
                FeatureInfo("pool", 1234, None, "vector", head="pooled"),
            ]
            preprocess = Preprocess((256, 256), (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
            told = input_size or (8, 8), features, preprocess, rule, ["cuda", "grad"]
            return ModelInfo("{name}", model, *told, native=[FeatureInfo("block", 6, 4, "tokens"), features[2]])

    @hookimpl
    def featreg_backends():
        yield BackendSpec("{name}", "fake_{name}:Mine", requirements=["attrs>=1"], summary="nets of mine")
"""


@pytest.fixture(autouse=True)
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in [name for name in os.environ if name.startswith("FEATREG_")]:
        monkeypatch.delenv(name)
    default_registry.cache_clear()
    yield
    default_registry.cache_clear()


@pytest.fixture
def mine(plugins: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One working backend, one whose requirement is missing and one that is broken; no others."""
    plugins.backend("mine", BACKEND.format(name="mine"))
    plugins.backend(
        "lacking",
        """
        from featreg.plugin import BackendSpec, hookimpl

        @hookimpl
        def featreg_backends():
            yield BackendSpec("lacking", "a:B", requirements=["absent-one>=2"], install="pip install absent-one")
        """,
    )
    plugins.backend("broken", "raise OSError('no such library: libfoo.so')")
    monkeypatch.setenv("FEATREG_ONLY", "mine,lacking,broken,numpy")
    return plugins


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), prog_name="featreg")


def columns(line: str) -> list[str]:
    return [cell for cell in (part.strip() for part in line.split("  ")) if cell]


# --- backends ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("mine")
def test_backends_table() -> None:
    result = run("backends")
    assert result.exit_code == 0
    header, rule, *rows = result.stdout.split("\n\n")[0].splitlines()
    assert columns(header) == ["backend", "status", "distribution", "summary"]
    assert set(rule) == {"-", " "}
    assert [columns(row) for row in rows] == [
        [
            "broken",
            "broken",
            "fake-broken 1.0",
            "the plugin of backend 'broken' (fake-broken 1.0) fails while it is imported",
        ],
        ["lacking", "missing", "fake-lacking 1.0", "the backend 'lacking' needs absent-one>=2"],
        ["mine", "ready", "fake-mine 1.0", "nets of mine"],
        [
            "numpy",
            "ready",
            f"featreg {featreg.__version__}",
            "a small fixed convolutional net in plain NumPy, the reference",
        ],
    ]
    assert "featreg doctor" in result.stdout


@pytest.mark.usefixtures("mine")
def test_backends_json() -> None:
    result = run("backends", "--json")
    assert result.exit_code == 0
    found = {entry["name"]: entry for entry in json.loads(result.stdout)}
    assert {name: entry["status"] for name, entry in found.items()} == {
        "broken": "broken", "lacking": "missing", "mine": "ready", "numpy": "ready",
    }  # fmt: skip
    assert found["mine"]["failure"] is None
    assert found["mine"]["spec"] == {
        "name": "mine",
        "factory": "fake_mine:Mine",
        "spec": ">=1.0,<2",
        "requirements": ["attrs>=1"],
        "capabilities": [],
        "summary": "nets of mine",
        "url": "",
        "install": "",
        "wraps": [],
    }
    assert found["broken"]["spec"] is None
    failure = found["broken"]["failure"]
    assert failure["type"] == "PluginImportError"
    assert failure["got"] == "OSError: no such library: libfoo.so"
    assert found["lacking"]["spec"]["requirements"] == ["absent-one>=2"]
    assert found["lacking"]["failure"]["remedy"] == "pip install absent-one"


def test_backends_names_the_extras_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "featreg.cli.catalogue.extras", lambda: {"data": ("absent-a",), "jax": ("absent-b",), "np": ("numpy",)}
    )
    assert 'not installed: jax (pip install "featreg[jax]")' in run("backends").stdout


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("arguments", [["backends"], ["backends", "--json"], ["models", "mine"]])
def test_strict(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATREG_STRICT", "1")
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "libfoo.so" in result.stderr


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("mine")
def test_models() -> None:
    assert run("models", "mine").stdout == "net-l\nnet-m\nnet-s\n"
    assert run("models", "mine", "*-[ms]").stdout == "net-m\nnet-s\n"
    assert json.loads(run("models", "mine", "*-s", "--json").stdout) == ["net-s"]


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_models_without_a_match(flags: list[str]) -> None:
    result = run("models", "mine", "nat-*", *flags)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "'nat-*'" in result.stderr
    assert "did you mean: net-l" in result.stderr
    assert "try: featreg models mine" in result.stderr


# --- describe ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("mine")
def test_describe_table() -> None:
    result = run("describe", "mine:net-s", "--size", "8x12")
    assert result.exit_code == 0
    head, table = result.stdout.rstrip().split("\n\n")
    title, *fields = head.splitlines()
    assert title == "mine:net-s at 8x12"
    assert {field.split()[0]: field.split(maxsplit=1)[1] for field in fields} == {
        "input": "3 channels, at least 8x8, multiples of 4",
        "preprocess": "cover 256x256 (bilinear), crop 224x224 from the centre",
        "normalise": "mean 0.485 0.456 0.406, std 0.229 0.224 0.225, RGB",
        "capabilities": "cuda, grad",
    }
    header, _, *rows = table.splitlines()
    assert columns(header) == ["layer", "index", "native name", "kind", "channels", "reduction", "shape"]
    assert [columns(row) for row in rows] == [
        ["C2", "0", "block", "map", "6", "4", "(N, 6, 2, 3)"],
        ["-", "1", "odd", "map", "6", "8", "-"],
        ["tokens", "-", "norm", "tokens", "7", "4", "(N, 7, 7)"],
        ["pooled", "-", "pool", "vector", "1234", "-", "(N, 1234)"],
        ["block", "-", "block", "tokens", "6", "4", "(N, 6, 6)"],
    ]


@pytest.mark.usefixtures("mine")
def test_describe_json() -> None:
    result = run("describe", "mine:net-s", "--size", "8x12", "--json")
    found = json.loads(result.stdout)
    assert found.pop("shapes") == [["N", 6, 2, 3], None, ["N", 7, 7], ["N", 1234]]
    assert found["input_size"] == [8, 12]
    assert found["input_rule"] == {"fixed": None, "multiple_of": 4, "minimum": [8, 8], "channels": 3}
    assert featreg.describe("mine:net-s", (8, 12)) == from_plain(found)


def test_describe_says_how_a_network_deviates(plugins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["it pads as TensorFlow does", "it adds 0.001 to the variance"]
    source = BACKEND.format(name="odd").replace('["cuda", "grad"]', f'["cuda"], {said!r}')
    plugins.backend("odd", source)
    monkeypatch.setenv("FEATREG_ONLY", "odd")
    fields = run("describe", "odd:net-s").stdout.partition("\n\n")[0]
    assert " ".join(fields.split()).endswith(f"deviations {said[0]}; {said[1]}")
    found = json.loads(run("describe", "odd:net-s", "--json").stdout)
    assert found["deviations"] == said


def test_describe_takes_what_opening_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    described = featreg.describe("numpy:tinynet")

    def describe(*arguments: Any, **fields: Any) -> featreg.ModelInfo:
        asked.append((arguments, fields))
        return described

    monkeypatch.setattr("featreg.describe", describe, raising=False)
    run("describe", "numpy:tinynet", "--option", "img_size=256", "--output-stride", "8", "--weights", "default")
    run("describe", "numpy:tinynet")
    fields = {"options": {"img_size": 256}, "output_stride": 8, "weights": "default"}
    assert asked == [(("numpy:tinynet", None), fields), (("numpy:tinynet", None), {})]


def from_plain(plain: dict[str, Any]) -> featreg.ModelInfo:
    from featreg.serialize import from_dict

    return from_dict(featreg.ModelInfo, plain)


@pytest.mark.usefixtures("mine")
def test_describe_at_the_models_own_size() -> None:
    assert run("describe", "mine:net-s").stdout.startswith("mine:net-s at 8x8\n")
    assert run("describe", "net-s", "--size", "16").stdout.startswith("mine:net-s at 16x16\n"), "a bare name will do"


@pytest.mark.parametrize("size", ["", "0", "224x0", "x224", "224x", "1.5", "-3", "8x8x8", "big", "8,8"])
def test_describe_with_a_size_that_is_none(size: str) -> None:
    result = run("describe", "numpy:tinynet", f"--size={size}")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: featreg describe" in result.stderr
    assert "224x320" in result.stderr


@pytest.mark.usefixtures("mine")
def test_describe_at_a_size_that_the_model_does_not_take() -> None:
    result = run("describe", "mine:net-s", "--size", "9", "--json")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "at least 8x8, multiples of 4" in result.stderr


# --- doctor -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("strict", ["", "1"])
def test_doctor_names_every_fault(strict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATREG_STRICT", strict)
    result = run("doctor")
    assert result.exit_code == 1
    for text in (
        f"{featreg.__version__} (specification {SPEC_VERSION})",
        sys.executable,
        "FEATREG_ONLY=mine,lacking,broken,numpy",
        "broken is broken:\n  the plugin of backend 'broken'",
        "    got: OSError: no such library: libfoo.so",
        "lacking is missing:\n  the backend 'lacking' needs absent-one>=2",
        "    try: pip install absent-one",
        "absent-one>=2 (absent)",
    ):
        assert text in result.stdout, text
    assert "mine is" not in result.stdout


@pytest.mark.usefixtures("mine")
def test_doctor_json() -> None:
    result = run("doctor", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["healthy"] is False
    assert found["specification"] == SPEC_VERSION
    assert found["environment"] == {"FEATREG_ONLY": "mine,lacking,broken,numpy"}
    backends = {entry["name"]: entry for entry in found["backends"]}
    assert backends["lacking"]["requirements"] == [
        {"requirement": "absent-one>=2", "installed": None, "satisfied": False}
    ]
    assert backends["mine"]["requirements"][0]["satisfied"] is True
    assert backends["broken"]["failure"]["type"] == "PluginImportError"
    plugins = {"mindspore", "onnx", "open_clip", "timm", "torch", "torchvision", "transformers"}
    data = {"data", "derive", "hdf5", "huggingface", "ray", "remote", "xarray"}
    assert set(found["extras"]) == {"conformance", "new_plugin", *data, *plugins}


def test_doctor_finds_a_factory_that_is_not_there(plugins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only loading the framework shows it, so that --quick does not."""
    plugins.backend("mine", BACKEND.format(name="mine").replace("fake_mine:Mine", "fake_mine:Gone"))
    monkeypatch.setenv("FEATREG_ONLY", "mine")
    assert run("doctor", "--quick").exit_code == 0
    result = run("doctor")
    assert result.exit_code == 1
    assert "mine is broken" in result.stdout
    assert "Gone" in result.stdout


def test_doctor_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extras that are not installed are no fault."""
    monkeypatch.setenv("FEATREG_ONLY", "numpy")
    monkeypatch.setattr("featreg.cli.doctor.extras", lambda: {"jax": ("absent-b>=1",), "np": ("numpy",)})
    result = run("doctor")
    assert result.exit_code == 0
    rows = [columns(line) for line in result.stdout.splitlines()]
    assert ["jax", "absent", 'pip install "featreg[jax]" (for absent-b>=1)'] in rows
    assert ["np", "installed"] in rows
    assert json.loads(run("doctor", "--json").stdout)["healthy"] is True


def test_doctor_keeps_the_chatter_of_frameworks_out_of_its_json(plugins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = BACKEND.replace("class Mine(Backend):", "class Mine(Backend):\n        def __init__(self): print('NOISE')")
    plugins.backend("mine", noisy.format(name="mine"))
    monkeypatch.setenv("FEATREG_ONLY", "mine")
    result = run("doctor", "--json")
    assert json.loads(result.stdout)["healthy"] is True
    assert "NOISE" in result.stderr


# --- errors and exits -------------------------------------------------------------------------------------------------


def failing(error: BaseException) -> dict[str, tuple[str, str]]:
    @click.command()
    def fail() -> None:
        raise error

    cli_main.fail = fail  # type: ignore[attr-defined]
    return {"fail": ("featreg.cli.main:fail", "Fail.")}


@pytest.fixture
def fail_with(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield lambda error: monkeypatch.setattr(cli, "lazy", failing(error))
    if hasattr(cli_main, "fail"):
        del cli_main.fail


def test_error_as_it_is_written(fail_with: Any) -> None:
    error = LayerError("no layer 'C9'", "one of C1, C2", "'C9'", ("C1",), "featreg describe")
    fail_with(error)
    result = run("fail")
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"{error}\n")


@pytest.mark.parametrize("how", ["option", "variable"])
def test_traceback_where_it_is_asked_for(fail_with: Any, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error = LayerError("no layer")
    error.__cause__ = ZeroDivisionError("the cause")
    fail_with(error)
    if how == "variable":
        monkeypatch.setenv("FEATREG_TRACEBACK", "1")
    result = run(*(["--traceback"] if how == "option" else []), "fail")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback (most recent call last)" in result.stderr
    assert "ZeroDivisionError: the cause" in result.stderr
    assert "raise error" in result.stderr


def test_ctrl_c(fail_with: Any) -> None:
    fail_with(KeyboardInterrupt())
    result = run("fail")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_a_bug_is_no_featreg_error(fail_with: Any) -> None:
    fail_with(ZeroDivisionError("a bug"))
    assert isinstance(run("fail").exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "arguments", [["models", "nunpy"], ["describe", "numpy:tinynat"], ["describe", "nunpy:tinynet", "--json"]]
)
def test_unknown_names(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "did you mean: " in result.stderr
    assert "Traceback" not in result.stderr


def test_help_lists_every_command() -> None:
    text = run("--help").stdout
    for name in ("backends", "models", "describe", "extract", "doctor"):
        assert any(columns(line)[:1] == [name] and len(columns(line)) == 2 for line in text.splitlines()), name


@pytest.mark.parametrize("name", cli_main.COMMANDS)
def test_help_of_the_group_is_that_of_the_command(name: str) -> None:
    """The group shows lines of its own, so that it need not import the commands."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    assert command.get_short_help_str(200) == cli_main.COMMANDS[name][1]


def test_version_and_unknown_command() -> None:
    assert run("--version").stdout == f"featreg, version {featreg.__version__}\n"
    result = run("nope")
    assert result.exit_code == 2
    assert "No such command" in result.stderr


# --- the real process -------------------------------------------------------------------------------------------------

FEATREG = [sys.executable, "-c", "from featreg.cli.main import main; main()"]


def test_console_script_is_main() -> None:
    from importlib import metadata

    (script,) = [point for point in metadata.entry_points(group="console_scripts") if point.name == "featreg"]
    assert script.load() is cli_main.main


def test_process() -> None:
    done = subprocess.run(
        [*FEATREG, "describe", "numpy:tinynat", "--json"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean: tinynet" in done.stderr
    assert "Traceback" not in done.stderr


def test_closed_pipe() -> None:
    """As in ``featreg backends | head -0``: no traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*FEATREG, "backends"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1


def test_interrupted_process(plugins: Any) -> None:
    plugins.backend("slow", "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)")
    environment = {**os.environ, "PYTHONPATH": str(plugins.folder), "FEATREG_ONLY": "slow"}
    done = subprocess.run([*FEATREG, "models", "slow"], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr == "interrupted\n"


# --- tables -----------------------------------------------------------------------------------------------------------


def test_table_alignment() -> None:
    rows = [("resnet50", 5, "1,234.5", "3"), ("x", 12345, "7.0", None), ("convnext", None, "-1", "abc")]
    assert format_table(("name", "count", "images/s", "mixed"), rows).splitlines() == [
        "name      count  images/s  mixed",
        "--------  -----  --------  -----",
        "resnet50      5   1,234.5  3",
        "x         12345       7.0  -",
        "convnext      -        -1  abc",
    ]


def test_table_wraps_its_last_column_and_cuts_nothing() -> None:
    name = "a_very_long_name_that_is_wider_than_anything_and_must_not_be_cut"
    text = format_table(("backend", "summary"), [("timm", f"the models of {name}"), ("numpy", "small")], width=40)
    assert text.splitlines() == [
        "backend  summary",
        f"-------  {'-' * len(name)}",
        "timm     the models of",
        f"         {name}",
        "numpy    small",
    ]


def test_table_without_a_terminal_has_a_line_a_row() -> None:
    text = format_table(("a", "b"), [("x", "word " * 100)])
    assert len(text.splitlines()) == 3


def test_table_without_rows() -> None:
    assert format_table(("layer", "shape"), []).splitlines() == ["layer  shape", "-----  -----"]


def test_table_of_uneven_rows() -> None:
    with pytest.raises(ValueError, match="zip"):
        format_table(("a", "b"), [("x",)])


def test_fields() -> None:
    assert format_fields({"a": "one two three", "long label": ""}, width=20).splitlines() == [
        "a           one two three",
        "long label",
    ]
    assert format_fields({"a": "word " * 10}, width=30).splitlines()[1] == "   word word word word word"


def test_unknown_layers_name_the_command_that_lists_them() -> None:
    with pytest.raises(LayerError, match="featreg nodes numpy:tinynet"):
        featreg.create_extractor("numpy:tinynet", ["stage9"])


def test_python_m_featreg_is_the_command() -> None:
    found = subprocess.run([sys.executable, "-m", "featreg", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout == f"featreg, version {featreg.__version__}\n"
