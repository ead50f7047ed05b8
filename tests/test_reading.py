"""A store that changes, or is lost, under who reads it."""

import os
import pickle
import shutil

import numpy as np
import pytest

import featreg
from featreg.engine.merge import merge_stores
from featreg.errors import StoreDamagedError, StoreError
from featreg.sources import Sample
from featreg.spec import ExtractionRequest, FeatureInfo
from featreg.stores import writer
from featreg.stores.check import examine
from featreg.stores.layout import LayerRecord, SourceRecord
from featreg.stores.places.place import LocalPlace
from featreg.stores.reading import reader
from featreg.stores.staging import place_staged, stage
from featreg.stores.writer import Plan, StoreWriter

SHARD = 4
OLD = 10
"""Rows of the store that is there at first: its last shard has room for two more."""


class Killed(BaseException):
    """What a process that is killed looks like from within."""


def values(start, stop):
    return np.stack([np.array([row, row + 0.5], np.float32) for row in range(start, stop)])


def samples(start, stop, name="{}.png"):
    return [Sample(name.format(row), f"file:///{row}", row % 3) for row in range(start, stop)]


def plan(key="pooled"):
    layer = LayerRecord(key, key, FeatureInfo("pool", 2, None, "vector"), (2,), "float32")
    source = SourceRecord("file:///photos", "folder", tuple("abc"), 0)
    return Plan(ExtractionRequest("numpy:tinynet", (key,)), {"weights": "none"}, (layer,), source, SHARD)


def commit(store, task, errors=()):
    part = store.manifest.passes[task.pass_number]
    rows = {layer.key: values(task.start, task.stop) for layer in part.layers}
    return store.commit(task, rows, dict.fromkeys(errors, "ImageError: no"))


def work(store):
    for task in store.manifest.iter_tasks():
        if not store.is_finished(task):
            commit(store, task)
    store.finalize()


def make(path, name="{}.png"):
    store = StoreWriter.create(path, plan(), samples(0, OLD, name))
    work(store)
    return store


@pytest.fixture
def path(tmp_path):
    """A finished store of ten rows."""
    return make(tmp_path / "s.zarr").place.root


def column(store, key="pooled"):
    return np.asarray(store[key])[:, 0].tolist()


def killed_before_its_move(store, task, monkeypatch):
    """Commits a task up to its receipt."""

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(LocalPlace, "move", die)
        with pytest.raises(Killed):
            commit(store, task)


# --- what was pending at opening ----------------------------------------------------------------------------------


def test_what_was_pending_at_opening_stays_pending(tmp_path, monkeypatch):
    store = StoreWriter.create(tmp_path / "s", plan(), samples(0, OLD))
    commit(store, store.manifest.tasks[0])
    opened = featreg.open_store(tmp_path / "s")
    commit(store, store.manifest.tasks[1], errors=[5])
    killed_before_its_move(store, store.manifest.tasks[2], monkeypatch)
    assert opened.status.tolist() == ["ok"] * 4 + ["pending"] * 6
    assert opened.errors == {}
    assert (opened.summary.ok, opened.summary.failed, opened.summary.pending) == (4, 0, 6)
    place_staged(store.place)
    store.finalize()  # the table is there by now
    assert opened.where(status="ok").rows.tolist() == [0, 1, 2, 3]
    again = featreg.open_store(tmp_path / "s")
    assert again.status.tolist() == ["ok"] * 5 + ["error"] + ["ok"] * 4


def test_rows_whose_shard_is_on_its_way_over_another_one_are_pending(path, monkeypatch):
    store = StoreWriter(LocalPlace(path))
    store.add_pass(plan(), OLD, OLD, samples(OLD, OLD + 1))
    killed_before_its_move(store, store.manifest.passes[1].task(0), monkeypatch)
    opened = featreg.open_store(path)
    assert opened.status.tolist() == ["ok"] * OLD + ["pending"]
    assert column(opened.where(status="ok")) == list(range(OLD))
    place_staged(store.place)
    again = featreg.open_store(path)
    assert again.complete
    assert column(again) == list(range(OLD + 1))


@pytest.mark.parametrize("same", [True, False])
def test_what_a_loser_left_staged_makes_no_row_pending(tmp_path, same):
    store = StoreWriter.create(tmp_path / "s", plan(), samples(0, OLD))
    task = store.manifest.tasks[0]
    commit(store, task)
    stage(store.place, task, 0, (tmp_path / "s/pooled/c/0/0").read_bytes() if same else b"another")
    assert featreg.open_store(tmp_path / "s").status.tolist() == ["ok"] * 4 + ["pending"] * 6


def test_a_staged_shard_that_a_later_pass_has_written_over_is_not_awaited(path):
    store, before = StoreWriter(LocalPlace(path)), (path / "pooled/c/2/0").read_bytes()
    store.add_pass(plan(), OLD, OLD, samples(OLD, OLD + 1))
    commit(store, store.manifest.passes[1].task(0))
    stage(store.place, store.manifest.passes[0].task(2), 0, before)
    assert featreg.open_store(path).complete


# --- shards -------------------------------------------------------------------------------------------------------


def test_a_shard_that_is_lost_while_a_store_is_open_is_an_error_everywhere(path, tmp_path):
    opened = featreg.open_store(path)
    shutil.rmtree(path / "pooled/c/1")
    assert opened["pooled"][3].tolist() == [3, 3.5]
    for read in (
        lambda: opened["pooled"][4],
        lambda: list(opened.batches(3)),
        lambda: opened.memmap("pooled"),
        lambda: featreg.export_store(opened, tmp_path / "out", "npy"),
        lambda: merge_stores(tmp_path / "m", [opened]),
    ):
        with pytest.raises(StoreDamagedError) as caught:
            read()
        assert "pooled/c/1/0" in caught.value.expected
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.zarr"]


def test_a_merge_refuses_a_shard_that_is_not_that_of_its_receipt(path, tmp_path):
    shutil.copy(path / "pooled/c/0/0", path / "pooled/c/1/0")  # whole by every checksum of its own
    with pytest.raises(StoreDamagedError) as caught:
        merge_stores(tmp_path / "m", [path])
    assert "pooled/c/1/0" in caught.value.expected
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_opening_looks_at_no_shard(path, monkeypatch, finished):
    if not finished:
        (path / "finished.json").unlink()
    asked, stat, opened = [], os.stat, open
    monkeypatch.setattr(os, "stat", lambda name, *rest, **more: asked.append(str(name)) or stat(name, *rest, **more))
    monkeypatch.setattr("builtins.open", lambda name, *rest: asked.append(str(name)) or opened(name, *rest))
    featreg.open_store(path)
    assert any("passes/0000.json" in name for name in asked)
    assert not [name for name in asked if "/c/" in name]


# --- a pass that is planned, and no more ----------------------------------------------------------------------------


@pytest.fixture
def plan_only(path, monkeypatch):
    """Plans a pass on the store, and is killed before its metadata are written."""

    def plan_only(*asked):
        def die(*_):
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(writer, "refresh_frame", die)
            with pytest.raises(Killed):
                StoreWriter(LocalPlace(path)).add_pass(*asked)

    return plan_only


def test_rows_whose_pass_is_only_planned_are_pending(path, plan_only):
    plan_only(plan(), OLD, OLD, samples(OLD, OLD + 3))
    store = featreg.open_store(path)
    assert store.status.tolist() == ["ok"] * OLD + ["pending"] * 3
    assert store["pooled"].shape == (OLD + 3, 2)
    assert column(store.where(status="ok")) == list(range(OLD))
    assert np.isnan(store["pooled"][OLD:]).all()


def test_a_layer_whose_pass_is_only_planned_is_pending(path, plan_only):
    plan_only(plan("C5"), 0, OLD)
    store = featreg.open_store(path)
    assert store.layers == ("pooled", "C5")
    assert set(store.status) == {"pending"}
    assert column(store) == list(range(OLD))
    assert store["C5"].shape == (OLD, 2)
    assert np.isnan(np.asarray(store["C5"])).all()


def test_a_store_is_opened_while_somebody_plans_more_rows(path, monkeypatch):
    def read_then_plan(place, read=reader.read_manifest):
        manifest = read(place)
        StoreWriter(LocalPlace(path)).add_pass(plan(), OLD, OLD, samples(OLD, OLD + 3))
        return manifest

    with monkeypatch.context() as patch:
        patch.setattr(reader, "read_manifest", read_then_plan)
        store = featreg.open_store(path)
    assert store.complete
    assert column(store) == list(range(OLD))
    assert len(featreg.open_store(path)) == OLD + 3


# --- another store at the path --------------------------------------------------------------------------------------


def replace(path):
    """What ``overwrite`` does in the end."""
    make(path.with_name("new"), "other{}.png")
    path.rename(path.with_name("old"))
    path.with_name("new").rename(path)


def test_a_store_that_was_replaced_is_not_read_as_the_one_that_was_opened(path):
    pytest.importorskip("torch")
    opened = featreg.open_store(path)
    view, copied = opened.where(opened.status == "ok"), pickle.dumps(opened)
    dataset = opened.to_torch("pooled")
    sent = pickle.dumps(dataset)
    assert dataset[1]["features"].tolist() == [1, 1.5]
    replace(path)
    for read in (
        lambda: opened["pooled"][0],
        lambda: view["pooled"][[1, 2]],
        lambda: opened.keys,
        lambda: opened.memmap("pooled"),
        lambda: next(view.batches(3)),
        lambda: dataset[1],
        lambda: pickle.loads(sent)[1],
        lambda: pickle.loads(copied)["pooled"][0],
    ):
        with pytest.raises(StoreError, match="was replaced"):
            read()
    assert featreg.open_store(path).keys[0] == "other0.png"
    shutil.rmtree(path)
    with pytest.raises(StoreError, match="replaced or deleted"):
        opened["pooled"][0]


def test_a_store_that_is_replaced_while_it_is_opened_is_not_taken_for_either(path, monkeypatch):
    def read_then_replace(*asked, read=reader.read_finish):
        finish = read(*asked)
        replace(path)
        return finish

    monkeypatch.setattr(reader, "read_finish", read_then_replace)
    with pytest.raises(StoreError, match="was replaced"):
        featreg.open_store(path)


def test_a_store_whose_documents_are_written_anew_is_the_same(path):
    opened = featreg.open_store(path)
    shutil.copytree(path, path.with_name("copy"))
    shutil.rmtree(path)
    path.with_name("copy").rename(path)
    assert column(opened) == list(range(OLD))
    assert opened.keys[0] == "0.png"
    assert list(examine(opened.place)) == []


def test_a_store_at_a_url_that_was_replaced_is_noticed():
    fsspec = pytest.importorskip("fsspec")
    url = "memory://reading/s.zarr"
    try:
        make(url)
        opened = featreg.open_store(url)
        assert column(opened) == list(range(OLD))
        fsspec.filesystem("memory").rm("/reading", recursive=True)
        make(url, "other{}.png")
        with pytest.raises(StoreError, match="was replaced"):
            opened["pooled"][0]
    finally:
        fsspec.filesystem("memory").rm("/reading", recursive=True)
