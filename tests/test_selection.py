"""A part of a data set: seeded, the same everywhere, met on average, and known to whatever goes on with a store."""

import hashlib
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import featreg
from featreg.engine import add_layers, append, repair, work
from featreg.engine.planning.selection import Selection
from featreg.errors import SourceError, SpecError, StoreDamagedError, StoreMismatchError
from featreg.sources import Sample, Source, open_source
from featreg.stores import open_store

MODEL = "numpy:tinynet"


def drawn(keys, fraction, seed=0):
    """The definition, written out once more."""
    hashes = {
        key: int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8, key=seed.to_bytes(8, "big")).digest(), "big")
        for key in keys
    }
    return [key for key in keys if hashes[key] < fraction * 2**64]


def taken(keys, **selection):
    return [sample.key for sample in Selection(**selection).of(Sample(key, key) for key in keys)]


KEYS = [f"class/{number}.jpg" for number in range(40)]


@given(
    keys=st.lists(st.text("abcäß/😀", max_size=6), max_size=30),
    fraction=st.sampled_from([0.01, 0.1, 0.5, 0.99, 1, 1.0]),
    seed=st.sampled_from([0, 1, 2**64 - 1]),
    limit=st.none() | st.integers(1, 40),
)
def test_a_sample_is_drawn_by_its_key_alone(keys, fraction, seed, limit):
    assert taken(keys, fraction=fraction, seed=seed, limit=limit) == drawn(keys, fraction, seed)[:limit]


def test_a_smaller_fraction_is_a_part_of_a_larger_one():
    keys = [str(number) for number in range(2000)]
    tenth, half = set(taken(keys, fraction=0.1)), set(taken(keys, fraction=0.5))
    assert tenth < half < set(keys)
    assert taken(keys, fraction=0.5) != taken(keys, fraction=0.5, seed=1)


def test_the_share_is_met_on_average():
    count = 20_000
    keys = [f"{number:08}.jpg" for number in range(count)]
    for seed, fraction in itertools.product(range(3), (0.01, 0.1, 0.7)):
        found = len(taken(keys, fraction=fraction, seed=seed))
        assert abs(found - fraction * count) < 4 * math.sqrt(count * fraction * (1 - fraction))


def test_nothing_is_held_in_memory():
    endless = (Sample(str(number), "") for number in itertools.count())
    assert len(list(Selection(limit=50, fraction=0.25).of(endless))) == 50


def test_a_key_that_is_no_unicode_is_drawn_too():
    assert taken(["\udc80.jpg"], fraction=1) == ["\udc80.jpg"]


@pytest.mark.parametrize(
    "wrong",
    [{"fraction": 0}, {"fraction": 1.01}, {"fraction": "0.1"}, {"fraction": True}, {"fraction": float("nan")},
     {"fraction": 0.5, "seed": -1}, {"fraction": 0.5, "seed": 2**64}, {"fraction": 0.5, "seed": 0.5}, {"limit": 0},
     {"seed": 1}],
)  # fmt: skip
def test_what_is_no_part(tmp_path, wrong):
    with pytest.raises(SpecError):
        featreg.extract("photos", tmp_path / "s", MODEL, "C5", **wrong)
    assert list(tmp_path.iterdir()) == []


class Pictures(Source):
    """One grey picture for every key."""

    kind = uri = "pictures"

    def __init__(self, keys):
        self.keys = keys

    def index(self):
        return (Sample(key, key) for key in self.keys)

    def read(self, sample):
        return np.full((64, 64, 3), len(sample.key), np.uint8)


def test_only_these_rows_are_extracted(tmp_path):
    store = featreg.extract(Pictures(KEYS), tmp_path / "s", MODEL, "pooled", fraction=0.3, seed=4, limit=5)
    assert store.keys == drawn(KEYS, 0.3, 4)[:5]
    record = store.manifest.source
    assert (record.fraction, record.seed, record.limit) == (0.3, 4, 5)


def test_a_run_of_another_part_is_refused(tmp_path):
    featreg.extract(Pictures(KEYS), tmp_path / "s", MODEL, "pooled", fraction=0.3, seed=4)
    again = featreg.extract(Pictures(KEYS), tmp_path / "s", MODEL, "pooled", fraction=0.3, seed=4)
    assert again.summary.done == 0
    for other, name in [
        ({"fraction": 0.3}, "source.seed: 4 in the store, 0 now"),
        ({"fraction": 0.4, "seed": 4}, "source.fraction: 0.3 in the store, 0.4 now"),
        ({}, "source.fraction: 0.3 in the store, None now"),
        ({"fraction": 0.3, "seed": 4, "limit": 3}, "source.limit: None in the store, 3 now"),
    ]:
        with pytest.raises(StoreMismatchError, match=name):
            featreg.extract(Pictures(KEYS), tmp_path / "s", MODEL, "pooled", **other)


def test_nothing_drawn_is_an_error_and_no_store(tmp_path):
    assert drawn(KEYS[:3], 0.001) == []
    with pytest.raises(SourceError, match=r"fraction=0\.001 draws no sample") as caught:
        featreg.extract(Pictures(KEYS[:3]), tmp_path / "s", MODEL, "pooled", fraction=0.001)
    assert "larger fraction" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder(tmp_path):
    for number in range(30):
        picture(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


def picture(path: Path):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((64, 64, 3), 7 * len(path.name), np.uint8)).save(path)


def test_of_what_is_appended_the_same_share_is_drawn(tmp_path, folder):
    keys = [f"{number}.png" for number in range(60)]
    before = featreg.extract(folder, tmp_path / "s", MODEL, "pooled", fraction=0.4, seed=3).keys
    for number in range(30, 60):
        picture(folder / f"{number}.png")
    store = append(tmp_path / "s", source=folder)
    assert store.keys == before + drawn(keys[30:], 0.4, 3)
    whole = featreg.extract(folder, tmp_path / "t", MODEL, "pooled", fraction=0.4, seed=3)
    assert sorted(whole.keys) == sorted(store.keys)
    assert store.manifest.source.fraction == 0.4
    assert add_layers(tmp_path / "s", "C5")["C5"].shape == (len(store), 48, 2, 2)


def test_an_append_looks_beyond_a_limit(tmp_path, folder):
    first = featreg.extract(folder, tmp_path / "s", MODEL, "pooled", limit=5, fraction=0.8).keys
    assert append(tmp_path / "s").keys == drawn([f"{number}.png" for number in range(30)], 0.8)
    assert len(first) == 5


def test_a_worker_goes_on_with_the_same_part(tmp_path, folder):
    store = featreg.extract(folder, tmp_path / "s", MODEL, "pooled", fraction=0.4, seed=3)
    values, keys = store["pooled"][:], store.keys
    (tmp_path / "s/pooled/c/0/0").write_bytes(b"torn")
    assert repair(tmp_path / "s").replanned
    again = work(tmp_path / "s")
    assert again.keys == keys
    assert np.array_equal(again["pooled"][:], values)


def test_a_damaged_index_is_drawn_again(tmp_path, folder):
    keys = featreg.extract(folder, tmp_path / "s", MODEL, "pooled", fraction=0.4, seed=3).keys
    (index,) = (tmp_path / "s/index").iterdir()
    content = index.read_bytes()
    index.write_bytes(b"torn")
    assert repair(tmp_path / "s").restored == [f"index/{index.name}"]
    assert index.read_bytes() == content
    assert open_store(tmp_path / "s").keys == keys
    index.write_bytes(b"torn")
    for path in folder.glob("1*.png"):
        path.unlink()
    with pytest.raises(StoreDamagedError):
        repair(tmp_path / "s", source=open_source(folder))
