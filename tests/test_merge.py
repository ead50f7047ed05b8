"""Several stores as one."""

import tracemalloc

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import featreg
from featreg.cli.main import cli
from featreg.engine.merge import _check_keys, _Row, merge_stores
from featreg.errors import SpecError, StoreError, StoreExistsError, StoreMismatchError
from featreg.stores.check import examine
from featreg.stores.places.place import LocalPlace

SHAPES = {"C5": (2, 2, 3), "pooled": (3,)}


def features_of(count, seed, bad=()):
    generator = np.random.default_rng(seed)
    found = {key: generator.standard_normal((count, *shape)).astype(np.float32) for key, shape in SHAPES.items()}
    for values in found.values():
        values[list(bad)] = np.nan
    return found


@pytest.fixture
def make(write_store, tmp_path):
    """A store of some rows, whose keys begin with its name."""

    def make(name, count, seed=0, bad=(), **options):
        features = features_of(count, seed, bad)
        options = {
            "keys": [f"{name}/{row}" for row in range(count)],
            "targets": [row % 3 for row in range(count)],
        } | options
        return write_store(tmp_path / name, features, bad=bad, **options), features

    return make


def read_plain(path):
    group = zarr.open_group(str(path), mode="r")
    return {key: group[key][:] for key in SHAPES}


def test_rows_come_in_the_order_given(make, tmp_path):
    (first, ours), (second, theirs) = make("a", 7, 1, bad=[2]), make("b", 6, 2, bad=[0, 5], shard=8)
    store = merge_stores(tmp_path / "m", [second, first])
    assert store.keys == [f"b/{row}" for row in range(6)] + [f"a/{row}" for row in range(7)]
    assert store.targets.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert store.errors == {"b/0": "ImageError: row 0", "b/5": "ImageError: row 5", "a/2": "ImageError: row 2"}
    assert [row for row, status in enumerate(store.status) if status == "error"] == [0, 5, 8]
    for key, values in read_plain(tmp_path / "m").items():
        assert np.array_equal(values, np.concatenate([theirs[key], ours[key]]), equal_nan=True)
    assert list(examine(LocalPlace(tmp_path / "m"))) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "m"]


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.sampled_from([2, 4, 8]), st.sets(st.integers(0, 8))), min_size=1, max_size=4
    )
)
def test_no_row_is_lost_doubled_or_moved(write_store, tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("merge")
    made, values, keys, failed = [], [], [], []
    for number, (count, shard, rows) in enumerate(parts):
        bad = sorted(row for row in rows if row < count)
        features = features_of(count, number, bad)
        names = [f"{number}-{row}" for row in range(count)]
        made.append(write_store(folder / str(number), features, bad=bad, shard=shard, keys=names))
        failed += [len(keys) + row for row in bad]
        keys += names
        values.append(features["pooled"])
    store = merge_stores(folder / "m", made)
    assert store.keys == keys
    assert np.flatnonzero(store.status == "error").tolist() == failed
    assert np.array_equal(read_plain(folder / "m")["pooled"], np.concatenate(values), equal_nan=True)
    assert list(examine(LocalPlace(folder / "m"))) == []


def test_layers_that_were_added_later_are_merged_as_well(make, tmp_path):
    from featreg.stores.writer import Plan, StoreWriter

    paths, expected = [], []
    for name, count, failed in (("a", 5, [3]), ("b", 6, [])):
        path, features = make(name, count, bad=[1])
        writer = StoreWriter(LocalPlace(path))
        first = writer.manifest.passes[0]
        layer = first.layers[1]
        late = featreg.stores.layout.LayerRecord("late", "late", layer.info, (3,), "float32")
        added = writer.add_pass(Plan(first.request, {"weights": "late"}, (late,), first.source, 2), 0, count)
        values = features["pooled"] * 2
        values[failed] = np.nan
        for task in added.iter_tasks():
            errors = {row: "BackendError: late" for row in failed if task.start <= row < task.stop}
            writer.commit(task, {"late": values[task.start : task.stop]}, errors)
        writer.finalize()
        paths.append(path)
        expected.append(values)
    store = merge_stores(tmp_path / "m", paths)
    assert store.layers == ("C5", "pooled", "late")
    assert np.array_equal(np.asarray(store["late"]), np.concatenate(expected), equal_nan=True)
    assert store.errors == {"a/1": "ImageError: row 1", "a/3": "BackendError: late", "b/1": "ImageError: row 1"}
    assert not np.isnan(store["pooled"][3]).any()
    assert list(examine(LocalPlace(tmp_path / "m"))) == []


def test_keys_that_clash_are_named(make, tmp_path):
    paths = [make(name, 7, keys=[f"{row}.png" for row in range(7)])[0] for name in ("a", "b")]
    with pytest.raises(StoreError, match=r"7 keys are in more than one store: '0.png'.* and 2 more") as caught:
        merge_stores(tmp_path / "m", paths)
    assert "--prefix" in caught.value.remedy
    store = merge_stores(tmp_path / "m", paths, prefixes=["x/", "y/"])
    assert store.keys == [f"{prefix}/{row}.png" for prefix in "xy" for row in range(7)]
    with pytest.raises(SpecError):
        merge_stores(tmp_path / "n", paths, prefixes=["x/"])
    with pytest.raises(StoreError, match="keys are in more than one"):
        merge_stores(tmp_path / "n", paths, prefixes=["x/", "x/"])


def test_a_store_that_is_given_twice_clashes_with_itself(make, tmp_path):
    path = make("a", 3)[0]
    (tmp_path / "link").symlink_to(path)
    for other in (path, tmp_path / "link"):
        with pytest.raises(StoreError, match="3 keys are in more than one store"):
            merge_stores(tmp_path / "m", [path, other])
    assert len(merge_stores(tmp_path / "m", [path, path], prefixes=["x/", "y/"])) == 6


def test_nine_bytes_are_held_for_each_key():
    count = 40_000

    class Part:
        store = range(count)

        def samples(self):
            return (_Row(str(row), "", None, None) for row in range(count))

    tracemalloc.start()
    _check_keys([Part()])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * count


def test_stores_of_another_run_are_refused(make, tmp_path, write_store):
    first = make("a", 4)[0]
    other = make("b", 4, fingerprint="others")[0]
    classless = make("c", 4, targets=[None] * 4)[0]
    one = write_store(tmp_path / "d", {"pooled": features_of(3, 0)["pooled"]}, targets=[0, 1, 2])
    for path, named in ((other, "weights: 'none' there, 'others' here"), (classless, "classes"), (one, "layers")):
        with pytest.raises(StoreMismatchError, match=named):
            merge_stores(tmp_path / "m", [first, path])
    with pytest.raises(StoreError, match="4 of the 8 rows"):
        merge_stores(tmp_path / "m", [first, make("e", 8, stop=4)[0]])
    with pytest.raises(SpecError):
        merge_stores(tmp_path / "m", [])
    assert not (tmp_path / "m").exists()


def test_a_merge_that_fails_leaves_nothing_but_what_was(make, tmp_path, monkeypatch):
    paths = [make(name, 5)[0] for name in "ab"]
    merged = merge_stores(tmp_path / "m", paths[:1])
    with pytest.raises(StoreExistsError):
        merge_stores(tmp_path / "m", paths)
    with monkeypatch.context() as patch:
        patch.setattr("featreg.engine.merge.StoreWriter.finalize", lambda self: 1 / 0)
        for name in ("m", "n"):
            with pytest.raises(ZeroDivisionError):
                merge_stores(tmp_path / name, paths, overwrite=True)
    assert featreg.open_store(tmp_path / "m").keys == merged.keys
    assert len(merge_stores(tmp_path / "m", paths, overwrite=True)) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "m"]


def test_a_merge_into_a_url(make):
    import fsspec

    paths = [str(make(name, 5, seed)[0]) for seed, name in enumerate("ab")]
    try:
        store = merge_stores("memory://merged/s.zarr", paths)
        assert store.keys == [f"{name}/{row}" for name in "ab" for row in range(5)]
        expected = np.concatenate([features_of(5, seed)["pooled"] for seed in (0, 1)])
        assert np.array_equal(np.asarray(store["pooled"]), expected)
    finally:
        fsspec.filesystem("memory").rm("/merged", recursive=True)


def test_the_command(make, tmp_path):
    paths = [str(make(name, 3, keys=["x", "y", "z"], bad=[1])[0]) for name in "ab"]
    refused = CliRunner().invoke(cli, ["merge", str(tmp_path / "m"), *paths])
    assert refused.exit_code == 2
    assert "'x', 'y', 'z'" in refused.output
    done = CliRunner().invoke(cli, ["merge", str(tmp_path / "m"), *paths, "--prefix", "a/", "--prefix", "b/"])
    assert done.exit_code == 0, done.output
    assert "rows: 6, failed: 2, stores: 2" in done.output
