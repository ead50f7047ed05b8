"""``featreg new-plugin``: what it writes, and what it refuses. ``nox -s template`` builds and runs what it writes."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import featreg
from featreg import errors
from featreg.cli.main import cli
from featreg.cli.new_plugin import check_name, render_plugin, template_folder

FILES = {
    ".github/workflows/conformance.yml",
    ".gitignore",
    "README.md",
    "featreg-xfails.toml",
    "pyproject.toml",
    "src/featreg_acme_net/__init__.py",
    "src/featreg_acme_net/backend.py",
    "src/featreg_acme_net/oracle.py",
    "tests/test_conformance.py",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_plugin("acme_net", tmp_path_factory.mktemp("projects"))


def test_the_files_are_there_and_rendered(project: Path) -> None:
    found = {path.relative_to(project).as_posix(): path for path in project.rglob("*") if path.is_file()}
    assert set(found) == FILES
    for name, path in found.items():
        text = path.read_text()
        assert text.endswith("\n"), name
        assert "{%" not in text, name
        assert "{{" not in text.replace("${{", ""), name


def test_the_entry_point_leads_to_the_class(project: Path) -> None:
    document = tomllib.loads((project / "pyproject.toml").read_text())
    assert project.name == document["project"]["name"] == "featreg-acme-net"
    assert document["project"]["entry-points"]["featreg"] == {"acme_net": "featreg_acme_net"}
    assert f"featreg>={featreg.__version__}" in document["project"]["dependencies"]
    package = project / "src" / "featreg_acme_net"
    assert "featreg_acme_net.backend:AcmeNetBackend" in (package / "__init__.py").read_text()
    tree = ast.parse((package / "backend.py").read_text())
    assert "AcmeNetBackend" in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def test_the_backend_is_short_and_the_test_file_two_lines(project: Path) -> None:
    assert len((project / "src/featreg_acme_net/backend.py").read_text().splitlines()) <= 60
    lines = [line for line in (project / "tests/test_conformance.py").read_text().splitlines() if line]
    assert lines == [
        "from featreg.conformance import suite",
        'test_conformance = suite("acme_net", xfails="featreg-xfails.toml")',
    ]
    assert tomllib.loads((project / "featreg-xfails.toml").read_text()) == {}


def test_the_workflow_takes_the_oldest_and_the_newest_featreg(project: Path) -> None:
    workflow = yaml.safe_load((project / ".github/workflows/conformance.yml").read_text())
    job = workflow["jobs"]["conformance"]
    pins = {entry["featreg"]: entry["pin"] for entry in job["strategy"]["matrix"]["include"]}
    assert pins == {"oldest": f"=={featreg.__version__}", "newest": ""}
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert any("featreg[conformance]${{ matrix.pin }}" in command for command in commands)
    assert commands[-1] == "python -m pytest"


def test_the_template_is_the_one_of_the_checkout_or_of_the_package() -> None:
    assert (template_folder() / "copier.yml").is_file()


@pytest.mark.parametrize("name", ["", "Acme", "acme-net", "2d", "acme__net", "_acme", "acme_", "../acme", "a b", "é"])
def test_a_name_that_cannot_be_one_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(errors.SpecError, match="cannot name a new backend"):
        render_plugin(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_nearest_name_is_proposed() -> None:
    with pytest.raises(errors.SpecError) as caught:
        check_name("Acme-Net 2")
    assert caught.value.matches == ("acme_net_2",)


@pytest.mark.parametrize(("name", "what"), [("numpy", "a backend"), ("open_clip", "a backend"), ("data", "an extra")])
def test_a_name_that_is_taken_is_refused(name: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(errors.RequestError, match=f"is {what}"):
        render_plugin(name, tmp_path)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "featreg-acme").mkdir()
    with pytest.raises(errors.StoreExistsError):
        render_plugin("acme", tmp_path)
    assert not list((tmp_path / "featreg-acme").iterdir())


@pytest.mark.parametrize("into", ["file", "gone", "gone/deeper"])
def test_a_place_that_is_no_folder_is_refused_and_not_made(into: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.RequestError, match="there is no folder"):
        render_plugin("acme", tmp_path / into)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("featreg.cli.new_plugin._copier", lambda: full)
    with pytest.raises(errors.RequestError, match="cannot be written"):
        render_plugin("acme", tmp_path)


def test_without_copier_the_pip_line_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "copier", None)
    with pytest.raises(errors.MissingDependencyError) as caught:
        render_plugin("acme", tmp_path)
    assert caught.value.remedy == 'pip install "featreg[new-plugin]"'


def test_the_command_says_what_comes_next(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["new-plugin", "acme", "--into", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "pytest" in done.output
    assert (tmp_path / "featreg-acme" / "pyproject.toml").is_file()
    again = CliRunner().invoke(cli, ["new-plugin", "acme", "--into", str(tmp_path)])
    assert again.exit_code == 2
    assert "exists" in again.output
