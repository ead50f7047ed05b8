"""Fixtures that several test files use."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session")
def write_store() -> Callable[..., Path]:
    """Writes a store of given features, (rows, ...) by layer; ``bad`` rows fail, those from ``stop`` on stay undone."""
    return _write_store


def _write_store(
    path: Path,
    features: Mapping[str | int, Any],
    *,
    shard: int = 4,
    bad: Sequence[int] = (),
    keys: Sequence[str] | None = None,
    targets: Sequence[int | None] | None = None,
    stop: int | None = None,
    fingerprint: str = "none",
) -> Path:
    from featreg.sources import Sample
    from featreg.spec import ExtractionRequest, FeatureInfo
    from featreg.stores.layout import LayerRecord, SourceRecord, array_names
    from featreg.stores.writer import Plan, StoreWriter

    names, kinds = array_names(list(features)), {2: "vector", 3: "tokens", 4: "map"}
    records = []
    for key, values in features.items():
        channels = values.shape[2 if values.ndim == 3 else 1]
        info = FeatureInfo(f"module.{key}", channels, None if values.ndim == 2 else 32, kinds[values.ndim])
        records.append(LayerRecord(key, names[key], info, values.shape[1:], str(values.dtype)))
    count = len(next(iter(features.values())))
    keys = keys or [f"{row:03}.png" for row in range(count)]
    targets = targets or [None] * count
    classes = None if targets[0] is None else tuple("abc")
    plan = Plan(
        request=ExtractionRequest("numpy:tinynet", tuple(features)),
        fingerprint={"weights": fingerprint, "versions": {"numpy": "1"}},
        layers=tuple(records),
        source=SourceRecord("file:///photos", "folder", classes, 0),
        task_rows=shard,
    )
    index = [Sample(key, f"file:///{key}", target) for key, target in zip(keys, targets, strict=True)]
    store = StoreWriter.create(path, plan, index)
    for task in store.manifest.tasks:
        if stop is None or task.stop <= stop:
            rows = {key: values[task.start : task.stop] for key, values in features.items()}
            errors = {row: f"ImageError: row {row}" for row in bad if task.start <= row < task.stop}
            store.commit(task, rows, errors)
    if stop is None:
        store.finalize()
    return path
