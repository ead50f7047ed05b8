"""Exports, read back by the libraries of their formats."""

import csv
import errno
import json
import os
import sys
from pathlib import Path

import attrs
import h5py
import numpy as np
import pytest
import safetensors.numpy
import scipy.io
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyarrow import parquet

import featreg
from featreg.cli.main import cli
from featreg.errors import (
    CapabilityError,
    LayerError,
    MissingDependencyError,
    SpecError,
    StoreError,
    StoreExistsError,
)
from featreg.export import FORMATS, export_store, matlab, writing
from featreg.export.content import Content, Entry

COUNT, SHARD = 11, 4
BAD = 5
OK = [row for row in range(COUNT) if row != BAD]
NAMES = {"C5": "C5", "pooled": "pooled", -2: "index_-2"}
KEYS = [f'{"ab"[row // 6]}/{row:02}, "é"\n.png' for row in range(COUNT)]


@pytest.fixture(scope="module")
def arrays():
    """What is in the store, by the name of the array."""
    generator = np.random.default_rng(0)
    shapes = {"C5": (3, 2, 4), "pooled": (5,), "index_-2": (4, 3)}
    found = {name: generator.standard_normal((COUNT, *shape)).astype(np.float32) for name, shape in shapes.items()}
    for values in found.values():
        values[BAD] = np.nan
    return {**found, "targets": np.arange(COUNT) // 6}


@pytest.fixture(scope="module")
def make(write_store, arrays):
    def make(path, **options):
        features = {key: arrays[name] for key, name in NAMES.items()}
        options = {"targets": arrays["targets"].tolist(), **options}
        return featreg.open_store(write_store(path, features, shard=SHARD, bad=[BAD], keys=KEYS, **options))

    return make


@pytest.fixture(scope="module")
def store(make, tmp_path_factory):
    return make(tmp_path_factory.mktemp("stores") / "s.zarr")


def read_npy(folder):
    return {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}


def read_npz(folder):
    with np.load(folder / "features.npz") as archive:
        return dict(archive)


def read_safetensors(folder):
    return safetensors.numpy.load_file(folder / "features.safetensors")


def read_hdf5(folder):
    with h5py.File(folder / "features.h5") as file:
        return {name: dataset[:] for name, dataset in file.items()}


def read_mat(folder):
    found = scipy.io.loadmat(folder / "features.mat")
    return {
        name.replace("index__2", "index_-2"): values[:, 0] if name == "targets" else values
        for name, values in found.items()
        if not name.startswith("__")
    }


def read_parquet(folder):
    found = {}
    for path in folder.glob("*.parquet"):
        table = parquet.read_table(path)
        column = table["features"].combine_chunks()
        several = hasattr(column, "to_numpy_ndarray")
        values = column.to_numpy_ndarray() if several else np.array(column.to_pylist(), np.float32)
        found[path.stem] = values
        found["targets"] = table["target"].to_numpy()
        assert table["row"].to_pylist() == [int(row) for row in table["row"]]
    return found


def read_text(folder, suffix, **options):
    """The two lines that the documentation gives, for every array."""
    arrays = json.loads((folder / "export.json").read_text())["arrays"]
    return {
        name: np.loadtxt(folder / f"{name}.{suffix}", entry["dtype"], ndmin=2, **options).reshape(entry["shape"])
        for name, entry in arrays.items()
    }


READERS = {
    "npy": read_npy,
    "npz": read_npz,
    "safetensors": read_safetensors,
    "hdf5": read_hdf5,
    "parquet": read_parquet,
    "mat": read_mat,
    "csv": lambda folder: read_text(folder, "csv", delimiter=",", skiprows=1),
    "txt": lambda folder: read_text(folder, "txt"),
}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].shape == values.shape
        assert found[name].dtype == values.dtype
        assert np.array_equal(found[name], values, equal_nan=True)


def test_every_format_has_its_reader():
    assert set(READERS) == set(FORMATS)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_is_read_back_by_the_library_of_its_format(store, arrays, tmp_path, kind):
    assert export_store(store, tmp_path / "out", kind) == tmp_path / "out"
    assert_same(READERS[kind](tmp_path / "out"), arrays)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_without_the_rows_that_failed(store, arrays, tmp_path, kind):
    export_store(store.path, tmp_path / "out", kind, where="ok")
    assert_same(READERS[kind](tmp_path / "out"), {name: values[OK] for name, values in arrays.items()})


def test_the_samples_lie_beside(store, tmp_path):
    export_store(store, tmp_path / "out", "npy")
    with open(tmp_path / "out" / "samples.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["row", "key", "uri", "target", "status", "error"]
    assert [row["key"] for row in rows] == KEYS
    assert [int(row["target"]) for row in rows] == [row // 6 for row in range(COUNT)]
    assert [row["status"] for row in rows] == ["error" if row == BAD else "ok" for row in range(COUNT)]
    assert rows[BAD]["error"].startswith("ImageError")


def test_the_document_says_what_lies_where(store, tmp_path):
    export_store(store, tmp_path / "out", "hdf5", layers=["C5"])
    document = json.loads((tmp_path / "out" / "export.json").read_text())
    assert document["format"] == "hdf5"
    assert document["rows"] == COUNT
    assert document["classes"] == ["a", "b", "c"]
    assert document["files"] == ["features.h5", "samples.csv"]
    assert document["passes"][0]["request"]["model"] == "numpy:tinynet"
    assert document["passes"][0]["fingerprint"]["weights"]
    assert document["arrays"]["C5"] == {
        "layer": "C5",
        "file": "features.h5",
        "shape": [COUNT, 3, 2, 4],
        "dtype": "float32",
    }
    assert set(document["arrays"]) == {"C5", "targets"}


def test_a_view_and_other_names_of_a_layer_are_exported(store, arrays, tmp_path):
    export_store(store.where([9, 2]), tmp_path / "out", "npy", layers="module.C5")
    assert_same(read_npy(tmp_path / "out"), {"C5": arrays["C5"][[2, 9]], "targets": np.array([0, 1])})


def test_a_store_without_targets_has_no_array_of_them(make, tmp_path):
    export_store(make(tmp_path / "s", targets=[None] * COUNT), tmp_path / "out", "npz")
    assert set(read_npz(tmp_path / "out")) == set(NAMES.values())


def test_one_shard_is_read_at_a_time(store, tmp_path, monkeypatch):
    kind, read = type(store["C5"]), []
    load = kind.__getitem__
    monkeypatch.setattr(kind, "__getitem__", lambda self, index: read.append(index) or load(self, index))
    for name in FORMATS:
        read.clear()
        export_store(store, tmp_path / name, name)
        assert len(read) == 3 * -(-COUNT // SHARD)
        assert all(index.stop - index.start <= SHARD for index in read)


# --- numbers ------------------------------------------------------------------------------------------------------


def entry(values, name="x", block=3):
    blocks = [values[start : start + block] for start in range(0, len(values), block)]
    return Entry(name, values.shape, values.dtype, lambda: iter(blocks), "x")


def content(store, *values):
    return Content(store, tuple(entry(array, f"x{number}") for number, array in enumerate(values)))


@settings(max_examples=25)
@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]), hnp.array_shapes(min_dims=2, max_dims=4, max_side=5)
    ),
    hnp.arrays(np.float32, (4, 3)),
)
@pytest.mark.parametrize("kind", sorted({*FORMATS} - {"parquet"}))
def test_every_number_comes_back(store, tmp_path_factory, kind, first, second):
    folder = tmp_path_factory.mktemp("numbers")
    made = content(store, first, second)
    homes = writing.writer_of(kind)(folder, made)
    (folder / "export.json").write_text(made.document(kind, homes, []))
    found = READERS[kind](folder)
    for name, expected in (("x0", first), ("x1", second)):
        assert found[name].shape == expected.shape
        assert np.array_equal(found[name], expected, equal_nan=True)
        assert kind == "mat" or found[name].dtype == expected.dtype


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 3)])
def test_float16_in_parquet(store, tmp_path, shape):
    values = np.random.default_rng(0).standard_normal((COUNT, *shape)).astype(np.float16)
    made = Content(store, (attrs.evolve(entry(values, block=SHARD), layer="C5"),))
    writing.writer_of("parquet")(tmp_path, made)
    column = parquet.read_table(tmp_path / "x.parquet")["features"].combine_chunks()
    found = np.array(column.to_pylist(), np.float16) if len(shape) == 1 else column.to_numpy_ndarray()
    assert found.dtype == np.float16
    assert np.array_equal(found, values)


def test_names_in_matlab_are_variables(store, tmp_path):
    names = ["1x", "a b", "a-b", "é", "y" * 80, "y" * 81, "_"]
    values = np.arange(len(names) * 6, dtype=np.float32).reshape(len(names), 3, 2)
    entries = [entry(values[number], name) for number, name in enumerate(names)]
    matlab.write_mat(tmp_path, Content(store, tuple(entries)))
    found = [(name, array) for name, array in scipy.io.loadmat(tmp_path / "features.mat").items() if name[:2] != "__"]
    assert [name for name, _ in found] == ["x1x", "a_b", "a_b_2", "x_", "y" * 63, "y" * 55 + "_2", "x__2"]
    assert all(np.array_equal(array, values[number]) for number, (_, array) in enumerate(found))


def test_what_is_too_large_for_matlab_is_refused_before_it_is_written(store, tmp_path, monkeypatch):
    monkeypatch.setattr(matlab, "LIMIT", 1000)
    with pytest.raises(CapabilityError, match="too large") as caught:
        export_store(store, tmp_path / "out", "mat")
    assert "hdf5" in caught.value.remedy
    assert not list(tmp_path.iterdir())


# --- the folder ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system allocates nothing beforehand")
def test_a_full_disk_is_an_error_before_a_map_is_written_to(store, tmp_path, monkeypatch):
    def full(descriptor, start, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StoreError, match="cannot be written"):
        export_store(store, tmp_path / "out", "mat")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", FORMATS)
def test_a_layer_is_exported_once(store, tmp_path, kind):
    with pytest.raises(SpecError, match="twice"):
        export_store(store, tmp_path / "out", kind, layers=["pooled", store.info["pooled"].name])
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_taken_stays_as_it_is(store, tmp_path):
    for name in ("file", "folder", "other"):
        path = tmp_path / name
        path.write_text("mine") if name == "file" else path.mkdir()
    (tmp_path / "other" / "mine").write_text("mine")
    export_store(store, tmp_path / "export", "txt", layers="pooled")
    (tmp_path / "export" / "mine").write_text("mine")
    for overwrite in (False, True):
        for name in ("file", "other", "export"):
            with pytest.raises(StoreExistsError):
                export_store(store, tmp_path / name, "npy", overwrite=overwrite)
    with pytest.raises(StoreExistsError):
        export_store(store, tmp_path / "folder", "npy")
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "other" / "mine").read_text() == "mine"
    assert (tmp_path / "export" / "pooled.txt").exists()


def test_an_earlier_export_is_replaced_whole(store, tmp_path):
    for kind in ("txt", "npz"):
        export_store(store, tmp_path / "out", kind, overwrite=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"features.npz", "samples.csv", "export.json"}
    with pytest.raises(StoreExistsError, match="taken"):
        export_store(store, tmp_path / "out", "npz")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_leaves_nothing_and_the_earlier_export(store, tmp_path, monkeypatch):
    export_store(store, tmp_path / "out", "txt")

    def fails(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("featreg.export.arrays.write_npy", fails)
    for name in ("out", "new"):
        with pytest.raises(StoreError, match="cannot be written"):
            export_store(store, tmp_path / name, "npy", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "C5.txt").exists()


def test_a_path_that_reads_like_a_file_is_refused(store, tmp_path):
    with pytest.raises(SpecError, match="is a folder") as caught:
        export_store(store, tmp_path / "features.npz", "npz")
    assert caught.value.remedy == repr(str(tmp_path / "features"))


def test_wrong_requests(store, tmp_path):
    with pytest.raises(SpecError) as caught:
        export_store(store, tmp_path / "out", "safetensor")
    assert caught.value.matches[0] == "safetensors"
    with pytest.raises(LayerError):
        export_store(store, tmp_path / "out", "npy", layers="C9")
    with pytest.raises(StoreError, match="nothing to export"):
        export_store(store.where([]), tmp_path / "out", "npy")
    with pytest.raises(StoreError):
        export_store(tmp_path / "none", tmp_path / "out", "npy")
    assert not list(tmp_path.iterdir())


def test_hdf5_needs_its_library(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.delitem(sys.modules, "featreg.export.hdf5", raising=False)
    with pytest.raises(MissingDependencyError) as caught:
        export_store(store, tmp_path / "out", "hdf5")
    assert caught.value.remedy == 'pip install "featreg[hdf5]"'


def test_unfinished_rows_are_not_exported_as_failed(make, tmp_path):
    store = make(tmp_path / "s", stop=8)
    with pytest.raises(StoreError, match="3 of the 11 rows"):
        export_store(store, tmp_path / "out", "npy")
    export_store(store, tmp_path / "out", "npy", where="ok")
    assert len(read_npy(tmp_path / "out")["pooled"]) == 7


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command(store, arrays, tmp_path):
    arguments = ["export", str(store.path), str(tmp_path / "out"), "--format", "npy", "--layer", "-2", "--where", "ok"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "index_-2.npy" in result.output
    assert "10x4x3" in result.output
    assert_same(read_npy(tmp_path / "out"), {name: arrays[name][OK] for name in ("index_-2", "targets")})
    refused = CliRunner().invoke(cli, arguments)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.output
    again = CliRunner().invoke(cli, [*arguments, "--overwrite", "--json"])
    assert json.loads(again.output) == json.loads(Path(tmp_path / "out" / "export.json").read_text())


def test_the_command_knows_every_format():
    from featreg.cli import export

    assert tuple(FORMATS) == export.FORMATS
