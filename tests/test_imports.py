"""What may be imported when: frameworks and the data extra stay out until they are needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import featreg

HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "open_clip",
    "mindspore",
    "mindcv",
    "zarr",
    "pyarrow",
    "PIL",
    "tqdm",
    "h5py",
    "xarray",
    "matplotlib",
    "ray",
}
CLI = """
from click.testing import CliRunner
from featreg.cli.main import cli
CliRunner().invoke(cli, {}, catch_exceptions=False)
"""


def modules_after(code: str) -> set[str]:
    """The top-level modules, and those of featreg, that are loaded after running some code in a fresh interpreter."""
    report = "import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import featreg",
        "import featreg; assert 'numpy' in featreg.list_backends()",
        "import featreg; featreg.create_extractor; featreg.FeatureSet; featreg.ExtractionRequest",
        "import featreg; assert featreg.list_models('numpy') == ('tinynet',)",
        "import featreg; featreg.describe('numpy:tinynet')",
        "import featreg.plugin",
        "import featreg.conformance; assert featreg.conformance.make_plan('numpy').items",
        CLI.format(["conform", "--list"]),
        CLI.format(["conform", "numpy", "--check", "values.repeat"]),
        CLI.format(["backends"]),
        CLI.format(["backends", "--json"]),
        CLI.format(["--help"]),
        CLI.format(["extract", "--help"]),
        CLI.format(["export", "--help"]),
        CLI.format(["merge", "--help"]),
        CLI.format(["describe", "numpy:tinynet", "--json"]),
        CLI.format(["doctor", "--quick"]),
    ],
)
def test_no_framework(code: str) -> None:
    assert not HEAVY & modules_after(code)


def test_importing_featreg_imports_almost_nothing() -> None:
    loaded = modules_after("import featreg")
    assert {name for name in loaded if name.startswith("featreg")} == {"featreg"}
    assert not {"numpy", "attr", "attrs", "cattrs", "pluggy", "click"} & loaded


MODULES = ("conformance", "derived", "engine", "errors", "export", "images", "plugin", "sources", "stores")


@pytest.mark.parametrize("name", [*(f"featreg.{name}" for name in MODULES), "featreg.engine.merge.merge_stores"])
def test_what_the_pages_name_is_there_after_importing_featreg_alone(name: str) -> None:
    assert "featreg" in modules_after(f"import featreg; {name}")


def test_modules_are_public_and_others_are_not() -> None:
    assert set(MODULES) <= set(dir(featreg))
    assert not hasattr(featreg, "no_such_module")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_imports_no_subcommand(arguments: list[str]) -> None:
    loaded = modules_after(CLI.format(arguments))
    assert "featreg.cli.catalogue" not in loaded
    assert "featreg.cli.extract" not in loaded
    assert not {"numpy", "cattrs", "pluggy"} & loaded


def test_the_pytest_plugin_imports_nothing_of_featreg() -> None:
    loaded = modules_after("import pytest_featreg")
    assert not {name for name in loaded if name.partition(".")[0] in {"featreg", "numpy", "attr"}}


def test_the_kit_needs_no_pytest() -> None:
    assert not {"pytest", "hypothesis"} & modules_after("import featreg.conformance; featreg.conformance.make_plan")


def test_listing_needs_no_cattrs() -> None:
    assert not {"cattrs", "cattr"} & modules_after(CLI.format(["backends", "--json"]))


def test_gate_can_fail() -> None:
    assert "PIL" in modules_after("import featreg, PIL")


@pytest.mark.parametrize("name", featreg.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(featreg, name) is not None
    assert name in dir(featreg)


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="create_extracter"):
        featreg.create_extracter  # noqa: B018
