"""docs/new-backend.md, run as it stands: its files written, its commands run in an environment of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "new-backend.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(*languages: str) -> list[str]:
    return [body for language, body in BLOCK.findall(PAGE.read_text("utf-8")) if language in languages]


def files() -> dict[str, str]:
    """Each file's block by the path in its first line."""
    return {body.partition("\n")[0].removeprefix("# "): body.partition("\n")[2] for body in blocks("toml", "python")}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has what this one has, and takes what the tutorial installs."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    bin_folder = folder / ("Scripts" if os.name == "nt" else "bin")
    (site,) = folder.rglob("site-packages")
    (site / "parent.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return bin_folder / Path(sys.executable).name


def test_the_tutorial_is_short() -> None:
    assert set(files()) == {
        "pyproject.toml",
        "featreg_acme/__init__.py",
        "featreg_acme/backend.py",
        "featreg_acme/oracle.py",
        "test_conformance.py",
    }
    assert sum(bool(line.strip()) for text in files().values() for line in text.splitlines()) < 60


def test_the_tutorial_ends_in_a_green_badge(python: Path, tmp_path: Path) -> None:
    for path, text in files().items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment = {**os.environ, **offline, "PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]])}
    (commands,) = blocks("bash")
    for command in commands.splitlines():
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert " killed" in done.stdout
    assert "survived" not in done.stdout
    badge = (tmp_path / "badge.svg").read_text()
    assert "#2e7d32" in badge, "not green"
