"""Targets where only some of the rows have one."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

import featreg
from featreg.errors import SpecError

GIVEN = [2, None, 0, None, 2, 1]
EXPECTED = [2, -1, 0, -1, 2, 1]


@pytest.fixture
def make(tmp_path, write_store):
    pytest.importorskip("zarr")

    def made(name="s", targets=GIVEN, **options):
        features = {"pooled": np.arange(2 * len(targets), dtype=np.float32).reshape(-1, 2)}
        return featreg.open_store(write_store(tmp_path / name, features, targets=targets, **options))

    return made


def test_a_row_without_a_target_has_minus_one(make):
    store = make()
    assert store.targets.dtype == np.int64
    assert store.targets.tolist() == EXPECTED
    assert store.where(store.targets == 2).rows.tolist() == [0, 4]
    assert store.where([0, 2]).targets.tolist() == [2, 0]
    assert store.where([1, 3]).targets.tolist() == [-1, -1]  # as of any rows of this store


def test_batches_and_samples_have_minus_one_too(make):
    store = make()
    assert np.concatenate([batch.targets for batch in store.batches(4)]).tolist() == EXPECTED
    shuffled = list(store.batches(2, shuffle=True, seed=1, buffer=6))
    assert [EXPECTED[row] for batch in shuffled for row in batch.rows] == [
        target for batch in shuffled for target in batch.targets.tolist()
    ]
    assert store.sample(6).targets.tolist() == EXPECTED


def test_xarray_and_torch_have_minus_one_too(make):
    pytest.importorskip("xarray")
    pytest.importorskip("torch")
    store = make()
    assert store.to_xarray()["target"].values.tolist() == EXPECTED
    dataset = store.to_torch("pooled")
    assert [dataset[row]["target"] for row in range(6)] == EXPECTED


@pytest.mark.parametrize("where", [None, "ok"])
def test_an_export_has_minus_one_in_its_array_and_nothing_in_its_table(make, tmp_path, where):
    featreg.export_store(make(bad=[2]), tmp_path / "out", "npy", where=where)
    kept = [row for row in range(6) if where is None or row != 2]
    assert np.load(tmp_path / "out" / "targets.npy").tolist() == [EXPECTED[row] for row in kept]
    with open(tmp_path / "out" / "samples.csv", newline="", encoding="utf-8") as file:
        table = [row["target"] for row in csv.DictReader(file)]
    assert table == ["" if GIVEN[row] is None else str(GIVEN[row]) for row in kept]
    assert json.loads((tmp_path / "out" / "export.json").read_text())["arrays"]["targets"]["dtype"] == "int64"


def test_a_merge_keeps_which_rows_have_none(make, tmp_path):
    first, second = make("a", keys=list("abcdef")), make("b", [0, None], keys=list("gh"))
    assert featreg.merge_stores(tmp_path / "m", [first, second]).targets.tolist() == [*EXPECTED, 0, -1]


def test_a_store_of_which_no_row_has_a_target_has_none(make):
    store = make(targets=[None] * 3)
    assert store.targets is None
    assert store.where([0]).targets is None
    assert [batch.targets for batch in store.batches(2)] == [None, None]


@pytest.mark.parametrize("selected", [False, True, np.False_, np.array(True)])
def test_a_single_truth_is_no_mask(make, selected):
    with pytest.raises(SpecError, match="rows are selected by a mask or by positions"):
        make().where(selected)


def test_comparing_the_targets_of_a_store_without_any_is_noticed(make):
    store = make(targets=[None] * 3)
    with pytest.raises(SpecError) as caught:
        store.where(store.targets == 3)
    assert "targets is None" in caught.value.remedy
