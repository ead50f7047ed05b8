"""Runs on a small Ray cluster on this machine: the same stores as without it, whatever is lost on the way."""

from __future__ import annotations

import io
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import featreg
from featreg.engine.planning import plan
from featreg.engine.run import Run, Work
from featreg.errors import EngineError, ImageError, SpecError
from featreg.registry import default_registry
from featreg.sources import open_source
from featreg.spec import ExtractionRequest
from featreg.stores.places.opening import place_at
from featreg.stores.writer import StoreWriter

pytest.importorskip("ray")

import ray

from featreg.engine.ray import complete, extractor_udf
from featreg.engine.ray.ledger import Ledger
from featreg.engine.ray.outcomes import Outcome, WorkerTraceback

LAYERS = ["C4", "pooled"]
ROW_BYTES = 2 * (32 * 4 * 4 + 48 + 3 + (32 * 4 * 4 + 48))  # of the four layers below, in float16
BAD = (2, 9)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two CPUs, a small object store, and nothing that talks to the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # it would kill for the memory that other tests take
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=0,
            object_store_memory=80 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield
        ray.shutdown()


def png(row: int) -> bytes:
    pixels = np.random.default_rng(row).integers(0, 256, (64, 80, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images of two classes, two of them bad."""
    folder = tmp_path_factory.mktemp("images")
    for row in range(30):
        path = folder / "ab"[row // 15] / f"{row:02}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image" if row in BAD else png(row))
    return folder


@pytest.fixture(autouse=True)
def tasks_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "TASK_BYTES", 4 * ROW_BYTES)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")


@pytest.fixture(scope="module")
def local(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a store of the local engine."""
    store = tmp_path_factory.mktemp("local") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "TASK_BYTES", 4 * ROW_BYTES)
        patch.setenv("SOURCE_DATE_EPOCH", "0")
        extract(images, store)
    return content(store)


def extract(images: Path, store: Path, **options: Any) -> featreg.FeatureStore:
    """Two layers as they are, one that is fitted and one of both; whatever engine does it."""
    recipes = ["small=C4:avg:pca=3:l2", "both=C4,pooled:center"]
    return featreg.extract(
        images, store, "numpy:tinynet", LAYERS, derive=recipes, store_dtype="float16", batch_size=3, **options
    )


def content(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def receipts(store: Path) -> list[str]:
    return sorted(path.name for path in (store / "receipts").rglob("*.json"))


@pytest.fixture
def store(images: Path, tmp_path: Path) -> Path:
    """A store that the local engine began: the plan, and the first two tasks of eight."""

    class Stopped(Exception):
        pass

    commit, count = StoreWriter.commit, itertools.count()

    def stopping(*arguments: Any) -> bool:
        if next(count) == 2:
            raise Stopped
        return commit(*arguments)

    path = tmp_path / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "commit", stopping)
        with pytest.raises(Stopped):
            extract(images, path)
    assert len(receipts(path)) == 2
    return path


def complete_on_ray(store: Path, images: Path, run: Run | None = None, **options: Any) -> featreg.FeatureStore:
    work = Work(open_source(images), default_registry())
    return complete(StoreWriter(place_at(store)), work, run or Run(), num_workers=1, **options)


# --- the same store -----------------------------------------------------------------------------------------------


def test_what_the_local_engine_began_becomes_the_same_store(images: Path, store: Path, local: dict[str, bytes]) -> None:
    done = extract(images, store, engine="ray", num_workers=1)
    assert content(store) == local
    assert done.layers == ("C4", "pooled", "small", "both")
    assert (done.summary.rows, done.summary.failed, done.summary.done, done.summary.done_before) == (30, 2, 22, 8)
    assert done.targets is not None
    assert done.targets.tolist() == [0] * 15 + [1] * 15


def test_a_finished_store_needs_no_cluster(images: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(images, store)
    monkeypatch.setattr("featreg.engine.ray.session.connected", None)
    assert complete_on_ray(store, images).summary.done == 0


# --- errors -------------------------------------------------------------------------------------------------------


def test_the_error_of_a_row_stops_the_run_and_the_local_engine_goes_on(
    images: Path, store: Path, local: dict[str, bytes]
) -> None:
    with pytest.raises(ImageError) as caught:
        complete_on_ray(store, images, Run(raise_errors=True))
    assert caught.value.__notes__ == [f"sample 'a/09.png', {images / 'a/09.png'}", "row 9"]
    assert isinstance(caught.value.__cause__, WorkerTraceback)
    assert len(receipts(store)) < 8
    extract(images, store)
    assert content(store) == local


def test_another_cluster_than_that_of_this_process_is_refused(images: Path, store: Path) -> None:
    with pytest.raises(SpecError, match="another Ray cluster"):
        complete_on_ray(store, images, address="192.0.2.1:6379")


# --- what is lost on the way --------------------------------------------------------------------------------------


def at_the_first_outcome(monkeypatch: pytest.MonkeyPatch, harm: Callable[[Outcome], None]) -> None:
    settle, first = Ledger.settle, itertools.count()

    def harmful(ledger: Ledger, outcome: Outcome) -> None:
        settle(ledger, outcome)
        if next(first) == 0:
            harm(outcome)

    monkeypatch.setattr(Ledger, "settle", harmful)


def test_a_worker_that_is_killed_is_replaced(
    images: Path, store: Path, local: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = []

    def kill(outcome: Outcome) -> None:
        pid = int(outcome.worker.rpartition("-")[2])
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    at_the_first_outcome(monkeypatch, kill)
    complete_on_ray(store, images)
    assert killed
    assert content(store) == local


def test_a_cluster_without_room_for_a_worker_is_no_hang(images: Path, store: Path, local: dict[str, bytes]) -> None:
    clock = itertools.count(step=100.0)
    with pytest.raises(EngineError, match=r"(?s)hangs: 6 tasks .* 1 of 1 nodes are alive") as caught:
        complete_on_ray(store, images, num_gpus=1, patience=1.0, clock=lambda: next(clock))
    assert "none ever" in caught.value.got
    extract(images, store)
    assert content(store) == local


# --- a model in somebody else's pipeline --------------------------------------------------------------------------


def test_a_model_in_map_batches() -> None:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"id": row, "image": b"no image" if row in BAD else png(row)} for row in range(10)]
    udf = extractor_udf(ExtractionRequest("numpy:tinynet", ("C4", "pooled")))
    found = ray.data.from_items(rows).map_batches(udf, concurrency=1, batch_size=4).take_all()
    assert sorted(row["id"] for row in found) == list(range(10))
    whole = udf()({name: np.array([row[name] for row in rows], object) for name in ("id", "image")})
    for row in found:
        assert set(row) == {"id", "C4", "pooled", "error"}
        assert bool(row["error"]) == (row["id"] in BAD)
        np.testing.assert_allclose(row["C4"], whole["C4"][row["id"]], rtol=1e-5, atol=1e-6)
