"""What has changed between two runs on one store: files of the source, the disk, and what lies in the store."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import featreg
from featreg.cli.main import cli
from featreg.engine import append, repair, work
from featreg.engine.planning import plan
from featreg.errors import SourceError, StoreError, StoreFullError
from featreg.stores.check import examine
from featreg.stores.places.opening import place_at
from featreg.stores.places.place import LocalPlace
from featreg.stores.writer import StoreWriter

MODEL, ROW_BYTES = "numpy:tinynet", 8 * 32 * 32 * 4


@pytest.fixture(autouse=True)
def tasks_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "TASK_BYTES", 4 * ROW_BYTES)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")


def picture(path: Path, seed: int, side: int = 64) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six images: two tasks, the second of two rows."""
    folder = tmp_path / "images"
    folder.mkdir()
    for row in range(6):
        picture(folder / f"{row}.png", row)
    return folder


def extract(images: Path, store: Path) -> featreg.FeatureStore:
    return featreg.extract(images, store, MODEL, "C1", batch_size=2)


def stopped(monkeypatch: pytest.MonkeyPatch, run: object, *arguments: object) -> None:
    """A run that ends once everything is planned, before the first row is written."""

    class Stopped(Exception):
        pass

    def stop(*_: object) -> bool:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "commit", stop)
        with pytest.raises(Stopped):
            run(*arguments)  # type: ignore[operator]


def content(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


# --- files of the source ----------------------------------------------------------------------------------------------


def test_a_file_that_was_replaced_since_it_was_indexed_is_an_error(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = extract(images, tmp_path / "before")["C1"][:]
    stopped(monkeypatch, extract, images, tmp_path / "store")
    was = (images / "2.png").stat().st_size
    picture(images / "2.png", 99, side=80)
    store = extract(images, tmp_path / "store")
    error = store.errors["2.png"]
    assert error.startswith("SourceError: the file has changed since it was indexed")
    assert f"{was} bytes" in error
    assert store.summary.failed == 1
    assert np.isnan(store["C1"][2]).all()
    rest = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(store["C1"][:][rest], before[rest])


def test_a_changed_file_is_taken_as_it_is_where_failed_rows_are_tried_again(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(monkeypatch, extract, images, tmp_path / "store")
    picture(images / "2.png", 99, side=80)
    extract(images, tmp_path / "store")
    repair(tmp_path / "store", retry_failed=True)
    picture(images / "1.png", 98, side=80)  # which had not failed
    store = work(tmp_path / "store", batch_size=2)
    assert list(store.errors) == ["1.png"]
    fresh = extract(images, tmp_path / "fresh")
    np.testing.assert_array_equal(store["C1"][2], fresh["C1"][2])
    assert not (tmp_path / "store" / "staged").exists()
    assert list(examine(place_at(tmp_path / "store"))) == []


# --- the disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [3, 4])
def test_new_rows_need_room_for_the_shard_that_they_share(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Two old rows are in the shard of the next two: four are written where two are new."""
    extract(images, tmp_path / "store")
    for row in (6, 7):
        picture(images / f"{row}.png", row)
    stopped(monkeypatch, append, tmp_path / "store")
    free = rows * ROW_BYTES
    monkeypatch.setattr(LocalPlace, "free_bytes", lambda _: free)
    assert featreg.estimate(images, tmp_path / "store", MODEL, "C1").bytes_left == 4 * ROW_BYTES
    if rows < 4:
        with pytest.raises(StoreFullError, match="has not the room") as caught:
            work(tmp_path / "store")
        assert f"{4 * ROW_BYTES:,}" in caught.value.expected
    else:
        assert work(tmp_path / "store").summary.rows == 8


# --- what lies in the store -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["C1/c/0/0/0/0", "zarr.json", "manifest.json", "receipts/0000/00000001.json"])
@pytest.mark.parametrize("what", ["folder", "full folder", "circle"])
def test_what_is_no_file_is_damaged_and_mended(tmp_path: Path, images: Path, name: str, what: str) -> None:
    extract(images, tmp_path / "store")
    before = content(tmp_path / "store")
    path = tmp_path / "store" / name
    path.unlink()
    if what == "circle":
        os.symlink(path.name, path)
    else:
        path.mkdir()
        if what == "full folder":
            (path / "left.tmp").write_bytes(b"x")
    assert {finding.kind for finding in examine(place_at(tmp_path / "store")) if finding.name == name} == {"damaged"}
    repair(tmp_path / "store")
    work(tmp_path / "store", batch_size=2)
    assert content(tmp_path / "store") == before


# --- what the path of the source does not tell ------------------------------------------------------------------------


def test_kind_and_options_of_a_source_are_arguments(tmp_path: Path, images: Path) -> None:
    (tmp_path / "classes" / "a").mkdir(parents=True)
    picture(tmp_path / "classes" / "a" / "0.png", 0)
    flat = featreg.extract(tmp_path / "classes", tmp_path / "flat", MODEL, "C1", kind="folder")
    assert flat.classes is None
    table = tmp_path / "list.csv"
    table.write_text("path,label\n" + "".join(f"images/{row}.png,{row % 2}\n" for row in range(6)))
    options = {"uri": "path", "target": "label"}
    assert featreg.estimate(table, tmp_path / "s", MODEL, "C1", kind="list", source_options=options).rows == 6
    store = featreg.extract(table, tmp_path / "s", MODEL, "C1", source_options=options)
    assert store.targets is not None
    assert store.targets.tolist() == [0, 1, 0, 1, 0, 1]


def test_an_open_source_has_its_kind(tmp_path: Path, images: Path) -> None:
    with pytest.raises(SourceError, match="an open source has its kind"):
        featreg.extract(featreg.open_source(images), tmp_path / "s", MODEL, "C1", kind="folder")


# --- who is at work ---------------------------------------------------------------------------------------------------


def test_status_names_no_process_of_this_machine_that_is_dead(tmp_path: Path, images: Path) -> None:
    store = tmp_path / "store"
    extract(images, store)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (store / "workers").mkdir()
    here, numbers = socket.gethostname(), {"started": 0.0, "updated": 0.0, "rows": 0, "failed": 0, "rate": 0.0}
    for host, pid in ((here, dead.pid), (here, os.getpid()), ("elsewhere", dead.pid)):
        said = {"name": f"{host}-{pid}", "host": host, "pid": pid, "part": None, **numbers}
        (store / "workers" / f"{host}-{pid}.json").write_text(json.dumps(said))
    found = CliRunner().invoke(cli, ["status", str(store), "--json"])
    names = {(one["host"], one["pid"]) for one in json.loads(found.stdout)["workers"]}
    assert names == {(here, os.getpid()), ("elsewhere", dead.pid)}


@pytest.mark.parametrize("below", ["file/store", "file"])
def test_a_path_that_cannot_be_says_what_helps(tmp_path: Path, images: Path, below: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError) as caught:
        extract(images, tmp_path / below)
    assert caught.value.expected
    assert caught.value.remedy
