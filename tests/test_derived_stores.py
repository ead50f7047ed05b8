"""Layers derived from those of a finished store."""

import json
import threading
from contextlib import suppress

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

import featreg
from featreg.cli.main import cli
from featreg.derived import blocks, sample_rows
from featreg.engine import deriving, repair, run, work
from featreg.engine.derivation import derive_tasks
from featreg.engine.loop.options import Options
from featreg.engine.merge import merge_stores
from featreg.engine.planning import plan
from featreg.errors import LayerError, RequestError, SpecError, StoreDamagedError, StoreError, StoreMismatchError
from featreg.stores.check import examine
from featreg.stores.places.opening import place_at
from featreg.stores.places.place import LocalPlace
from featreg.stores.writer import StoreWriter

SHAPES = {"C5": (4, 3, 2), "tokens": (5, 3), "pooled": (6,)}
ROWS, BAD = 23, (4, 17)
OK = [row for row in range(ROWS) if row not in BAD]


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    """Tasks of four rows, blocks of seven for the widest inputs, and no time in the documents."""
    monkeypatch.setattr(plan, "MAX_TASK_ROWS", 4)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 7 * 8 * 45)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")


def features_of(rows=ROWS, seed=0, bad=BAD):
    generator = np.random.default_rng(seed)
    found = {key: generator.normal(2, 3, (rows, *shape)).astype(np.float32) for key, shape in SHAPES.items()}
    for values in found.values():
        values[list(bad)] = np.nan
    return found


@pytest.fixture
def make(write_store, tmp_path):
    def make(name="s", rows=ROWS, seed=0, bad=BAD, **options):
        features = options.pop("features", None) or features_of(rows, seed, bad)
        keys = [f"{name}/{row}" for row in range(rows)]
        return write_store(tmp_path / name, features, bad=bad, keys=keys, **options)

    return make


def joined(features, *layers):
    return np.concatenate([features[layer].reshape(len(features[layer]), -1) for layer in layers], 1).astype(np.float64)


def close(found, expected, rows=OK):
    found = np.asarray(found)
    np.testing.assert_allclose(found[rows], expected[rows], rtol=1e-5, atol=1e-6)
    assert np.isnan(found[[row for row in range(len(found)) if row not in rows]]).all()


def content(root):
    return {name: (root / name).read_bytes() for name in LocalPlace(root).walk()}


def whole(store):
    assert list(examine(place_at(store))) == []


# --- values -------------------------------------------------------------------------------------------------------


def test_derived_layers_are_those_of_scikit_learn(make):
    path, features = make(), features_of()
    recipes = ["all=C5,tokens,pooled:pca=5", "pooled:center:l2", "C5[avg],pooled", "w=C5:pca=0.7,whiten:fit=15,seed=2"]
    store = featreg.derive(path, recipes)
    rows = joined(features, "C5", "tokens", "pooled")
    reference = PCA(5, svd_solver="full").fit(rows[OK])
    close(store["all"], reference.transform(np.nan_to_num(rows)))
    pooled = features["pooled"].astype(np.float64)
    close(store["pooled:center:l2"], normalize(np.nan_to_num(pooled - pooled[OK].mean(axis=0))))
    close(
        store["C5[avg],pooled"], np.concatenate([features["C5"].astype(np.float64).mean(axis=(2, 3)), pooled], axis=1)
    )
    chosen = [row for row in sample_rows(ROWS, 15, 2) if row not in BAD]
    white = PCA(0.7, svd_solver="full", whiten=True).fit(joined(features, "C5")[chosen])
    close(store["w"], white.transform(np.nan_to_num(joined(features, "C5"))))
    assert store.layers == ("C5", "tokens", "pooled", "all", "pooled:center:l2", "C5[avg],pooled", "w")
    plain = zarr.open_group(str(path), mode="r")
    assert plain["all"].shape == (ROWS, 5)
    assert store.errors == {f"s/{row}": f"ImageError: row {row}" for row in BAD}
    whole(path)


def test_what_was_learnt_can_be_used_elsewhere(make):
    store = featreg.derive(make(), "all=C5,pooled:pca=3")
    fitted, reference = store.fitted("all"), PCA(3, svd_solver="full").fit(joined(features_of(), "C5", "pooled")[OK])
    np.testing.assert_allclose(fitted.steps[0].components, reference.components_, atol=1e-10)
    np.testing.assert_allclose(fitted.steps[0].mean, reference.mean_, atol=1e-10)
    more = features_of(5, 9, ())
    np.testing.assert_allclose(fitted.apply(more), reference.transform(joined(more, "C5", "pooled")), atol=1e-9)


def test_a_derived_layer_is_derived_from_again(make):
    path, features = make(), features_of()
    featreg.derive(path, "a=pooled:center")
    store = featreg.derive(path, ["b=a:l2", "c=a,C5:pca=2"])
    pooled = features["pooled"].astype(np.float64)
    centred = pooled - pooled[OK].mean(axis=0)
    close(store["b"], normalize(np.nan_to_num(centred)))
    rows = np.concatenate([centred, joined(features, "C5")], axis=1)
    close(store["c"], PCA(2, svd_solver="full").fit(rows[OK]).transform(np.nan_to_num(rows)))


@settings(max_examples=8)
@given(
    st.integers(1, 19),
    st.sampled_from([1, 2, 4, 8]),
    st.sets(st.integers(0, 18)),
    st.sampled_from([1, 4, 16, 256]),
    st.data(),
)
def test_no_row_is_lost_or_moved_whatever_the_tasks(write_store, tmp_path_factory, rows, shard, bad, most, data):
    folder = tmp_path_factory.mktemp("derive")
    failed = sorted(row for row in bad if row < rows)
    good = [row for row in range(rows) if row not in failed]
    path = write_store(folder / "s", features := features_of(rows, rows, failed), bad=failed, shard=shard)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "MAX_TASK_ROWS", most)
        patch.setattr(blocks, "BLOCK_BYTES", data.draw(st.integers(1, 9)) * 8 * 45)
        store = featreg.derive(path, ["C5:avg", "n=tokens,pooled:l2"])
    close(store["C5:avg"], features["C5"].astype(np.float64).mean(axis=(2, 3)), good)
    close(store["n"], normalize(np.nan_to_num(joined(features, "tokens", "pooled"))), good)
    assert np.flatnonzero(store.status == "error").tolist() == failed
    whole(path)


def test_types_are_chosen_by_layer_and_what_overflows_is_an_error_of_its_row(make):
    features = features_of()
    features["pooled"][[3, 8]] = 1e6
    features["C5"][11, 0] = np.inf
    path = make(features=features)
    store = featreg.derive(path, ["half=pooled,tokens", "full=C5:avg"], store_dtype={"half": "float16"})
    assert (store["half"].dtype, store["full"].dtype) == (np.float16, np.float32)
    assert all("exceed the range of float16" in store.errors[f"s/{row}"] for row in (3, 8))
    assert "cannot be derived" in store.errors["s/11"]
    failed = {3, 8, 11, *BAD}
    assert set(np.flatnonzero(store.status == "error")) == failed
    assert set(np.flatnonzero(np.isnan(np.asarray(store["full"])).any(axis=1))) == failed
    assert np.isfinite(np.asarray(store["pooled"])[[3, 8, 11]]).all()  # the layers that were there stay as they are


# --- refusing -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_derived_changes_nothing(make, tmp_path):
    path = make()
    before = content(path)
    for recipes, error, message in (
        ("C9:l2", LayerError, "which the store has not"),
        ("pooled=C5:l2", LayerError, "has the layers"),
        (["a=C5:l2", "a=pooled:l2"], LayerError, "more than one layer of the name a"),
        ([], SpecError, "nothing to derive"),
        ("pooled:pca=7", RequestError, "at most 6"),
        ("C5,tokens:pca=22", RequestError, "cannot be fitted"),
        ("pooled:project=7", RequestError, "7"),
        ("C5:nope", SpecError, "no step"),
    ):
        with pytest.raises(error, match=message):
            featreg.derive(path, recipes)
    with pytest.raises(SpecError, match="no such argument: batch_size"):
        featreg.derive(path, "pooled:l2", batch_size=3)
    assert content(path) == before
    with pytest.raises(StoreError, match=r"rows of .* are pending"):
        featreg.derive(make("t", stop=8), "pooled:l2")
    with pytest.raises(StoreError, match="no store"):
        featreg.derive(tmp_path / "nothing", "pooled:l2")


# --- going on -----------------------------------------------------------------------------------------------------

RECIPES = ["all=C5,tokens,pooled:pca=5", "unit=pooled:l2"]


def stopped(path, monkeypatch, after=2):
    """A run that is stopped once it has committed some tasks."""
    commit, left = StoreWriter.commit, [after]

    def stop(self, *arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return commit(self, *arguments)

    monkeypatch.setattr(StoreWriter, "commit", stop)
    with pytest.raises(KeyboardInterrupt):
        featreg.derive(path, RECIPES)
    monkeypatch.setattr(StoreWriter, "commit", commit)


@pytest.mark.parametrize("again", [lambda path: featreg.derive(path, RECIPES), work], ids=["derive", "worker"])
def test_a_run_that_stopped_is_gone_on_with_without_model_or_source(make, monkeypatch, again, tmp_path):
    featreg.derive(make("a"), RECIPES)
    path = make("b")
    stopped(path, monkeypatch)
    monkeypatch.setattr(run, "create_extractor", None)
    monkeypatch.setattr(deriving, "write_fits", None)  # nothing is learnt again
    store = again(path)
    assert (store.summary.done_before, store.summary.done) == (ROWS + 8, ROWS - 8)
    expected = content(tmp_path / "a")
    assert {name for name in content(path) if "index" not in name} == {name for name in expected if "index" not in name}
    for name, data in content(path).items():
        if name.startswith(("all/", "unit/", "fits/")):
            assert data == expected[name]
    before = content(path)
    featreg.derive(path, RECIPES)
    assert content(path) == before


def test_two_runs_at_once_plan_one_pass(make, monkeypatch, tmp_path):
    featreg.derive(make("a"), RECIPES)
    path, barrier, write = make("b"), threading.Barrier(2, timeout=60), deriving.write_fits

    def together(*arguments):
        write(*arguments)
        barrier.wait()

    monkeypatch.setattr(deriving, "write_fits", together)
    errors = []

    def run_one():
        try:
            featreg.derive(path, RECIPES)
        except Exception as error:  # noqa: BLE001  (a thread cannot raise it here)
            errors.append(error)

    threads = [threading.Thread(target=run_one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    whole(path)
    expected = content(tmp_path / "a")
    assert all(data == expected[name] for name, data in content(path).items() if name.startswith(("all/", "fits/")))


def test_another_recipe_of_the_same_name_is_refused(make):
    path = make()
    featreg.derive(path, RECIPES)
    with pytest.raises(LayerError, match="has the layers"):
        featreg.derive(path, "all=C5,tokens,pooled:pca=4")


# --- fits of other stores, merging --------------------------------------------------------------------------------


def test_a_fit_serves_another_store_with_the_values_of_the_first(make):
    first, second = make("a"), make("b", seed=5, bad=())
    featreg.derive(first, RECIPES)
    store = featreg.derive(second, RECIPES, fit_from=first)
    reference = PCA(5, svd_solver="full").fit(joined(features_of(), "C5", "tokens", "pooled")[OK])
    close(
        store["all"], reference.transform(joined(features_of(ROWS, 5, ()), "C5", "tokens", "pooled")), list(range(ROWS))
    )
    assert store.manifest.fits == featreg.open_store(first).manifest.fits
    same = featreg.derive(make("c"), RECIPES, fit_from=first)
    assert np.array_equal(np.asarray(same["all"]), np.asarray(featreg.open_store(first)["all"]), equal_nan=True)
    with pytest.raises(StoreMismatchError, match="has no fit of"):
        featreg.derive(make("d"), "pooled:center", fit_from=first)


def test_stores_with_the_same_fit_are_merged(make, tmp_path):
    first, second = make("a"), make("b", seed=5, bad=(2,))
    featreg.derive(first, RECIPES)
    featreg.derive(second, RECIPES, fit_from=first)
    store = merge_stores(tmp_path / "m", [first, second])
    expected = [np.asarray(featreg.open_store(path)["all"]) for path in (first, second)]
    assert np.array_equal(np.asarray(store["all"]), np.concatenate(expected), equal_nan=True)
    assert store.manifest.fits == featreg.open_store(first).manifest.fits
    whole(tmp_path / "m")
    third = make("c", seed=6)
    featreg.derive(third, RECIPES)
    with pytest.raises(StoreMismatchError, match=r"layers.all.fit.sha256: '[0-9a-f]{64}' there, '[0-9a-f]{64}' here"):
        merge_stores(tmp_path / "n", [first, third])


# --- verifying and repairing --------------------------------------------------------------------------------------


def test_a_lost_fit_is_learnt_again_and_must_come_out_the_same(make):
    path = make()
    store = featreg.derive(path, ["all=C5,tokens,pooled:pca=5", "mean=pooled:center:fit=9"])
    before = content(path)
    for fit in store.manifest.fits:
        for name in (fit.name, fit.copy):
            (path / name).unlink()
    assert len(repair(path).restored) == 4
    assert content(path) == before


def test_a_fit_from_elsewhere_cannot_be_learnt_again(make):
    first, second = make("a"), make("b", seed=5)
    featreg.derive(first, RECIPES)
    fit = featreg.derive(second, RECIPES, fit_from=first).manifest.fits[0]
    for name in (fit.name, fit.copy):
        (second / name).write_bytes(b"")
    with pytest.raises(StoreDamagedError, match=rf"{fit.name}' cannot be mended"):
        repair(second)
    (second / fit.name).write_bytes((first / fit.name).read_bytes())
    repair(second)
    whole(second)


def test_a_stray_fit_is_named_and_removed(make):
    path = make()
    featreg.derive(path, RECIPES)
    stray = path / "fits" / f"{0:064x}.npz"
    stray.write_bytes(b"x")
    assert [(finding.kind, finding.name) for finding in examine(place_at(path))] == [("stray", f"fits/{stray.name}")]
    assert repair(path).removed == [f"fits/{stray.name}"]
    whole(path)


def test_rows_that_are_computed_again_are_derived_again(make, monkeypatch):
    path = make()
    featreg.derive(path, "a=pooled:center")
    featreg.derive(path, "b=a:l2")
    (path / "pooled" / "c" / "1" / "0").write_bytes(b"damaged")  # rows 4 to 7
    done = repair(path)
    assert [(task.pass_number, task.start, task.stop) for task in done.replanned] == [(2, 4, 8), (1, 4, 8), (0, 4, 8)]
    writer = StoreWriter(place_at(path))
    features = {key: np.full((4, *shape), 7, np.float32) for key, shape in SHAPES.items()}
    writer.commit(writer.manifest.passes[0].task(1), features, {})
    monkeypatch.setattr(run, "create_extractor", None)
    store = work(path)
    mean = features_of()["pooled"].astype(np.float64)[OK].mean(axis=0)
    np.testing.assert_allclose(np.asarray(store["a"])[4:8], np.tile(7 - mean, (4, 1)), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(store["b"])[4:8], normalize(np.tile(7 - mean, (4, 1))), rtol=1e-5)
    assert list(store.errors) == ["s/17"]
    whole(path)


@pytest.mark.parametrize("placed", [True, False])
def test_rows_that_others_do_meanwhile_are_derived_from_what_they_did(make, monkeypatch, placed):
    path = make()
    featreg.derive(path, "b=pooled:l2")
    for shard in (1, 2):
        (path / "pooled" / "c" / str(shard) / "0").unlink()
    repair(path)
    writer = StoreWriter(place_at(path))
    first, second = writer.manifest.passes
    features = {key: np.full((4, *shape), 7, np.float32) for key, shape in SHAPES.items()}
    writer.commit(first.task(1), features, {})
    derived = derive_tasks(writer, second, [second.task(1), second.task(2)], Options(batch_size=4, threads=1))
    next(derived)  # the rows of the other task are not there yet
    with monkeypatch.context() as patch:
        if not placed:  # whoever did them is killed behind the receipt
            patch.setattr(LocalPlace, "move", interrupted)
        with suppress(KeyboardInterrupt):
            writer.commit(first.task(2), features, {})
    next(derived)
    found = featreg.open_store(path)
    np.testing.assert_allclose(found["b"][4:12], normalize(np.full((8, 6), 7.0)), rtol=1e-6)


def interrupted(*_):
    raise KeyboardInterrupt


def test_retrying_what_failed_retries_what_is_derived_from_it(make):
    path = make()
    featreg.derive(path, "a=pooled:center")
    done = repair(path, retry_failed=True)
    assert {(task.pass_number, task.start) for task in done.replanned} == {(0, 4), (0, 16), (1, 4), (1, 16)}


# --- the command line ---------------------------------------------------------------------------------------------


def test_the_command_derives_and_says_what_it_left(make):
    path = make()
    asked = ["derive", str(path), "small=C5:pca=2", "pooled:l2", "--store-dtype", "float16"]
    result = CliRunner().invoke(cli, [*asked, "--json"])
    assert result.exit_code == 0, result.output
    told = {layer["key"]: (layer["shape"], layer["dtype"]) for layer in json.loads(result.stdout)["layers"]}
    assert (told["small"], told["pooled:l2"]) == (([ROWS, 2], "float16"), ([ROWS, 6], "float16"))
    assert "nothing was left to do" in CliRunner().invoke(cli, asked).output
    state = json.loads(CliRunner().invoke(cli, ["status", str(path), "--json"]).stdout)
    assert (state["rows"], state["done"], state["finished"]) == (2 * ROWS, 2 * ROWS, True)
    wrong = CliRunner().invoke(cli, ["derive", str(path), "C9:l2"])
    assert wrong.exit_code == 2
    assert "which the store has not" in wrong.output
