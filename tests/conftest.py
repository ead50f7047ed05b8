"""Fixtures that several test files use."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples in every run, and nothing that depends on how busy the machine is.
settings.register_profile(
    "featreg", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("featreg")


class Plugins:
    """Distributions that are installed for one test: a folder on ``sys.path`` with a .dist-info each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, distribution: str, entry_points: dict[str, str], metadata: str | None = "1.0") -> None:
        """``metadata`` is the version; None leaves the METADATA file out, as an interrupted uninstall does."""
        info = self.folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        if metadata is not None:
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {metadata}\n")
        points = "".join(f"{name} = {target}\n" for name, target in entry_points.items())
        (info / "entry_points.txt").write_text(f"[featreg]\n{points}")

    def module(self, name: str, source: str) -> None:
        (self.folder / f"{name}.py").write_text(textwrap.dedent(source))

    def backend(self, name: str, source: str, *, distribution: str | None = None) -> None:
        """One distribution with one backend of one module."""
        self.module(f"fake_{name}", source)
        self.install(distribution or f"fake-{name}", {name: f"fake_{name}"})


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugins]:
    """A place for fake distributions, found before the real ones and forgotten after the test."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield Plugins(folder)
    for name in set(sys.modules) - before:
        if name.startswith("fake_"):
            del sys.modules[name]
    importlib.invalidate_caches()
