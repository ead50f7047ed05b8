"""Derived layers while extracting: values, fits, failed rows, resuming, races, more layers and more rows."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

import featreg
from featreg.derived import sample_rows
from featreg.derived.projection import projection_block
from featreg.engine import add_layers, append, repair, work
from featreg.engine.planning import learning, plan
from featreg.engine.planning.outputs import Outputs
from featreg.errors import (
    ImageError,
    LayerError,
    RequestError,
    SpecError,
    StoreDamagedError,
    StoreMismatchError,
)
from featreg.sources import FolderSource
from featreg.steps import RandomProjection
from featreg.stores.check import examine
from featreg.stores.places.opening import place_at
from featreg.stores.places.place import LocalPlace
from featreg.stores.writer import StoreWriter

MODEL = "numpy:tinynet"
COUNT, BAD = 13, 2
OK = [row for row in range(COUNT) if row != BAD]
ENSEMBLE = "e=C2[adaptive_avgpool=2,2],C3[avg],pooled:pca=4"


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    """Tasks of four rows, and no time in the documents."""
    monkeypatch.setattr(plan, "MAX_TASK_ROWS", 4)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)).save(path)


def draw(folder: Path) -> Path:
    for number in range(COUNT):
        picture(folder / f"{number:02}.png", number)
    (folder / f"{BAD:02}.png").write_bytes(b"bad")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def images(tmp_path):
    """The same, for tests that change them."""
    return draw(tmp_path / "images")


@pytest.fixture(scope="module")
def raw(tmp_path_factory, photos):
    """What a run without recipes stores: (rows, ...) in float64 by layer."""
    store = featreg.extract(photos, tmp_path_factory.mktemp("raw") / "s", MODEL, ["C2", "C3", "pooled"])
    return {layer: np.asarray(store[layer], np.float64) for layer in store.layers}


def quarters(maps):
    """The four quarters of maps with even sides, averaged: (rows, channels, 2, 2)."""
    rows, channels, height, width = maps.shape
    return maps.reshape(rows, channels, 2, height // 2, 2, width // 2).mean(axis=(3, 5))


def ensemble(raw):
    """The inputs of ENSEMBLE, pooled, flattened and side by side."""
    return np.concatenate(
        [quarters(raw["C2"]).reshape(len(raw["C2"]), -1), raw["C3"].mean(axis=(2, 3)), raw["pooled"]], axis=1
    )


def components(rows, count, fitted):
    return PCA(count, svd_solver="full").fit(rows[fitted]).transform(rows)


def close(found, expected, rows=OK):
    """Equal to the rounding of float32 where there is a row; NaN where it failed."""
    found = np.asarray(found)
    np.testing.assert_allclose(found[rows], expected[rows], rtol=1e-5, atol=1e-6)
    assert np.isnan(found[[row for row in range(len(found)) if row not in rows]]).all()


def content(root):
    return {name: (root / name).read_bytes() for name in LocalPlace(root).walk()}


def whole(store):
    assert list(examine(place_at(store))) == []


# --- values -------------------------------------------------------------------------------------------------------


def test_derived_layers_are_those_of_scikit_learn_on_a_plain_extraction(tmp_path, photos, raw):
    recipes = [ENSEMBLE, "unit=C3:l2", "mean=pooled:center", "C2:avg", "small=C3,pooled:project=5,seed=3"]
    store = featreg.extract(photos, tmp_path / "s", MODEL, "pooled", derive=recipes, batch_size=3)
    joined = np.concatenate([raw["C3"].reshape(COUNT, -1), raw["pooled"]], axis=1)
    matrix = projection_block(RandomProjection(5, seed=3), 0, joined.shape[1], joined.shape[1])
    flat = raw["C3"].reshape(COUNT, -1)
    assert store.layers == ("pooled", "e", "unit", "mean", "C2:avg", "small")
    close(store["pooled"], raw["pooled"])
    close(store["e"], components(np.nan_to_num(ensemble(raw)), 4, OK))
    close(store["unit"], normalize(np.nan_to_num(flat)))
    close(store["mean"], raw["pooled"] - raw["pooled"][OK].mean(axis=0))
    close(store["C2:avg"], raw["C2"].mean(axis=(2, 3)))
    close(store["small"], joined @ matrix)
    assert list(store.errors) == ["02.png"]
    whole(tmp_path / "s")
    assert not {path.name for path in (tmp_path / "s").iterdir()} & {"C2", "C3"}  # nothing of the maps is stored


def test_the_same_is_derived_from_a_finished_store(tmp_path, photos):
    recipes = [ENSEMBLE, "a=C3[avg],pooled:l2:center:pca=3:fit=8,seed=2", "b=C2:project=6", "c=pooled:pca=0.9,whiten"]
    during = featreg.extract(photos, tmp_path / "s", MODEL, derive=recipes, batch_size=4)
    featreg.extract(photos, tmp_path / "t", MODEL, ["C2", "C3", "pooled"], batch_size=3)
    after = featreg.derive(tmp_path / "t", recipes)
    for layer in during.layers:
        assert after[layer].shape == during[layer].shape
        close(after[layer], np.asarray(during[layer]))
    assert after.errors == during.errors


def test_a_fit_on_a_sample_takes_the_rows_of_its_seed_alone(tmp_path, photos, raw):
    recipes = ["a=pooled:pca=3:fit=7,seed=5", "b=C3[avg]:l2:center:pca=2:fit=9", "c=pooled:pca=0.8"]
    store = featreg.extract(photos, tmp_path / "s", MODEL, derive=recipes, batch_size=4)
    chosen = [row for row in sample_rows(COUNT, 7, 5) if row != BAD]
    close(store["a"], components(np.nan_to_num(raw["pooled"]), 3, chosen))
    unit = normalize(np.nan_to_num(raw["C3"].mean(axis=(2, 3))))
    chosen = [row for row in sample_rows(COUNT, 9, 0) if row != BAD]
    close(store["b"], components(unit, 2, chosen))
    everything = PCA(0.8, svd_solver="full").fit(raw["pooled"][OK])
    assert store["c"].shape == (COUNT, everything.n_components_)
    close(store["c"], everything.transform(np.nan_to_num(raw["pooled"])))
    assert store.fitted("a").rows == len([row for row in sample_rows(COUNT, 7, 5) if row != BAD])
    with pytest.raises(LayerError, match="has learnt nothing"):
        add_layers(tmp_path / "s", derive="pooled:l2").fitted("pooled:l2")


def test_the_samples_are_gone_through_as_often_as_the_deepest_recipe_needs(tmp_path, photos, monkeypatch):
    seen = []
    read = FolderSource.read
    monkeypatch.setattr(FolderSource, "read", lambda self, sample: seen.append(sample.key) or read(self, sample))
    recipes = ["a=pooled:pca=3", "b=C3[avg]:center:l2:pca=2", "c=pooled:center:fit=5", "d=pooled:l2"]
    featreg.extract(photos, tmp_path / "s", MODEL, derive=recipes, num_workers=1)
    assert len(seen) == (2 + 1) * COUNT  # two steps of b learn, one after the other, and then the rows are stored


def test_a_derived_layer_is_a_vector_like_any_other(tmp_path, photos):
    store = featreg.extract(
        photos, tmp_path / "s", MODEL, "C3", derive=["e=pooled:pca=4"], store_dtype={"e": "float16"}
    )
    info = store.info["e"]
    assert (info.name, info.kind, info.channels, info.reduction, info.level) == ("e", "vector", 4, None, None)
    assert (store["e"].dtype, store["C3"].dtype) == (np.float16, np.float32)
    assert store.where(status="ok")["e"].shape == (COUNT - 1, 4)
    assert store.sample(5, layer="e").features["e"].shape == (5, 4)
    featreg.export_store(store, tmp_path / "out", "npy", layers=["e"])
    assert np.array_equal(np.load(tmp_path / "out" / "e.npy"), np.asarray(store["e"]), equal_nan=True)


def test_batches_and_fits_do_not_depend_on_who_computes(tmp_path, photos):
    for name, workers in (("a", 1), ("b", 4)):
        featreg.extract(photos, tmp_path / name, MODEL, "pooled", derive=ENSEMBLE, batch_size=3, num_workers=workers)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_sample_that_fails_can_stop_the_fit(tmp_path, photos):
    with pytest.raises(ImageError) as caught:
        featreg.extract(photos, tmp_path / "s", MODEL, derive=ENSEMBLE, on_error="raise")
    assert caught.value.__notes__ == [f"sample '02.png', {photos / '02.png'}", "row 2"]
    assert list(tmp_path.iterdir()) == []


def test_too_few_rows_to_learn_from_leave_nothing_behind(tmp_path, photos):
    with pytest.raises(RequestError, match="cannot be fitted"):
        featreg.extract(photos, tmp_path / "s", MODEL, derive="pooled:pca=40")
    with pytest.raises(RequestError, match="at most 48"):
        featreg.extract(photos, tmp_path / "s", MODEL, derive="pooled:pca=4000")
    assert list(tmp_path.iterdir()) == []


# --- what is said, and what is not --------------------------------------------------------------------------------


def test_nothing_is_derived_from_what_is_not_there(tmp_path, photos):
    with pytest.raises(LayerError, match="C9"):
        featreg.extract(photos, tmp_path / "s", MODEL, derive="C9:l2")
    with pytest.raises(LayerError, match="more than one layer of the name e"):
        featreg.extract(photos, tmp_path / "s", MODEL, derive=["e=C3:l2", "e=C2:l2"])
    with pytest.raises(SpecError, match="3 is no recipe"):
        featreg.extract(photos, tmp_path / "s", MODEL, derive=[3])
    with pytest.raises(LayerError, match="a type for 'C2', which is not stored"):
        featreg.extract(photos, tmp_path / "s", MODEL, "C3", derive="C2:l2", store_dtype={"C2": "float16"})
    with pytest.raises(SpecError, match="cannot be stored as 'bfloat16'"):
        featreg.extract(photos, tmp_path / "s", MODEL, "C3", store_dtype="bfloat16")
    assert list(tmp_path.iterdir()) == []


def test_an_open_extractor_gives_what_it_gives(tmp_path, photos, raw):
    with featreg.create_extractor(MODEL, ["C3", "pooled"]) as extractor:
        with pytest.raises(LayerError, match="the open extractor does not give"):
            featreg.extract(photos, tmp_path / "s", extractor, derive="C2:l2")
        kept = featreg.extract(photos, tmp_path / "s", extractor, derive="C3:avg")
        alone = featreg.extract(photos, tmp_path / "t", extractor, [], derive="C3:avg")
    assert (kept.layers, alone.layers) == (("C3", "pooled", "C3:avg"), ("C3:avg",))
    close(alone["C3:avg"], raw["C3"].mean(axis=(2, 3)))
    with (
        featreg.create_extractor(MODEL, "C3", flatten=True) as flat,
        pytest.raises(SpecError, match="has flattened"),
    ):
        featreg.extract(photos, tmp_path / "u", flat, derive="C3:avg")


def test_flattened_layers_can_be_pooled_all_the_same(tmp_path, photos, raw):
    store = featreg.extract(photos, tmp_path / "s", MODEL, ["C2", "C3"], flatten=["C3"], derive="C3:avg")
    assert (store["C2"].shape, store["C3"].shape) == (raw["C2"].shape, (COUNT, raw["C3"][0].size))
    assert (store.info["C3"].kind, store.info["C3"].channels) == ("vector", raw["C3"][0].size)
    close(store["C3"], raw["C3"].reshape(COUNT, -1))
    close(store["C3:avg"], raw["C3"].mean(axis=(2, 3)))
    assert featreg.extract(photos, tmp_path / "s", MODEL, ["C2", "C3"], flatten=["C3"], derive="C3:avg").complete
    with pytest.raises(StoreMismatchError, match=r"outputs.flatten: \['C3'\] in the store, None now"):
        featreg.extract(photos, tmp_path / "s", MODEL, ["C2", "C3"], derive="C3:avg")


@pytest.mark.parametrize("kept", [None, ("C3",), ()])
def test_what_is_kept_is_part_of_the_fingerprint(kept):
    request = featreg.ExtractionRequest(MODEL, ("C3", "C2"))
    documents = [
        Outputs.of(request, derive, dtype, kept=kept).document
        for derive, dtype in (("C3:l2", None), ("C3:l2", "float16"), ("C3:l2", {"C3:l2": "float16"}), ("C2:l2", None))
    ]
    assert len({repr(document) for document in documents}) == (3 if kept == () else 4)
    assert Outputs.of(request, (), "float32").document == {}


def never(recipes, *_):
    """In place of a fit: nothing is learnt again."""
    assert not recipes
    return {}


# --- going on -----------------------------------------------------------------------------------------------------


class Stops(FolderSource):
    """A folder whose reader stops the run once it has read so many samples."""

    def __init__(self, path, after):
        super().__init__(path)
        self.after = after

    def read(self, sample):
        self.after -= 1
        if self.after == 0:
            raise KeyboardInterrupt
        return super().read(sample)


def extracted(photos, store, **options):
    fields = {"derive": [ENSEMBLE, "small=pooled:project=3"], "batch_size": 3, "num_workers": 1}
    return featreg.extract(photos, store, MODEL, "pooled", **fields | options)


def test_a_run_that_stopped_in_the_fit_begins_again(tmp_path, photos):
    extracted(photos, tmp_path / "t")
    with pytest.raises(KeyboardInterrupt):
        extracted(Stops(photos, 9), tmp_path / "s")
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    extracted(photos, tmp_path / "s")
    assert content(tmp_path / "s") == content(tmp_path / "t")


def test_a_run_that_stopped_between_fit_and_pass_begins_again(tmp_path, photos, monkeypatch):
    extracted(photos, tmp_path / "t")
    write = learning.write_fits

    def stop(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(learning, "write_fits", stop)
    with pytest.raises(KeyboardInterrupt):
        extracted(photos, tmp_path / "s")
    monkeypatch.setattr(learning, "write_fits", write)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    extracted(photos, tmp_path / "s")
    assert content(tmp_path / "s") == content(tmp_path / "t")


def test_a_run_that_stopped_later_goes_on_with_its_fit(tmp_path, photos, monkeypatch):
    extracted(photos, tmp_path / "t")
    stops = Stops(photos, COUNT + 9)
    with pytest.raises(KeyboardInterrupt):
        extracted(stops, tmp_path / "s")
    assert 0 < featreg.open_store(tmp_path / "s").summary.pending < COUNT
    monkeypatch.setattr(learning, "fit_together", never)
    work(tmp_path / "s", source=photos)
    found, expected = content(tmp_path / "s"), content(tmp_path / "t")
    assert set(found) - {name for name in found if "index" in name} == {
        name for name in expected if "index" not in name
    }
    for name, data in found.items():
        if name.startswith(("e/", "small/", "pooled/", "fits/")):
            assert data == expected[name]


def test_a_store_at_a_url_survives_a_fit_that_was_stopped(tmp_path, photos):
    url = f"memory://derived/{tmp_path.name}/s"
    with pytest.raises(KeyboardInterrupt):
        extracted(Stops(photos, 9), url)
    store = extracted(photos, url)
    assert np.array_equal(np.asarray(store["e"]), np.asarray(extracted(photos, tmp_path / "t")["e"]), equal_nan=True)
    featreg.derive(url, "half=e:center", store_dtype="float16")
    whole(url)


def test_how_far_the_learning_is_can_be_seen(tmp_path, photos, monkeypatch):
    told = []

    class Teller:
        def __init__(self, rows, there):
            told.append([rows])

        def tell(self, facts):
            told[-1].append(facts.done)

        close = tell

    monkeypatch.setattr(learning, "progress_teller", Teller)
    extracted(
        photos, tmp_path / "s", derive=["pooled:center:fit=7,seed=5", "C3[avg]:center:l2:pca=2:fit=6"], progress=True
    )
    assert [one[0] for one in told] == [len({*sample_rows(COUNT, 7, 5), *sample_rows(COUNT, 6, 0)}), 6]
    assert all(done == sorted(done) for _, *done in told)


def test_other_recipes_are_another_run_and_the_difference_is_named(tmp_path, photos):
    extracted(photos, tmp_path / "s")
    before = content(tmp_path / "s")
    with pytest.raises(StoreMismatchError, match=r"outputs.derive: \['e=.*now"):
        extracted(photos, tmp_path / "s", derive=[ENSEMBLE])
    with pytest.raises(StoreMismatchError, match=r"outputs.dtype.e: None in the store, 'float16' now"):
        extracted(photos, tmp_path / "s", store_dtype={"e": "float16"})
    with pytest.raises(StoreMismatchError, match=r"outputs.fits.e: None in the store, '[0-9a-f]{64}' now"):
        extracted(photos, tmp_path / "s", fit_from=tmp_path / "s")
    with pytest.raises(StoreMismatchError, match="outputs"):
        featreg.extract(photos, tmp_path / "s", MODEL, "pooled")
    assert content(tmp_path / "s") == before


def test_two_runs_that_fit_at_once_end_with_one_store(tmp_path, photos, monkeypatch):
    extracted(photos, tmp_path / "t")
    barrier = threading.Barrier(2, timeout=60)
    write = learning.write_fits

    def together(*arguments):
        write(*arguments)
        barrier.wait()

    monkeypatch.setattr(learning, "write_fits", together)
    stores, errors = [], []

    def run():
        try:
            stores.append(extracted(photos, tmp_path / "s"))
        except Exception as error:  # noqa: BLE001  (a thread cannot raise it here)
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [store.summary.pending for store in stores] == [0, 0]
    assert content(tmp_path / "s") == content(tmp_path / "t")


# --- another store's fits -----------------------------------------------------------------------------------------


def test_a_fit_serves_another_store(tmp_path, photos, raw):
    others = tmp_path / "others"
    for number in range(5):
        picture(others / f"{number}.png", 100 + number)
    first = extracted(photos, tmp_path / "s")
    there = extracted(others, tmp_path / "o", fit_from=tmp_path / "s")
    plain = featreg.extract(others, tmp_path / "p", MODEL, ["C2", "C3", "pooled"])
    reference = PCA(4, svd_solver="full").fit(ensemble(raw)[OK])
    rows = ensemble({layer: np.asarray(plain[layer], np.float64) for layer in plain.layers})
    close(there["e"], reference.transform(rows), list(range(5)))
    assert there.manifest.fits == first.manifest.fits
    renamed = extracted(
        others, tmp_path / "q", derive=ENSEMBLE.replace("e=", "mine=") + ":fit=9", fit_from=tmp_path / "s"
    )
    assert np.array_equal(np.asarray(renamed["mine"]), np.asarray(there["e"]))
    whole(tmp_path / "o")


def test_a_fit_that_does_not_suit_is_refused(tmp_path, photos):
    extracted(photos, tmp_path / "s")
    with pytest.raises(StoreMismatchError, match="has no fit of 'pooled:center'"):
        extracted(photos, tmp_path / "t", derive="pooled:center", fit_from=tmp_path / "s")
    with pytest.raises(SpecError, match="no recipe learns anything"):
        extracted(photos, tmp_path / "t", derive="pooled:l2", fit_from=tmp_path / "s")
    with pytest.raises(SpecError, match="no recipe learns anything"):
        featreg.extract(photos, tmp_path / "t", MODEL, "pooled", fit_from=tmp_path / "s")
    wider = featreg.extract(photos, tmp_path / "u", MODEL, derive="e=C3:pca=4")
    assert wider["e"].shape == (COUNT, 4)
    with pytest.raises(RequestError, match="was fitted on other shapes"):
        featreg.extract(photos, tmp_path / "t", MODEL, "C3", pool="avg", derive="e=C3:pca=4", fit_from=tmp_path / "u")


# --- more layers, more rows, repairing ----------------------------------------------------------------------------


def test_more_layers_may_be_derived_ones(tmp_path, photos, raw):
    featreg.extract(photos, tmp_path / "s", MODEL, "pooled", batch_size=3)
    store = add_layers(tmp_path / "s", derive=[ENSEMBLE])
    assert store.layers == ("pooled", "e")
    close(store["e"], components(np.nan_to_num(ensemble(raw)), 4, OK))
    store = add_layers(tmp_path / "s", "C2", derive="C2:avg", pool="max")
    assert store.layers == ("pooled", "e", "C2", "C2:avg")
    close(store["C2"], raw["C2"].max(axis=(2, 3)))
    before = content(tmp_path / "s")
    add_layers(tmp_path / "s", derive=[ENSEMBLE])
    assert content(tmp_path / "s") == before
    with pytest.raises(LayerError, match="has the layers"):
        add_layers(tmp_path / "s", derive="e=pooled:l2")
    whole(tmp_path / "s")


def test_new_rows_are_derived_with_the_fit_that_is_there(tmp_path, images, raw, monkeypatch):
    extracted(images, tmp_path / "s")
    featreg.derive(tmp_path / "s", "two=e:center")
    fits = featreg.open_store(tmp_path / "s").manifest.fits
    for number in range(3):
        picture(images / f"new-{number}.png", 50 + number)
    monkeypatch.setattr(learning, "fit_together", never)
    store = append(tmp_path / "s")
    plain = featreg.extract(images, tmp_path / "p", MODEL, ["C2", "C3", "pooled"])
    assert store.keys == plain.keys
    rows = ensemble({layer: np.nan_to_num(np.asarray(plain[layer], np.float64)) for layer in plain.layers})
    reference = PCA(4, svd_solver="full").fit(ensemble(raw)[OK])
    good = [row for row in range(COUNT + 3) if row != BAD]
    close(store["e"], reference.transform(rows), good)
    close(store["two"], np.asarray(store["e"], np.float64) - np.asarray(store["e"], np.float64)[OK].mean(axis=0), good)
    assert (len(fits), store.manifest.fits) == (2, fits)
    whole(tmp_path / "s")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_in_a_fit_is_named_and_mended(tmp_path, photos):
    fit = extracted(photos, tmp_path / "s").manifest.fits[0]
    before = content(tmp_path / "s")
    for names in ([fit.name], [fit.copy], [fit.name, fit.copy]):
        for name in names:
            flip(tmp_path / "s" / name)
        assert [(finding.kind, finding.name) for finding in examine(place_at(tmp_path / "s"))] == [
            ("damaged", name) for name in names
        ]
        done = repair(tmp_path / "s")
        assert (sorted(done.restored), done.replanned) == (sorted(names), [])
        assert content(tmp_path / "s") == before


def test_a_lost_fit_that_nothing_brings_back_is_named(tmp_path, images):
    fit = extracted(images, tmp_path / "s").manifest.fits[0]
    for name in (fit.name, fit.copy):
        (tmp_path / "s" / name).unlink()
    picture(images / "00.png", 1000)
    with pytest.raises(StoreDamagedError, match="cannot be mended, with which the layer 'e'"):
        repair(tmp_path / "s")
    assert featreg.open_store(tmp_path / "s")["e"].shape == (COUNT, 4)  # what is there can be read


def test_a_damaged_fit_is_never_used(tmp_path, photos):
    with pytest.raises(KeyboardInterrupt):
        extracted(Stops(photos, COUNT + 9), tmp_path / "s")
    fit = StoreWriter(place_at(tmp_path / "s")).manifest.fits[0]
    flip(tmp_path / "s" / fit.name)
    flip(tmp_path / "s" / fit.copy)
    with pytest.raises(StoreDamagedError, match="fits/"):
        work(tmp_path / "s", source=photos)
