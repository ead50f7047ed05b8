"""Reading a store after extraction: views, samples, batches, xarray, torch, memory maps."""

import itertools
import json
import pickle
import shutil
import sys
import tracemalloc

import attrs
import numpy as np
import pytest
import xarray
from hypothesis import given
from hypothesis import strategies as st

import featreg
from featreg.errors import LayerError, MissingDependencyError, SpecError, StoreError, StoreExistsError
from featreg.stores.places.place import LocalPlace
from featreg.stores.reading import sampling
from featreg.stores.reading.batches import block_rows
from featreg.stores.reading.sampling import reservoir
from featreg.stores.writer import StoreWriter

COUNT, SHARD = 23, 4
BAD = (5, 20)
LAYERS = ["C5", "pooled", -2]
OK = [row for row in range(COUNT) if row not in BAD]


def make_features(count=COUNT):
    generator = np.random.default_rng(0)
    shapes = {"C5": (6, 2, 3), "pooled": (5,), -2: (4, 3)}
    features = {key: generator.standard_normal((count, *shape)).astype(np.float32) for key, shape in shapes.items()}
    for values in features.values():
        values[list(BAD)] = np.nan
    return features


@pytest.fixture(scope="module")
def arrays():
    """What is in the store, by layer."""
    return make_features()


@pytest.fixture(scope="module")
def make(write_store, arrays):
    def make(path, shard=SHARD, **options):
        targets = [row // 8 for row in range(COUNT)]
        return featreg.open_store(write_store(path, arrays, shard=shard, bad=BAD, targets=targets, **options))

    return make


@pytest.fixture(scope="module")
def store(make, tmp_path_factory):
    return make(tmp_path_factory.mktemp("stores") / "s.zarr")


def same(found, expected):
    return found.dtype == expected.dtype and np.array_equal(found, expected, equal_nan=True)


def test_the_fixture_has_several_shards_and_failed_rows(store):
    assert block_rows(store, store.layers) == SHARD
    assert np.flatnonzero(np.isnan(np.asarray(store["pooled"])).any(1)).tolist() == list(BAD)
    assert [store[key].ndim for key in LAYERS] == [4, 2, 3]


# --- sample -------------------------------------------------------------------------------------------------------


def reservoir_of_vissl(count, n, seed):
    """The loop of ExtractedFeaturesLoader.sample_features, over numbers in place of features."""
    rng = np.random.default_rng(seed)
    kept = []
    for row in range(count):
        if len(kept) < n:
            kept.append(row)
        else:
            place = rng.integers(low=0, high=row + 1)
            if place < n:
                kept[place] = row
    return sorted(kept)


@given(st.integers(0, 300), st.integers(1, 40), st.integers(0, 2**32))
def test_the_sample_is_that_of_vissl(count, n, seed):
    assert reservoir(count, n, seed).tolist() == reservoir_of_vissl(count, n, seed)


def test_a_sample_does_not_depend_on_how_many_rows_are_drawn_for_at_once(monkeypatch):
    monkeypatch.setattr(sampling, "DRAWS", 7)
    assert reservoir(1000, 13, 3).tolist() == reservoir_of_vissl(1000, 13, 3)


def test_every_row_is_drawn_as_often_as_any_other():
    drawn = np.bincount(np.concatenate([reservoir(20, 5, seed) for seed in range(4000)]), minlength=20)
    assert abs(drawn - 1000).max() < 5 * np.sqrt(4000 * 0.25 * 0.75)


def test_a_sample_holds_the_rows_that_it_says(store, arrays):
    batch = store.sample(6, seed=1)
    assert batch.rows.tolist() == reservoir_of_vissl(COUNT, 6, 1)
    assert tuple(batch.features) == store.layers
    for layer, values in arrays.items():
        assert same(batch[layer], values[batch.rows])
    assert batch.targets.tolist() == [row // 8 for row in batch.rows]


def test_a_sample_of_one_layer_and_flat(store, arrays):
    batch = store.sample(5, 2, "C5", True)
    assert list(batch.features) == ["C5"]
    assert same(batch["C5"], arrays["C5"][batch.rows].reshape(5, -1))
    assert same(store.sample(COUNT + 1, layer="pooled")["pooled"], arrays["pooled"])


def test_the_same_rows_whatever_the_sharding(make, tmp_path, store):
    other = make(tmp_path / "s", 16)
    assert block_rows(other, other.layers) == 16
    assert other.sample(7, 5).rows.tolist() == store.sample(7, 5).rows.tolist()


def test_a_sample_of_a_view_is_of_its_rows(store, arrays):
    batch = store.where(status="ok").sample(6, seed=1, layer="pooled")
    assert batch.rows.tolist() == [OK[place] for place in reservoir_of_vissl(len(OK), 6, 1)]
    assert same(batch["pooled"], arrays["pooled"][batch.rows])


@pytest.mark.parametrize("n", [0, -1, True, 1.5, "3"])
def test_a_sample_is_of_a_whole_number_of_rows(store, n):
    with pytest.raises(SpecError):
        store.sample(n)


@pytest.mark.parametrize("seed", [-1, True, 1.5, "3", None])
def test_a_seed_is_a_whole_number(store, seed):
    with pytest.raises(SpecError, match="seed"):
        store.sample(3, seed=seed)


@pytest.mark.parametrize("rows", [[[1, 2], [3, 4]], np.ones((COUNT, 1), bool), ["a"]])
def test_rows_are_selected_along_one_axis(store, rows):
    with pytest.raises(SpecError, match="a mask or by positions"):
        store.where(rows)


# --- batches ------------------------------------------------------------------------------------------------------


@given(
    size=st.integers(1, 30),
    shuffle=st.booleans(),
    seed=st.integers(0, 99),
    buffer=st.none() | st.integers(1, 30),
    viewed=st.booleans(),
)
def test_batches_hold_every_row_once_and_right(store, arrays, size, shuffle, seed, buffer, viewed):
    rows = store.where(status="ok") if viewed else store
    batches = list(rows.batches(size, layers=["pooled", "C5"], shuffle=shuffle, seed=seed, buffer=buffer))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(rows) // size - (len(rows) % size == 0))
    order = np.concatenate([batch.rows for batch in batches])
    assert sorted(order) == (OK if viewed else list(range(COUNT)))
    assert shuffle or list(order) == sorted(order)
    for layer in ("pooled", "C5"):
        assert same(np.concatenate([batch[layer] for batch in batches]), arrays[layer][order])
    assert np.array_equal(np.concatenate([batch.targets for batch in batches]), order // 8)


def order_of(store, **options):
    return np.concatenate([batch.rows for batch in store.batches(5, layers="pooled", shuffle=True, **options)]).tolist()


def test_the_order_is_the_seeds(store):
    assert order_of(store, seed=3) == order_of(store, seed=3)
    assert order_of(store, seed=3) != order_of(store, seed=4)
    assert order_of(store) != list(range(COUNT))


def test_a_buffer_of_one_shard_mixes_within_shards(store):
    order = order_of(store, seed=1, buffer=1)
    shards = [shard for shard, _ in itertools.groupby(row // SHARD for row in order)]
    assert sorted(shards) == list(range(-(-COUNT // SHARD)))
    assert shards != sorted(shards)
    assert any(order[place] > order[place + 1] for place in range(3))


def test_a_buffer_holds_no_more_than_it_says(store, monkeypatch):
    read = []
    load = store["pooled"].__class__.__getitem__
    monkeypatch.setattr(
        type(store["pooled"]), "__getitem__", lambda self, index: read.append(index) or load(self, index)
    )
    batches = store.batches(3, layers="pooled", shuffle=True, buffer=8)
    assert read == []
    next(batches)
    assert len(read) == 2
    assert all(index.stop - index.start <= SHARD for index in read)


def test_a_buffer_of_all_rows_is_a_full_shuffle(store):
    heads = {order_of(store, seed=seed, buffer=COUNT)[0] // SHARD for seed in range(40)}
    assert len(heads) == -(-COUNT // SHARD)
    tails = ([row // SHARD for row in order_of(store, seed=seed, buffer=COUNT)[-3:]] for seed in range(10))
    assert any(len(set(tail)) > 1 for tail in tails)  # no shard is left over that fits into no whole buffer


def test_one_buffer_is_held_at_a_time(write_store, tmp_path):
    weight = 256 * 1024 * 4
    features = {"pooled": np.zeros((1024, 1024), np.float32)}
    store = featreg.open_store(write_store(tmp_path / "s", features, shard=16))
    batches = store.batches(20, shuffle=True, buffer=256)
    next(batches)
    tracemalloc.start()
    for _ in batches:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.7 * weight


def test_a_batch_is_a_copy(store, arrays):
    batch, *_ = store.batches(3, layers="pooled")
    batch["pooled"][:] = 0
    assert same(next(store.batches(3, layers="pooled"))["pooled"], arrays["pooled"][:3])
    assert batch["pooled"].base is None


def test_batches_are_refused_before_the_first(store):
    with pytest.raises(LayerError):
        store.batches(3, layers="C9")
    for options in (
        {"size": 0},
        {"size": 3, "buffer": 0},
        {"size": 3, "layers": []},
        {"size": 3, "layers": [-2, -2]},
        {"size": 3, "layers": ["pooled", "module.pooled"]},
        {"size": 3, "shuffle": True, "seed": "a"},
        {"size": 3, "seed": True},
    ):
        with pytest.raises(SpecError):
            store.batches(**options)


def test_batches_of_no_row_are_none(store):
    assert list(store.where([]).batches(3, shuffle=True)) == []


def test_batches_may_be_flat(store, arrays):
    batch = next(store.batches(4, layers="C5", flatten=True))
    assert same(batch["C5"], arrays["C5"][:4].reshape(4, -1))


# --- where --------------------------------------------------------------------------------------------------------


def test_a_view_has_the_rows_of_a_status(store, arrays):
    view = store.where(status="ok")
    assert len(view) == len(OK)
    assert view.rows.tolist() == OK
    assert view.keys == [store.keys[row] for row in OK]
    assert view.targets.tolist() == [row // 8 for row in OK]
    assert set(view.status) == {"ok"}
    assert view.errors == {}
    assert (view.layers, view.classes, view.info, view.complete) == (store.layers, store.classes, store.info, True)
    assert same(np.asarray(view["C5"]), arrays["C5"][OK])
    assert "C5" in view
    assert "C9" not in view
    assert "21 of 23 rows" in repr(view)
    failed = store.where(status="error")
    assert failed.errors == store.errors
    assert failed.rows.tolist() == list(BAD)


def test_views_of_masks_positions_and_views(store):
    assert store.where(store.targets == 1).rows.tolist() == list(range(8, 16))
    assert store.where([3, -1, 3, 0]).rows.tolist() == [0, 3, COUNT - 1]
    view = store.where(store.targets == 2, status="ok").where([0, 2])
    assert view.rows.tolist() == [16, 18]
    assert view.keys == [store.keys[16], store.keys[18]]
    assert [table["row"].to_pylist() for table in view.iter_samples()] == [[16, 18]]
    with pytest.raises(IndexError):
        store.where([COUNT])
    with pytest.raises(IndexError):
        store.where([True])
    with pytest.raises(SpecError):
        store.where(["a"])
    with pytest.raises(SpecError) as caught:
        store.where(status="okay")
    assert caught.value.matches == ("ok",)


INDEXES = [
    3,
    -1,
    np.int64(2),
    slice(None),
    slice(2, 9, 3),
    slice(None, None, -1),
    slice(5, 5),
    [4, 0, 4],
    np.array([[0, 1], [-1, 2]]),
    np.arange(len(OK)) % 3 == 0,
    ...,
    None,
    (),
    (..., 0),
    (2, 1),
    (slice(1, 4), 0),
    (slice(1, 4), [2, 0, 1]),
    ([0, 5], slice(1, 3)),
    ([0, 5], [1, 2]),
    (np.arange(len(OK)) < 2, 1),
]


@pytest.mark.parametrize("index", INDEXES, ids=repr)
@pytest.mark.parametrize("layer", ["C5", "pooled"])
def test_a_layer_of_a_view_is_indexed_as_in_numpy(store, arrays, layer, index):
    view = store.where(status="ok")[layer]
    expected = arrays[layer][OK]
    assert (view.shape, view.dtype, view.ndim, len(view)) == (expected.shape, expected.dtype, expected.ndim, len(OK))
    assert np.array_equal(view[index], expected[index])


def test_a_layer_of_a_view_refuses_what_numpy_refuses(store):
    view = store.where(status="ok")["pooled"]
    for index in (len(OK), [len(OK)], np.ones(3, bool)):
        with pytest.raises(IndexError):
            view[index]
    with pytest.raises(LayerError):
        store.where(status="ok")["C9"]


def test_scattered_rows_are_read_alone(store, arrays):
    view = store.where([0, COUNT - 1])
    assert same(np.asarray(view["pooled"]), arrays["pooled"][[0, -1]])


# --- other libraries ----------------------------------------------------------------------------------------------


def test_plain_xarray_opens_a_store(store, arrays):
    with xarray.open_zarr(str(store.path), chunks=None) as found:
        assert set(found) == {"C5", "pooled", "index_-2"}
        assert same(found["C5"].values, arrays["C5"])
        assert found["C5"].dims[0] == found["pooled"].dims[0] == "row"


def test_an_xarray_dataset_is_lazy_and_right(store, arrays, monkeypatch):
    read = []
    load = type(store["C5"]).__getitem__
    monkeypatch.setattr(type(store["C5"]), "__getitem__", lambda self, index: read.append(index) or load(self, index))
    dataset = store.to_xarray()
    assert read == []
    assert set(dataset) == {"C5", "pooled", "index_-2"}
    assert dataset["key"].values.tolist() == store.keys
    assert dataset["target"].values.tolist() == store.targets.tolist()
    assert dataset["status"].values.tolist() == store.status.tolist()
    assert dataset.attrs["model"] == "numpy:tinynet"
    picked = dataset["C5"].isel(row=[7, 2], C5_channel=slice(1, 6, 2), C5_x=1)
    assert read == []
    assert same(picked.values, arrays["C5"][[7, 2]][:, 1:6:2, :, 1])
    assert same(dataset["C5"].isel(row=3, C5_y=[1, 0]).values, arrays["C5"][3][:, [1, 0]])
    assert same(dataset["pooled"].sel(row=4).values, arrays["pooled"][4])
    assert same(dataset["index_-2"].values, arrays[-2])


def test_an_xarray_dataset_of_a_view(store, arrays):
    dataset = store.where(status="ok").to_xarray()
    assert dataset["row"].values.tolist() == OK
    assert same(dataset["pooled"].values, arrays["pooled"][OK])


def test_a_long_key_does_not_make_the_others_long(write_store, tmp_path):
    keys = [f"{row}.png" for row in range(99)] + ["x" * 100_000]
    store = featreg.open_store(write_store(tmp_path / "s", {"C5": np.zeros((100, 2), np.float32)}, keys=keys))
    dataset = store.to_xarray()
    assert dataset["key"].values.tolist() == keys
    assert dataset["key"].dtype == object


@pytest.mark.parametrize("kind", ["csv", "npz", "parquet"])
def test_layers_may_be_called_as_coordinates_and_tables_are(write_store, tmp_path, kind):
    names = ["row", "key", "status", "target", "samples", "targets"]
    features = {name: np.full((3, 2), number, np.float32) for number, name in enumerate(names)}
    store = featreg.open_store(write_store(tmp_path / "s", features, targets=[0, 1, 2]))
    dataset = store.to_xarray()
    with xarray.open_zarr(str(store.path), chunks=None) as plain:
        for number, name in enumerate(names):
            array = next(record.array for record in store.manifest.layers if record.key == name)
            assert (dataset[array].values == number).all()
            assert (plain[array].values == number).all()
    arrays = json.loads((featreg.export_store(store, tmp_path / kind, kind) / "export.json").read_bytes())["arrays"]
    assert {entry["layer"] for entry in arrays.values()} >= set(names)


def test_a_layer_that_is_called_as_a_coordinate_anyway_is_refused(store, monkeypatch):
    record = attrs.evolve(store.manifest.layers[0], array="status")
    changed = attrs.evolve(store.manifest.passes[0], layers=(record, *store.manifest.layers[1:]))
    monkeypatch.setattr(store, "manifest", attrs.evolve(store.manifest, passes=(changed,)))
    with pytest.raises(SpecError, match="status"):
        store.to_xarray()


def test_layers_and_positions_may_be_numbers_of_numpy(write_store, tmp_path):
    torch = pytest.importorskip("torch")
    features = {0: np.arange(6, dtype=np.float32).reshape(3, 2), "C5": np.zeros((3, 2), np.float32)}
    store = featreg.open_store(write_store(tmp_path / "s", features))
    number = np.int64(0)
    assert same(np.asarray(store[number]), features[0])
    assert number in store
    assert same(store.sample(3, layer=number)[0], features[0])
    dataset = store.to_torch(number)
    items = dataset.__getitems__([-1, np.int64(0)])
    assert [item["row"] for item in items] == [2, 0]
    assert torch.equal(items[0]["features"], torch.tensor([4.0, 5.0]))
    for positions in ([3], [0, -4]):
        with pytest.raises(IndexError, match="out of range"):
            dataset.__getitems__(positions)


def test_torch_loads_rows_in_its_workers(store, arrays):
    torch = pytest.importorskip("torch")
    dataset = store.where(status="ok").to_torch("pooled")
    assert isinstance(dataset, torch.utils.data.Dataset)
    assert len(dataset) == len(OK)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=2, shuffle=True)
    rows = []
    for batch in loader:
        assert same(batch["features"].numpy(), arrays["pooled"][batch["row"].numpy()])
        assert (batch["target"] == batch["row"] // 8).all()
        rows += batch["row"].tolist()
    assert sorted(rows) == OK


def test_a_torch_dataset_travels_to_spawned_workers(store, arrays):
    pytest.importorskip("torch")
    dataset = pickle.loads(pickle.dumps(store.to_torch()))
    item = dataset[-2]
    assert (item["row"], item["target"]) == (COUNT - 2, 2)
    assert list(item["features"]) == LAYERS
    assert same(item["features"]["C5"].numpy(), arrays["C5"][-2])
    with pytest.raises(IndexError):
        dataset[COUNT]
    with pytest.raises(LayerError):
        store.to_torch("C9")


@pytest.mark.parametrize(("module", "call"), [("xarray", "to_xarray"), ("torch", "to_torch")])
def test_a_missing_library_is_named(store, monkeypatch, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "featreg.stores.reading.lazy", raising=False)
    from featreg.stores.reading import torchdata

    torchdata._dataset_class.cache_clear()
    with pytest.raises(MissingDependencyError) as caught:
        getattr(store, call)()
    assert module in caught.value.remedy


# --- memory maps --------------------------------------------------------------------------------------------------


def test_a_memory_map_is_not_that_of_other_features(make, write_store, tmp_path, arrays, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    others = {key: values + 1 for key, values in arrays.items()}
    for features in (arrays, others):
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        store = featreg.open_store(write_store(tmp_path / "s", features, bad=BAD))
        assert same(np.array(store.memmap("pooled")), features["pooled"])
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_a_memory_map_of_rows_that_stay_the_same_is_found_again(make, write_store, tmp_path, arrays):
    half = featreg.open_store(write_store(tmp_path / "s", arrays, bad=BAD, stop=8))
    found = half.where(range(3)).memmap("C5")
    (file,) = tmp_path.glob("*.npy")
    before = file.stat()
    writer = StoreWriter(LocalPlace(tmp_path / "s"))
    task = writer.manifest.tasks[2]
    writer.commit(task, {key: values[task.start : task.stop] for key, values in arrays.items()}, {})
    assert same(np.array(featreg.open_store(tmp_path / "s").where(range(3)).memmap("C5")), np.array(found))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert len(list(tmp_path.glob("*.npy"))) == 1


def test_a_memory_map_lies_beside_the_store_and_is_found_again(make, tmp_path, arrays):
    store = make(tmp_path / "s.zarr")
    found = store.memmap("C5")
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable
    assert same(np.array(found), arrays["C5"])
    (file,) = tmp_path.glob("*.npy")
    assert file.name.startswith("s.zarr.C5.")
    before = file.stat()
    assert same(np.array(featreg.open_store(store.path).memmap("C5")), arrays["C5"])
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert same(np.array(store.where(status="ok").memmap("C5")), arrays["C5"][OK])
    assert len(list(tmp_path.glob("*.npy"))) == 2
    assert not list(tmp_path.glob(".*"))


def test_unfinished_rows_are_not_mapped_as_failed(make, tmp_path, arrays):
    store = make(tmp_path / "s.zarr", stop=12)
    with pytest.raises(StoreError, match="11 of the 23 rows"):
        store.memmap("pooled")
    with pytest.raises(StoreError, match="3 of the 12 rows"):
        store.where(range(3, 15)).memmap("pooled")
    assert same(
        np.array(store.where(status="ok").memmap("pooled")), arrays["pooled"][[row for row in range(12) if row != 5]]
    )
    assert not store.complete
    assert store.where(range(12)).complete


def test_a_memory_map_at_a_path(store, arrays, tmp_path):
    path = tmp_path / "x.npy"
    assert same(np.array(store.memmap("pooled", path)), arrays["pooled"])
    assert same(np.load(path), arrays["pooled"])
    with pytest.raises(StoreExistsError, match="taken"):
        store.memmap("pooled", path)
    with pytest.raises(StoreError, match="cannot be written"):
        store.memmap("pooled", tmp_path / "none" / "x.npy")
    assert store.where([]).memmap("pooled", tmp_path / "y.npy").shape == (0, arrays["pooled"].shape[1])
    assert {file.name for file in tmp_path.iterdir()} == {"x.npy", "y.npy"}
