import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import attrs
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

import featreg
from featreg.errors import (
    LayerError,
    MissingDependencyError,
    SpecError,
    StoreDamagedError,
    StoreDeniedError,
    StoreError,
    StoreExistsError,
    StoreFullError,
)
from featreg.sources import Sample
from featreg.spec import ExtractionRequest, FeatureInfo
from featreg.stores import LayerArray, replace, writer
from featreg.stores import commit as committing
from featreg.stores.layout import LayerRecord, Pass, SourceRecord, array_names, chunk_rows
from featreg.stores.places import disk
from featreg.stores.places import place as places
from featreg.stores.places.place import LocalPlace
from featreg.stores.reading.identity import Identity
from featreg.stores.replace import check_free
from featreg.stores.writer import Plan, StoreWriter

ROWS, TASK_ROWS = 10, 4
INDEX = [Sample(f"class/{row}\n.jpg", f"file:///{row}", row % 3) for row in range(ROWS)]
INFO = {
    "C5": FeatureInfo("stage5", 3, 32, "map", level="C5", index=4),
    -2: FeatureInfo("blocks.7", 4, 16, "tokens", prefix_tokens=1),
    "pooled": FeatureInfo("pool", 5, None, "vector", head="pooled"),
}
SHAPES = {"C5": (3, 2, 2), -2: (6, 4), "pooled": (5,)}


@pytest.fixture
def plan():
    names = array_names(list(INFO))
    return Plan(
        request=ExtractionRequest("numpy:tinynet", tuple(INFO)),
        fingerprint={"weights": "none", "versions": {"numpy": "1"}},
        layers=tuple(LayerRecord(key, names[key], INFO[key], SHAPES[key], "float32") for key in INFO),
        source=SourceRecord("file:///somewhere", "imagefolder", ("x", "y", "z"), 7),
        task_rows=TASK_ROWS,
    )


@pytest.fixture
def features():
    generator = np.random.default_rng(0)
    return {key: generator.standard_normal((ROWS, *shape)).astype(np.float32) for key, shape in SHAPES.items()}


def commit(store, task, features, errors=()):
    rows = {key: values[task.start : task.stop].copy() for key, values in features.items()}
    for row in errors:
        for values in rows.values():
            values[row - task.start] = np.nan
    return store.commit(task, rows, {row: f"ImageError: row {row}" for row in errors})


def write(path, plan, features, tasks=slice(None), **options):
    store = StoreWriter.create(path, plan, INDEX, **options)
    for task in store.manifest.tasks[tasks]:
        commit(store, task, features)
    return store


@pytest.fixture
def path(tmp_path, plan, features):
    """A finished store in which row 5 failed."""
    store = StoreWriter.create(tmp_path / "s.zarr", plan, INDEX)
    for task in store.manifest.tasks:
        commit(store, task, features, [5] if task.number == 1 else [])
    store.finalize()
    return store.place.root


# --- reading ------------------------------------------------------------------------------------------------------


def test_features_come_back_as_they_were_written(path, features):
    store = featreg.open_store(path)
    for key, values in features.items():
        found = np.asarray(store[key])
        assert found.dtype == np.float32
        assert np.isnan(found[5]).all()
        assert np.array_equal(np.delete(found, 5, 0), np.delete(values, 5, 0))
        assert np.array_equal(store[key][2:4], values[2:4])


def test_rows_carry_keys_targets_and_status(path):
    store = featreg.open_store(str(path))
    assert store.keys == [sample.key for sample in INDEX]
    assert store.targets.dtype == np.int64
    assert store.targets.tolist() == [sample.target for sample in INDEX]
    assert store.status.tolist() == ["ok"] * 5 + ["error"] + ["ok"] * 4
    assert store.errors == {"class/5\n.jpg": "ImageError: row 5"}
    assert store.classes == ("x", "y", "z")
    assert store.complete
    assert len(store) == ROWS
    assert attrs.astuple(store.summary) == (10, 9, 1, 0, 7, None, None, None, ())
    assert store.summary.images_per_second is None


def test_layers_are_found_by_key_level_head_and_name(path, plan):
    store = featreg.open_store(path)
    assert store.layers == ("C5", -2, "pooled")
    assert dict(store.info) == INFO
    assert store["stage5"] is store["C5"]
    assert store["blocks.7"] is store[-2]
    assert store["pool"] is store["pooled"]
    assert "C5" in store
    assert "C4" not in store
    assert True not in store
    assert store.manifest.layers == plan.layers
    assert store.manifest.request == plan.request
    assert store.manifest.source == plan.source
    assert (store.manifest.rows, store.manifest.task_rows) == (ROWS, TASK_ROWS)
    with pytest.raises(LayerError) as caught:
        store["poled"]
    assert caught.value.matches[0] == "pooled"


def test_a_store_is_neither_iterable_nor_silent_about_itself(path):
    store = featreg.open_store(path)
    with pytest.raises(TypeError):
        iter(store)
    assert "'C5': (10, 3, 2, 2)" in repr(store)


def test_plain_zarr_reads_it_without_a_warning(path, features, recwarn):
    group = zarr.open_group(path, mode="r")
    arrays = dict(group.arrays())
    assert set(arrays) == {"C5", "index_-2", "pooled"}
    for name, key in (("C5", "C5"), ("index_-2", -2)):
        assert np.array_equal(arrays[name][:4], features[key][:4])
        assert arrays[name].shards[0] == TASK_ROWS
        assert np.isnan(arrays[name].fill_value)
    assert not [str(warning.message) for warning in recwarn if "zarr" in str(warning.category).lower()]


def test_plain_parquet_reads_the_samples(path):
    table = parquet.read_table(path / "samples.parquet").to_pydict()
    assert list(table) == ["row", "key", "uri", "target", "status", "error"]
    assert table["row"] == list(range(ROWS))
    assert table["uri"] == [sample.uri for sample in INDEX]
    assert [row for row in range(ROWS) if table["error"][row] is not None] == [5]


def test_a_source_without_classes_has_no_targets(tmp_path, plan, features):
    plain = attrs.evolve(plan, source=SourceRecord("file:///x", "folder", None, 0))
    index = [Sample(sample.key, sample.uri) for sample in INDEX]
    store = featreg.open_store(StoreWriter.create(tmp_path / "s", plain, index).place)
    assert store.targets is None
    assert store.classes is None


@pytest.mark.parametrize("place", ["chunk", "index"])
def test_a_flipped_bit_in_a_shard_does_not_pass_unnoticed(path, place):
    shard = path / "pooled" / "c" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[3 if place == "chunk" else -8] ^= 1
    shard.write_bytes(data)
    store = featreg.open_store(path)
    for read in (lambda: store["pooled"][:4], lambda: store["pooled"][[0, 3]], lambda: np.asarray(store["pooled"])):
        with pytest.raises(StoreError, match="'pooled' cannot be read") as caught:
            read()
        assert str(path) in caught.value.problem
        assert "checksum" in caught.value.got.lower()
        assert caught.value.__cause__ is not None
    assert not np.isnan(store["C5"][:4]).any()


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (1, "row 1 of"),
        (slice(4), "4 rows from 0 to 3 of"),
        ([3, 0], "2 rows from 0 to 3 of"),
        (..., "10 rows from 0 to 9 of"),
        ((), "10 rows from 0 to 9 of"),
        (slice(None, None, -9), "2 rows from 0 to 9 of"),
    ],
)
def test_a_truncated_shard_is_an_error_that_names_the_rows(path, index, rows):
    shard = path / "C5" / "c" / "0" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(StoreError) as caught:
        featreg.open_store(path)["C5"][index]
    assert caught.value.problem.startswith(rows)
    assert "repair" in caught.value.remedy


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("how", ["gone", "empty", "folder gone"])
def test_a_lost_shard_is_an_error_and_not_a_row_of_nan(path, features, how, finished):
    shard = path / "C5" / "c" / "1" / "0" / "0" / "0"
    shard.unlink()
    if how == "empty":
        shard.write_bytes(b"")
    if how == "folder gone":
        shard.parent.rmdir()
    if not finished:
        (path / "finished.json").unlink()
    store = featreg.open_store(path)
    for read in (lambda: store["C5"][5], lambda: store["C5"][[1, 6]], lambda: np.asarray(store["C5"])):
        with pytest.raises(StoreDamagedError, match="missing") as caught:
            read()
    assert np.array_equal(store["C5"][:4], features["C5"][:4])
    assert "C5/c/1/0/0/0" in caught.value.expected
    assert "rows 4 to 7 of 'C5'" in caught.value.expected
    assert "repair" in caught.value.remedy


def test_a_lost_shard_does_not_hinder_overwriting(path, plan, features):
    (path / "pooled" / "c" / "0" / "0").unlink()
    write(path, plan, features, overwrite=True)
    assert np.array_equal(featreg.open_store(path)["pooled"][:], features["pooled"])


# --- indexing as in NumPy -----------------------------------------------------------------------------------------

MASK = np.arange(ROWS) % 3 == 1
INDICES = [
    0, -1, np.int64(3), np.array(3), slice(None), slice(2, 4), slice(-3, None), slice(1, 9, 3), slice(20, 30), ..., (),
    slice(None, None, -1), slice(8, 1, -3), slice(1, 8, -1), slice(4, 4), slice(4, 2), None, True,
    [0, 5, 5, -1], [], [[1, 2], [3, 0]], np.array([9, 0], np.uint8), MASK, MASK.tolist(), ~MASK & MASK,
    (0, 1), (0, 1, 1, 1), (slice(2, 5), 0), (..., 1), (0, ..., 1), (slice(None), slice(None), 1), (slice(2, 5), None),
    (MASK, 0), (MASK, slice(None), 0), ([1, 2], [0, 2]), (slice(2, 6), [0, 2]), (3, slice(None), [0, 1]), (..., [0, 1]),
    (slice(None), slice(None, None, -1)), (slice(None, None, -2), [0, 1]), (np.array([[0], [1]]), [0, 2]),
    ([2, 1], slice(None), slice(None, None, -1)), (slice(7, 2), [0, 1]),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_a_layer_is_indexed_as_in_numpy(tmp_path, plan, features, index):
    layer = featreg.open_store(write(tmp_path / "s", plan, features).place)["C5"]
    found, expected = layer[index], features["C5"][index]
    assert type(found) is type(expected)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


def test_a_mask_over_several_axes_selects_as_in_numpy(tmp_path, plan, features):
    layer = featreg.open_store(write(tmp_path / "s", plan, features).place)["pooled"]
    mask = features["pooled"] > 0
    assert np.array_equal(layer[mask], features["pooled"][mask])


@given(st.data())
def test_any_rows_are_those_of_numpy(data):
    values = np.random.default_rng(0).standard_normal((ROWS, 3, 2)).astype(np.float32)
    array = zarr.create_array({}, data=values, chunks=(2, 3, 2), shards=(4, 3, 2))
    bound = st.none() | st.integers(-12, 12)
    index = data.draw(
        st.builds(slice, bound, bound, st.none() | st.integers(-12, 12).filter(bool))
        | st.lists(st.integers(-ROWS, ROWS - 1))
        | st.lists(st.booleans(), min_size=ROWS, max_size=ROWS)
    )
    assert np.array_equal(LayerArray(array, "C5", "s", Identity(LocalPlace(Path("s"))))[index], values[index])


@pytest.mark.parametrize(
    "index",
    [ROWS, -ROWS - 1, [0, ROWS], [-ROWS - 1], (0, 3), (0, 0, 0, 0, 0), MASK[:-1], [0.5], ["a"], "a", 1.5, (..., ...),
     ([0], 3)],
    ids=repr,
)  # fmt: skip
def test_what_is_out_of_range_or_no_index_is_an_index_error(path, features, index):
    with pytest.raises(IndexError):
        features["C5"][index]
    with pytest.raises(IndexError):
        featreg.open_store(path)["C5"][index]


def test_a_layer_says_what_it_is_and_reads_nothing_for_it(path, monkeypatch):
    layer = featreg.open_store(path)["C5"]
    monkeypatch.setattr(LayerArray, "_read", None)
    assert (layer.shape, layer.dtype, layer.ndim, len(layer)) == ((10, 3, 2, 2), np.dtype("float32"), 4, 10)
    assert layer.chunks == (4, 3, 2, 2)
    assert isinstance(layer.array, zarr.Array)
    assert repr(layer) == "LayerArray('C5', shape=(10, 3, 2, 2), dtype=float32)"


def test_a_layer_converts_and_iterates(path, features):
    layer = featreg.open_store(path)["pooled"]
    assert np.asarray(layer, dtype=np.float64).dtype == np.float64
    assert np.array_equal(np.stack(list(layer))[:5], features["pooled"][:5])
    with pytest.raises(ValueError, match="copy"):
        layer.__array__(copy=False)


def test_rows_are_selected_by_status_and_target(path, features):
    store = featreg.open_store(path)
    fine = np.arange(ROWS) != 5
    assert np.array_equal(store["C5"][store.status == "ok"], features["C5"][fine])
    assert np.array_equal(store["pooled"][store.targets == 1], features["pooled"][[1, 4, 7]])


def test_receipts_hold_the_hash_of_every_shard(path):
    receipts = sorted((path / "receipts" / "0000").iterdir())
    assert [receipt.name for receipt in receipts] == ["00000000.json", "00000001.json", "00000002.json"]
    for receipt in receipts:
        shards = json.loads(receipt.read_bytes())["shards"]
        assert len(shards) == 3
        assert shards == {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in shards}
    assert sum(1 for file in path.glob("*/c/**/*") if file.is_file()) == 9


def test_a_task_of_nothing_but_failures_has_shards_too(tmp_path, plan, features):
    store = StoreWriter.create(tmp_path / "s", plan, INDEX)
    commit(store, store.manifest.tasks[0], features, errors=[0, 1, 2, 3])
    shards = json.loads((tmp_path / "s" / store.manifest.tasks[0].receipt).read_bytes())["shards"]
    assert all((tmp_path / "s" / name).stat().st_size > 4 * 5 * 4 for name in shards)


# --- interrupted runs ---------------------------------------------------------------------------------------------


def test_rows_without_a_receipt_are_pending(tmp_path, plan, features):
    write(tmp_path / "s", plan, features, slice(1, 2))
    store = featreg.open_store(tmp_path / "s")
    assert not store.complete
    assert store.status.tolist() == ["pending"] * 4 + ["ok"] * 4 + ["pending"] * 2
    assert np.isnan(store["C5"][:4]).all()
    assert np.array_equal(store["C5"][4:8], features["C5"][4:8])
    assert "6 of 10 rows pending" in repr(store)


def test_shards_without_their_receipt_do_not_count(tmp_path, plan, features, monkeypatch):
    store = write(tmp_path / "s", plan, features, slice(1))

    def killed(self, name, data):
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalPlace, "create", killed)
    with pytest.raises(KeyboardInterrupt):
        commit(store, store.manifest.tasks[1], features)
    assert not (tmp_path / "s/C5/c/1").exists()
    assert len(list((tmp_path / "s/staged").iterdir())) == 3
    assert featreg.open_store(tmp_path / "s").status.tolist() == ["ok"] * 4 + ["pending"] * 6


def test_shards_on_the_way_to_their_place_are_pending_and_no_damage(tmp_path, plan, features, monkeypatch):
    store = write(tmp_path / "s", plan, features, slice(1))
    with monkeypatch.context() as patch:
        patch.setattr(committing, "move_if_there", lambda *_: True)
        commit(store, store.manifest.tasks[1], features)
    found = featreg.open_store(tmp_path / "s")
    assert found.status.tolist() == ["ok"] * 4 + ["pending"] * 6
    commit(store, store.manifest.tasks[2], features)
    store.finalize()
    assert np.array_equal(featreg.open_store(tmp_path / "s")["C5"][:], features["C5"])


def test_killed_before_the_sample_table_it_reads_the_receipts(path):
    before = featreg.open_store(path)
    assert before.complete
    (path / "samples.parquet").unlink()
    (path / "finished.json").unlink()
    after = featreg.open_store(path)
    assert after.complete
    assert after.status.tolist() == before.status.tolist()
    assert after.errors == before.errors


def test_only_a_complete_store_is_finalized(tmp_path, plan, features):
    store = write(tmp_path / "s", plan, features, slice(2))
    with pytest.raises(StoreError, match="not complete"):
        store.finalize()
    assert not (tmp_path / "s" / "samples.parquet").exists()


def test_a_task_is_committed_once(tmp_path, plan, features):
    store = write(tmp_path / "s", plan, features, slice(1))
    before = {file: file.read_bytes() for file in (tmp_path / "s").rglob("*") if file.is_file()}
    assert commit(store, store.manifest.tasks[0], {key: -values for key, values in features.items()}) is False
    assert {file: file.read_bytes() for file in (tmp_path / "s").rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("step", ["_build", "move_in"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, PermissionError(13, "no")])
def test_what_fails_while_a_store_is_made_leaves_nothing(tmp_path, plan, monkeypatch, step, error):
    original = getattr(writer, step)

    def fails(*arguments, **options):
        if step == "_build":
            original(*arguments, **options)
        raise error

    monkeypatch.setattr(writer, step, fails)
    with pytest.raises((KeyboardInterrupt, StoreDeniedError)):
        StoreWriter.create(tmp_path / "s", plan, INDEX)
    assert list(tmp_path.iterdir()) == []


# --- places -------------------------------------------------------------------------------------------------------


def content(root):
    return {name: (root / name).read_bytes() for name in LocalPlace(root).walk()}


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    place = LocalPlace(tmp_path)
    place.write("file", b"old")

    def fails(*_):
        raise OSError("no")

    monkeypatch.setattr(places.os, "replace", fails)
    with pytest.raises(OSError, match="no"):
        place.write("file", b"new")
    assert content(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize("hard_links", [True, False])
def test_of_several_writers_the_first_wins(tmp_path, monkeypatch, hard_links):
    def unsupported(*_):
        raise PermissionError(1, "Operation not permitted")

    if not hard_links:
        monkeypatch.setattr(disk.os, "link", unsupported)
    monkeypatch.setattr(places.Path, "exists", lambda _: False)  # both looked before either wrote
    LocalPlace(tmp_path).create("a/file", b"first")
    with pytest.raises(FileExistsError):
        LocalPlace(tmp_path).create("a/file", b"second")
    assert content(tmp_path) == {"a/file": b"first"}


def test_a_write_whose_folder_is_tidied_away_begins_anew(tmp_path, monkeypatch):
    place, link = LocalPlace(tmp_path), disk.os.link

    def tidied(source, target):
        monkeypatch.setattr(disk.os, "link", link)
        shutil.rmtree(tmp_path / "staged")
        link(source, target)

    monkeypatch.setattr(disk.os, "link", tidied)
    place.create("receipts/0.json", b"whole")
    assert content(tmp_path) == {"receipts/0.json": b"whole"}


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, StoreFullError), (errno.EDQUOT, StoreFullError), (errno.EROFS, StoreDeniedError),
     (errno.EACCES, StoreDeniedError), (errno.EIO, StoreError)],
)  # fmt: skip
def test_what_the_disk_says_is_an_error_of_its_kind_and_nothing_is_lost(
    tmp_path, plan, features, monkeypatch, number, error
):
    store = write(tmp_path / "s", plan, features, slice(1))
    before = content(tmp_path / "s")

    def fails(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(places, "write_aside", fails)
        with pytest.raises(error, match="cannot be written") as caught:
            commit(store, store.manifest.tasks[1], features)
    assert type(caught.value) is error
    assert content(tmp_path / "s") == before
    for task in store.manifest.tasks[1:]:
        commit(store, task, features)
    store.finalize()
    assert np.array_equal(featreg.open_store(tmp_path / "s")["C5"][:], features["C5"])


# --- what cannot be opened ----------------------------------------------------------------------------------------


def test_there_must_be_a_store(tmp_path):
    with pytest.raises(StoreError, match="there is no store"):
        featreg.open_store(tmp_path / "nothing")
    with pytest.raises(StoreError, match="not a feature store"):
        featreg.open_store(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="not a feature store"):
        featreg.open_store(tmp_path / "file")


@pytest.mark.parametrize("path", [None, 3, b"s", ["s"]])
def test_a_path_must_be_a_path(path):
    with pytest.raises(SpecError, match="not a path") as caught:
        featreg.open_store(path)
    assert caught.value.got == repr(path)


@pytest.mark.parametrize(
    ("path", "said"),
    [("", "empty"), ("a\0b", "NUL"), ("nofs://bucket/s", "cannot be at"), (Path("nofs://b/s"), "cannot be at")],
)
@pytest.mark.parametrize("use", [featreg.open_store, check_free])
def test_a_path_that_cannot_be_is_refused(tmp_path, monkeypatch, use, path, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=said):
        use(path)


def changed(**fields):
    return lambda plain: json.dumps({**plain, **fields})


@pytest.mark.parametrize("document", ["manifest.json", "passes/0000.json"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plain: json.dumps(plain)[:-20], "damaged"),
        (lambda plain: "[]", "damaged"),
        (lambda plain: "", "damaged"),
        (json.dumps, "damaged"),  # the same in other words
        (changed(surprise=1), "damaged"),
        (lambda plain: json.dumps(plain, indent=2).replace("0.1.0", "0.1.1"), "damaged"),
    ],
)
def test_a_document_that_is_not_as_it_was_is_an_error(path, document, change, said):
    plain = json.loads((path / document).read_bytes())
    (path / document).write_text(change(plain))
    with pytest.raises(StoreError, match=said):
        featreg.open_store(path)


@pytest.mark.parametrize("change", [changed(format=1), changed(format=3), lambda plain: "{}"])
def test_another_format_is_refused(path, change):
    plain = json.loads((path / "manifest.json").read_bytes())
    (path / "manifest.json").write_text(change(plain))
    with pytest.raises(StoreError, match="another layout"):
        featreg.open_store(path)


def test_a_missing_array_is_an_error(path):
    os.rename(path / "pooled", path / "moved")
    with pytest.raises(StoreError, match="'pooled' is damaged or missing"):
        featreg.open_store(path)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"task": 1'])
def test_a_damaged_receipt_is_an_error(path, content):
    (path / "samples.parquet").unlink()
    (path / "receipts" / "0000" / "00000001.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"00000001.*damaged"):
        featreg.open_store(path).status  # noqa: B018  (the property reads)


def test_a_receipt_for_other_rows_is_an_error(path):
    (path / "samples.parquet").unlink()
    os.replace(path / "receipts" / "0000" / "00000000.json", path / "receipts" / "0000" / "00000001.json")
    with pytest.raises(StoreError, match="damaged"):
        featreg.open_store(path).status  # noqa: B018  (the property reads)


@pytest.mark.parametrize("content", [b"", b"no parquet"])
def test_a_damaged_sample_table_is_an_error(path, content):
    (path / "samples.parquet").write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        featreg.open_store(path).keys  # noqa: B018  (the property reads)


# --- what is not overwritten --------------------------------------------------------------------------------------


def test_a_path_that_is_taken_is_refused(path, tmp_path, plan):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "file")
    for taken in (path, tmp_path / "empty", tmp_path / "file", tmp_path / "dangling"):
        with pytest.raises(StoreExistsError):
            StoreWriter.create(taken, plan, INDEX)
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("finished", [True, False])
def test_overwriting_replaces_a_store_or_an_empty_folder(path, tmp_path, plan, features, finished):
    (tmp_path / "empty").mkdir()
    if not finished:
        (path / "samples.parquet").unlink()
        (path / "receipts" / "0000" / "00000002.json").unlink()
        (path / "staged").mkdir()
        (path / "staged" / ".samples.parquet.0123").write_bytes(b"left by a run that was killed")
    for target in (path, tmp_path / "empty"):
        write(target, plan, features, slice(0), overwrite=True)
        assert featreg.open_store(target).summary.pending == ROWS
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "s.zarr"]


def test_overwriting_spares_whatever_is_not_a_store_alone(path, tmp_path, plan):
    (path / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "x.jpg").write_text("mine")
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "manifest.json").write_text('{"format": 2}')
    before = sorted(tmp_path.rglob("*"))
    for target, said in (
        (path, "thesis.txt"),
        (tmp_path / "file", "file"),
        (tmp_path / "photos", "not a feature store"),
    ):
        with pytest.raises(StoreExistsError, match="refused to overwrite") as caught:
            StoreWriter.create(target, plan, INDEX, overwrite=True)
        assert said in caught.value.got
    with pytest.raises(StoreExistsError):
        StoreWriter.create(tmp_path / "fake", plan, INDEX, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_store_made_meanwhile_is_not_replaced(tmp_path, plan, features, monkeypatch):
    original = writer._build

    def slow(root, *arguments):
        monkeypatch.setattr(writer, "_build", original)
        write(tmp_path / "s", plan, features)
        original(root, *arguments)

    monkeypatch.setattr(writer, "_build", slow)
    with pytest.raises(StoreExistsError, match="meanwhile"):
        StoreWriter.create(tmp_path / "s", plan, INDEX)
    assert featreg.open_store(tmp_path / "s").complete
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


def test_the_old_store_comes_back_where_the_new_one_cannot_move_in(path, plan, monkeypatch):
    rename = os.rename

    def fails(source, target):
        if Path(target) == path and not (Path(source) / "samples.parquet").exists():
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(replace, "exchange", lambda *_: False)  # a system that cannot
    monkeypatch.setattr(replace.os, "rename", fails)
    with pytest.raises(KeyboardInterrupt):
        StoreWriter.create(path, plan, INDEX, overwrite=True)
    assert featreg.open_store(path).complete
    assert [entry.name for entry in path.parent.iterdir()] == ["s.zarr"]


def test_a_link_to_a_store_is_followed(path, tmp_path, plan):
    (tmp_path / "link").symlink_to(path, target_is_directory=True)
    assert check_free(tmp_path / "link", overwrite=True).root == path
    StoreWriter.create(tmp_path / "link", plan, INDEX, overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert featreg.open_store(path).summary.pending == ROWS


def test_missing_parents_are_made(tmp_path, plan):
    assert StoreWriter.create(tmp_path / "a" / "b" / "s", plan, INDEX).place.root == tmp_path / "a" / "b" / "s"


# --- documents and arithmetic -------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.integers(-20, 20), st.text(min_size=1)), unique_by=lambda key: (type(key), key)))
def test_array_names_are_safe_and_different_on_every_file_system(layers):
    names = array_names(layers)
    assert list(names) == layers
    folded = [name.casefold() for name in names.values()]
    assert len(set(folded)) == len(layers)
    own = {"manifest.json", "finished.json", "samples.parquet", "zarr.json"}
    assert not set(folded) & (own | {"index", "passes", "receipts", "staged", "workers"})
    for name in names.values():
        assert name.isascii()
        assert not set(name) & set('/\\:*?"<>| %\n')
        assert not name.startswith((".", "__"))
        assert not name.endswith(".")
        assert 0 < len(name) < 120


def test_array_names_stay_readable():
    layers = ["C5", "c5", "layer3.5.relu_2", "a/b", "a-b", "../up", -1, "index_-1", "receipts"]
    names = ["C5", "c5-2", "layer3.5.relu_2", "a-b", "a-b-2", "--up", "index_-1", "index_-1-2", "receipts-2"]
    assert list(array_names(layers).values()) == names
    assert list(array_names(["c5", "C5"]).values()) == ["c5", "C5-2"]


@given(st.integers(0, 10), st.integers(1, 10**8))
def test_chunks_divide_a_shard_and_are_about_a_mebibyte(power, row_bytes):
    rows = chunk_rows(2**power, row_bytes)
    assert 2**power % rows == 0
    assert rows == 1 or rows * row_bytes <= 2**20
    assert rows == 2**power or 2 * rows * row_bytes > 2**20


@given(st.integers(0, 300), st.integers(1, 500), st.integers(0, 6))
def test_tasks_cover_every_row_once_and_keep_to_the_shards(start, rows, power):
    task_rows = 2**power
    source = SourceRecord("x", "x", None, 0)
    part = Pass(0, start, start + rows, task_rows, ExtractionRequest("m", ("C5",)), {}, (), source, None, "", "")
    tasks = list(part.iter_tasks())
    assert [row for task in tasks for row in range(task.start, task.stop)] == list(range(start, start + rows))
    assert len(tasks) == part.count
    assert [task.number for task in tasks] == [task.start // task_rows for task in tasks]
    assert all({task.start // task_rows, (task.stop - 1) // task_rows} == {task.number} for task in tasks)


@pytest.mark.parametrize(
    ("missing", "call"),
    [("zarr", "open_store('x')"), ("pyarrow", "open_store('x')"), ("PIL", "load_images"), ("tqdm", "extract")],
)
def test_without_the_extra_the_pip_line_is_given(missing, call):
    code = f"""
import sys
sys.modules[{missing!r}] = None
import featreg
try:
    featreg.{call}
except featreg.FeatregError as error:
    print(type(error).__name__, error.problem, error.remedy)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.startswith(f"{MissingDependencyError.__name__} data sets and stores need {missing}")
    assert 'pip install "featreg[data]"' in found
