"""Runs that go on: resuming, many workers, more layers, more rows, repairing."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import featreg
from featreg.engine import add_layers, append, local, repair, run, work
from featreg.engine.monitoring.heartbeat import Heartbeat
from featreg.engine.planning import plan
from featreg.engine.planning.difference import differences
from featreg.errors import (
    CapabilityError,
    ErrorRateError,
    ImageError,
    LayerError,
    SourceError,
    SpecError,
    StoreError,
    StoreExistsError,
    StoreFullError,
    StoreMismatchError,
)
from featreg.reference import backend as reference
from featreg.sources import FolderSource
from featreg.stores.check import examine
from featreg.stores.places.opening import place_at
from featreg.stores.places.place import LocalPlace
from featreg.stores.progress import progress, workers
from featreg.stores.writer import StoreWriter

PHOTOS = Path(__file__).parent.parent / "photos"
MODEL = "numpy:tinynet"
C1_BYTES = 8 * 32 * 32 * 4


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    """Tasks of four rows for the layer C1, and no time in the manifest."""
    monkeypatch.setattr(plan, "TASK_BYTES", 4 * C1_BYTES)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")


def picture(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def images(tmp_path):
    """Ten images, the third of which is none."""
    for number in range(10):
        picture(tmp_path / "images" / f"{number}.png", number)
    (tmp_path / "images" / "2.png").write_bytes(b"bad")
    return tmp_path / "images"


class Stops(FolderSource):
    """A folder whose reader stops the run at an image, the first time."""

    def __init__(self, path, key):
        super().__init__(path)
        self.key = key

    def read(self, sample):
        if sample.key == self.key:
            self.key = None
            raise KeyboardInterrupt
        return super().read(sample)


def interrupted(images, store, key="6.png", **options):
    with pytest.raises(KeyboardInterrupt):
        featreg.extract(Stops(images, key), store, MODEL, "C1", batch_size=2, **options)


def content(root):
    return {name: (root / name).read_bytes() for name in LocalPlace(root).walk()}


def whole(images, store, layers="C1", **options):
    featreg.extract(images, store, MODEL, layers, batch_size=2, **options)
    return content(store)


# --- the same command again ---------------------------------------------------------------------------------------


def test_a_run_that_stopped_is_gone_on_with(tmp_path, images):
    interrupted(images, tmp_path / "s")
    assert featreg.open_store(tmp_path / "s").status.tolist()[4:] == ["pending"] * 6
    store = featreg.extract(images, tmp_path / "s", MODEL, "C1", batch_size=2)
    summary = store.summary
    assert (summary.done_before, summary.done, summary.ok, summary.failed) == (4, 6, 9, 1)
    source = whole(images, tmp_path / "t")
    assert set(content(tmp_path / "s")) == set(source)
    assert np.array_equal(store["C1"][:], featreg.open_store(tmp_path / "t")["C1"][:], equal_nan=True)
    assert list(examine(place_at(tmp_path / "s"))) == []


def test_a_finished_store_is_left_as_it_is(tmp_path, images, monkeypatch):
    before = whole(images, tmp_path / "s")
    monkeypatch.setattr(reference, "convolve", None)  # nothing is computed
    store = featreg.extract(images, tmp_path / "s", MODEL, "C1")
    assert (store.summary.done_before, store.summary.done) == (10, 0)
    assert store.summary.images_per_second is None
    assert content(tmp_path / "s") == before


def test_what_differs_is_named_field_by_field(tmp_path, images):
    interrupted(images, tmp_path / "s")
    before = content(tmp_path / "s")
    with pytest.raises(StoreMismatchError) as caught:
        featreg.extract(images, tmp_path / "s", MODEL, ["C1", "C5"], pool="avg", limit=3)
    for line in (
        "request.layers: ['C1'] in the store, ['C1', 'C5'] now",
        "request.pool: None in the store, 'avg' now",
        "source.limit: None in the store, 3 now",
    ):
        assert line in caught.value.problem
    with pytest.raises(StoreMismatchError, match=r"source.uri: '.*images' in the store, '.*photos' now"):
        featreg.extract(PHOTOS, tmp_path / "s", MODEL, "C1")
    assert content(tmp_path / "s") == before


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 2)),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 2)),
)
def test_differences_are_those_of_the_items(old, new):
    found = differences({"x": old, "same": 1}, {"x": new, "same": 1})
    assert {name for name, _ in set(old.items()) ^ set(new.items())} == {path.removeprefix("x.") for path in found}
    assert all(found[f"x.{name}"] == (old.get(name), new.get(name)) for name in {*old, *new} if f"x.{name}" in found)


def test_the_number_of_a_device_makes_no_other_run(tmp_path, images, monkeypatch):
    whole(images, tmp_path / "s")
    name = local.fingerprint

    def elsewhere(extractor, registry, outputs=None):
        found = name(extractor, registry, outputs)
        return {**found, "request": {**found["request"], "device": "cpu:1"}}

    monkeypatch.setattr(local, "fingerprint", elsewhere)
    assert featreg.extract(images, tmp_path / "s", MODEL, "C1").complete


def test_overwriting_begins_anew(tmp_path, images):
    interrupted(images, tmp_path / "s")
    store = featreg.extract(images, tmp_path / "s", MODEL, "C1", overwrite=True)
    assert (store.summary.done_before, store.summary.done) == (0, 10)
    with pytest.raises(SpecError, match="cannot replace"):
        featreg.extract(images, tmp_path / "s", MODEL, "C1", overwrite=True, part=(0, 2))


def test_a_folder_that_is_no_store_is_not_gone_on_with(tmp_path, images):
    with pytest.raises(StoreExistsError):
        featreg.extract(images, images, MODEL, "C1")


def test_a_store_that_was_made_meanwhile_is_helped_with(tmp_path, images, monkeypatch):
    create = StoreWriter.create.__func__

    def slow(cls, path, *arguments, **options):
        monkeypatch.setattr(StoreWriter, "create", classmethod(create))
        whole(images, tmp_path / "s")
        return create(cls, path, *arguments, **options)

    monkeypatch.setattr(StoreWriter, "create", classmethod(slow))
    assert featreg.extract(images, tmp_path / "s", MODEL, "C1", batch_size=2).summary.done == 0


# --- several workers ----------------------------------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(1, 6), st.none() | st.integers(0, 9))
def test_every_order_has_every_task_once(count, parts, seed):
    firsts = Counter()
    for part in [None, *((number, parts) for number in range(parts))]:
        order = list(plan.task_order(count, part, seed))
        assert sorted(order) == list(range(count))
        if part is not None:
            firsts.update(order[: count // parts])
    assert all(times == 1 for times in firsts.values())  # each begins where no other does


@pytest.mark.parametrize("part", [(2, 2), (-1, 2), (0, 0), (0.5, 2), "0/2", (0,), (True, 2)])
def test_a_part_that_cannot_be(tmp_path, images, part):
    with pytest.raises(SpecError, match="no part"):
        featreg.extract(images, tmp_path / "s", MODEL, "C1", part=part)


def test_a_part_begins_with_its_own_and_then_helps(tmp_path, images):
    read = []

    class Watched(FolderSource):
        def read(self, sample):
            read.append(sample.key)
            return super().read(sample)

    store = featreg.extract(Watched(images), tmp_path / "s", MODEL, "C1", part=(2, 3), num_workers=1)
    assert set(read[:2]) == {"8.png", "9.png"}
    assert store.complete
    assert content(tmp_path / "s").keys() == whole(images, tmp_path / "t").keys()


def test_a_worker_skips_what_others_have_done_meanwhile(tmp_path, images):
    class Overtaken(FolderSource):
        """While its first image is read, another run completes the store."""

        busy = False

        def read(self, sample):
            if not self.busy:
                Overtaken.busy = True
                work(tmp_path / "s", source=images, batch_size=2)
            return super().read(sample)

    writer_rows = []
    store = featreg.extract(Overtaken(images), tmp_path / "s", MODEL, "C1", batch_size=2, num_workers=1)
    assert writer_rows == []
    assert store.summary.done == 0  # those of the other run are not its own
    assert content(tmp_path / "s").keys() == whole(images, tmp_path / "t").keys()
    assert list(examine(place_at(tmp_path / "s"))) == []


def test_a_worker_opens_model_and_source_from_the_store(tmp_path, images):
    interrupted(images, tmp_path / "s")
    with pytest.raises(CapabilityError, match="no source of featreg"):
        work(tmp_path / "s")
    first = whole(images, tmp_path / "t")
    for name in ("finished.json", "samples.parquet", "receipts/0000/00000001.json", "C1/c/1/0/0/0"):
        (tmp_path / "t" / name).unlink()
    store = work(tmp_path / "t", batch_size=2)
    assert (store.summary.done_before, store.summary.done) == (6, 4)
    assert content(tmp_path / "t") == first
    assert work(tmp_path / "t").summary.done == 0


def test_the_batches_are_those_that_the_store_was_begun_with(tmp_path, images):
    before = whole(images, tmp_path / "s")
    for again in (lambda: work(tmp_path / "s"), lambda: featreg.extract(images, tmp_path / "s", MODEL, "C1")):
        for name in ("finished.json", "samples.parquet", "receipts/0000/00000000.json", "C1/c/0/0/0/0"):
            (tmp_path / "s" / name).unlink()
        assert again().summary.done == 4
        assert content(tmp_path / "s") == before


def test_a_worker_of_another_version_refuses(tmp_path, images, monkeypatch):
    interrupted(images, tmp_path / "s")
    monkeypatch.setattr(run, "fingerprint", lambda *_: {"versions": {"numpy": "9.9"}})
    with pytest.raises(StoreMismatchError, match=r"versions.numpy: '.*' in the store, '9.9' now"):
        work(tmp_path / "s", source=images)


def test_a_worker_needs_a_store(tmp_path):
    with pytest.raises(StoreError, match="there is no store"):
        work(tmp_path / "s")


def test_at_a_url_it_is_the_same_store(tmp_path, images):
    url = f"memory://{tmp_path.name}/s"
    for part in ((0, 2), (1, 2)):
        store = featreg.extract(images, url, MODEL, "C1", batch_size=2, part=part)
    expected = whole(images, tmp_path / "s")
    place = place_at(url)
    assert {name: place.read(name) for name in place.walk()} == expected
    assert np.array_equal(store["C1"][3:5], featreg.open_store(tmp_path / "s")["C1"][3:5])
    assert store.uri == url
    with pytest.raises(CapabilityError, match="no folder"):
        store.path  # noqa: B018  (the property raises)
    with pytest.raises(StoreExistsError, match="taken"):
        featreg.extract(images, url, MODEL, "C1", overwrite=True)


# --- signs of life ------------------------------------------------------------------------------------------------


def test_progress_and_signs_of_life(tmp_path, images):
    interrupted(images, tmp_path / "s")
    place = place_at(tmp_path / "s")
    manifest = featreg.open_store(tmp_path / "s").manifest
    found = progress(place, manifest)
    assert (found.rows, found.done, found.failed, found.left, found.finished) == (10, 4, 1, 6, False)
    assert workers(place) == []
    heart = Heartbeat(place, (1, 3))
    heart.beat(5, 2)
    (place.root / "workers" / "torn.json").write_text('{"name"')
    [one] = workers(place)
    assert (one.part, one.pid, one.rows) == ("1/3", os.getpid(), 0)  # told of now and then only
    heart.stop()
    assert workers(place) == []
    featreg.extract(images, tmp_path / "s", MODEL, "C1")
    assert progress(place, manifest).finished
    assert not (tmp_path / "s" / "workers").exists()


# --- errors -------------------------------------------------------------------------------------------------------


def test_a_failing_row_may_stop_the_run(tmp_path, images):
    with pytest.raises(ImageError) as caught:
        featreg.extract(images, tmp_path / "s", MODEL, "C1", on_error="raise")
    assert caught.value.__notes__ == [f"sample '2.png', {images / '2.png'}", "row 2"]
    assert featreg.open_store(tmp_path / "s").summary.pending == 10
    picture(images / "2.png", 2)
    assert featreg.extract(images, tmp_path / "s", MODEL, "C1", on_error="raise").summary.ok == 10
    with pytest.raises(SpecError, match="on_error"):
        featreg.extract(images, tmp_path / "t", MODEL, "C1", on_error="ignore")


def test_too_many_failures_stop_the_run_and_lose_nothing(tmp_path, images):
    for number in (0, 1):
        (images / f"{number}.png").write_bytes(b"bad")
    with pytest.raises(ErrorRateError, match="3 of 10 rows"):
        featreg.extract(images, tmp_path / "s", MODEL, "C1", max_error_rate=0.2)
    assert featreg.open_store(tmp_path / "s").summary.failed == 3
    with pytest.raises(ErrorRateError):
        featreg.extract(images, tmp_path / "s", MODEL, "C1", max_error_rate=0.29)
    assert featreg.extract(images, tmp_path / "s", MODEL, "C1", max_error_rate=0.3).complete
    with pytest.raises(SpecError, match="max_error_rate"):
        featreg.extract(images, tmp_path / "t", MODEL, "C1", max_error_rate=2)


def test_a_disk_without_room_is_said_before_a_row_is_read(tmp_path, images, monkeypatch):
    monkeypatch.setattr(LocalPlace, "free_bytes", lambda _: 10 * C1_BYTES - 1)
    monkeypatch.setattr(FolderSource, "read", None)
    with pytest.raises(StoreFullError, match="has not the room") as caught:
        featreg.extract(images, tmp_path / "s", MODEL, "C1")
    assert f"{10 * C1_BYTES:,}" in caught.value.expected


# --- more layers --------------------------------------------------------------------------------------------------


def test_an_added_layer_is_computed_alone(tmp_path, images):
    before = whole(images, tmp_path / "s")
    store = add_layers(tmp_path / "s", ["C5", "pooled"], pool={"C5": "avg"})
    after = content(tmp_path / "s")
    kept = [name for name in before if name.startswith(("C1/", "receipts/0000", "index", "passes/0000", "manifest"))]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert store.layers == ("C1", "C5", "pooled")
    assert store["C5"].shape == (10, 48)
    alone = featreg.extract(images, tmp_path / "t", MODEL, ["C5", "pooled"], pool={"C5": "avg"}, batch_size=2)
    for layer in ("C5", "pooled"):
        assert np.array_equal(store[layer][:], alone[layer][:], equal_nan=True)
    assert store.errors == alone.errors
    assert store.summary.ok == 9
    assert list(examine(store.place)) == []
    with pytest.raises(LayerError, match="already"):
        add_layers(tmp_path / "s", ["C3", "pooled"])


def test_a_layer_of_other_weights_is_not_added(tmp_path, images, monkeypatch):
    before = whole(images, tmp_path / "s")
    monkeypatch.setattr(featreg.Extractor, "weights_identity", lambda _: "other")
    with pytest.raises(StoreMismatchError, match="weights: 'none: seeded random init' in the store, 'other' now"):
        add_layers(tmp_path / "s", "C5")
    assert content(tmp_path / "s") == before


def test_adding_a_layer_is_gone_on_with(tmp_path, images, monkeypatch):
    whole(images, tmp_path / "s")
    with pytest.raises(KeyboardInterrupt):
        add_layers(tmp_path / "s", "C5", source=Stops(images, "6.png"), batch_size=2)
    store = featreg.open_store(tmp_path / "s")
    assert store.summary.pending == 10 if store.manifest.passes[1].task_rows > 4 else 6
    assert work(tmp_path / "s", source=images).complete
    assert add_layers(tmp_path / "s", "C5").summary.done == 0
    assert featreg.extract(images, tmp_path / "s", MODEL, "C1").summary.done == 0
    assert list(examine(store.place)) == []


# --- more rows ----------------------------------------------------------------------------------------------------


def rows_of(store):
    return dict(zip(store.keys, store["C1"][:], strict=True))


def test_new_files_become_rows_at_the_end(tmp_path, images):
    first = featreg.extract(images, tmp_path / "s", MODEL, "C1", batch_size=1)
    values = rows_of(first)
    picture(images / "10.png", 10)
    picture(images / "0a.png", 11)
    (images / "5.png").unlink()
    store = append(tmp_path / "s", batch_size=1)
    assert store.keys == [*first.keys, "0a.png", "10.png"]
    for key, rows in rows_of(store).items():
        expected = values.get(key)
        if expected is None:
            with featreg.create_extractor(MODEL, "C1") as extractor, Image.open(images / key) as image:
                expected = extractor(np.asarray(image).transpose(2, 0, 1)[None])["C1"][0]
        assert np.array_equal(rows, expected, equal_nan=True)
    assert list(examine(store.place)) == []
    again = append(tmp_path / "s", batch_size=1)
    assert (again.summary.done, len(again), len(again.manifest.passes)) == (0, 12, 2)


def test_every_layer_gets_the_new_rows(tmp_path, images):
    whole(images, tmp_path / "s")
    add_layers(tmp_path / "s", "pooled")
    for number in (10, 11):
        picture(images / f"{number}.png", number)
        store = append(tmp_path / "s")
    assert len(store.manifest.passes) == 6
    assert store["C1"].shape[0] == store["pooled"].shape[0] == 12
    assert not np.isnan(store["C1"][3:]).any()
    assert not np.isnan(store["pooled"][3:]).any()
    assert list(examine(store.place)) == []


def test_an_append_that_was_killed_is_completed(tmp_path, images):
    whole(images, tmp_path / "s")
    add_layers(tmp_path / "s", "pooled")
    picture(images / "10.png", 10)
    with pytest.raises(KeyboardInterrupt):
        append(tmp_path / "s", source=Stops(images, "10.png"))
    store = featreg.open_store(tmp_path / "s")
    assert store.status.tolist()[10:] == ["pending"]
    assert work(tmp_path / "s", source=images).complete
    assert list(examine(store.place)) == []
    assert len(featreg.open_store(tmp_path / "s")) == 11


def test_classes_keep_their_numbers(tmp_path):
    for number, name in enumerate(("cat/0.png", "dog/1.png")):
        picture(tmp_path / "images" / name, number)
    featreg.extract(tmp_path / "images", tmp_path / "s", MODEL, "C1")
    for number, name in enumerate(("bee/0.png", "cat/2.png", "dog/2.png")):
        picture(tmp_path / "images" / name, 10 + number)
    store = append(tmp_path / "s")
    assert store.classes == ("cat", "dog", "bee")
    names = [store.classes[target] for target in store.targets]
    assert names == [key.split("/")[0] for key in store.keys]
    picture(tmp_path / "images" / "stray.png", 20)
    with pytest.raises(SourceError, match="have no class"):
        append(tmp_path / "s")
    assert featreg.open_store(tmp_path / "s").complete


# --- repairing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["flipped", "truncated", "gone"])
def test_whatever_is_damaged_is_named_and_mended(tmp_path, images, how):
    before = whole(images, tmp_path / "s")
    for name, data in before.items():
        path = tmp_path / "s" / name
        if how == "gone":
            path.unlink()
        else:
            middle = len(data) // 2
            flipped = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
            path.write_bytes(flipped if how == "flipped" else data[:middle])
        assert name in {finding.name for finding in examine(place_at(tmp_path / "s")) if finding.kind != "stray"}
        repair(tmp_path / "s")
        work(tmp_path / "s", batch_size=2)
        assert content(tmp_path / "s") == before, name


def test_failed_rows_are_tried_again(tmp_path, images):
    whole(images, tmp_path / "s")
    picture(images / "2.png", 2)
    done = repair(tmp_path / "s")
    assert done.replanned == []
    done = repair(tmp_path / "s", retry_failed=True)
    assert [(task.start, task.stop) for task in done.replanned] == [(0, 4)]
    assert featreg.open_store(tmp_path / "s").summary.pending == 4
    store = work(tmp_path / "s", batch_size=2)
    assert store.summary.ok == 10
    featreg.extract(images, tmp_path / "t", MODEL, "C1", batch_size=2)
    assert np.array_equal(store["C1"][:], featreg.open_store(tmp_path / "t")["C1"][:])
    assert list(examine(store.place)) == []


def test_a_shared_shard_is_mended_with_all_its_rows(tmp_path, images):
    whole(images, tmp_path / "s")
    picture(images / "10.png", 10)
    store = append(tmp_path / "s", batch_size=2)
    before = content(tmp_path / "s")
    (tmp_path / "s" / "C1/c/2/0/0/0").write_bytes(b"")
    done = repair(tmp_path / "s")
    assert [(task.pass_number, task.start, task.stop) for task in done.replanned] == [(1, 10, 11), (0, 8, 10)]
    work(tmp_path / "s", batch_size=2)
    assert content(tmp_path / "s") == before
    assert list(examine(store.place)) == []


def test_strays_are_named_and_those_in_our_folders_deleted(tmp_path, images):
    whole(images, tmp_path / "s")
    for name in ("C1/c/7/0/0/0", "C1/note.txt", "staged/x", "receipts/0000/00000009.json", "thesis.txt"):
        (tmp_path / "s" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "s" / name).write_bytes(b"x")
    found = {(finding.kind, finding.name) for finding in examine(place_at(tmp_path / "s"))}
    assert {name for kind, name in found if kind == "stray"} == {
        "C1/c/7/0/0/0", "C1/note.txt", "staged/x", "receipts/0000/00000009.json", "thesis.txt"
    }  # fmt: skip
    assert {kind for kind, _ in found} == {"stray"}
    repair(tmp_path / "s")
    assert [finding.name for finding in examine(place_at(tmp_path / "s"))] == ["thesis.txt"]


def test_an_index_comes_back_from_the_same_samples_only(tmp_path, images):
    whole(images, tmp_path / "s")
    [index] = (tmp_path / "s" / "index").iterdir()
    index.write_bytes(b"")
    picture(images / "0a.png", 5)
    with pytest.raises(StoreError, match="cannot be mended"):
        repair(tmp_path / "s")
    (images / "0a.png").unlink()
    assert repair(tmp_path / "s").restored == [f"index/{index.name}"]
    assert list(examine(place_at(tmp_path / "s"))) == []


def test_a_pass_that_is_lost_with_its_copy_cannot_be_mended(tmp_path, images):
    whole(images, tmp_path / "s")
    for name in ("passes/0000.json", "passes/0000.copy.json"):
        (tmp_path / "s" / name).write_bytes(b"{")
    found = {finding.name for finding in examine(place_at(tmp_path / "s"))}
    assert found == {"passes/0000.json", "passes/0000.copy.json"}
    with pytest.raises(StoreError, match="cannot be mended"):
        repair(tmp_path / "s")


def test_what_is_planned_while_a_worker_works_is_done_too(tmp_path, images, monkeypatch):
    interrupted(images, tmp_path / "s")
    commit = StoreWriter.commit

    def watched(self, task, *arguments):
        won = commit(self, task, *arguments)
        if task.number == 2:
            monkeypatch.setattr(StoreWriter, "commit", commit)
            with pytest.raises(KeyboardInterrupt):
                add_layers(tmp_path / "s", "pooled", source=Stops(images, "0.png"))
        return won

    monkeypatch.setattr(StoreWriter, "commit", watched)
    store = work(tmp_path / "s", source=images, part=(0, 1))
    assert store.layers == ("C1", "pooled")
    assert store.complete
    assert not np.isnan(store["pooled"][3:]).any()


def test_a_store_at_a_url_whose_making_was_interrupted_is_made(tmp_path, images):
    url = f"memory://{tmp_path.name}/s"
    place = place_at(url)
    whole(images, tmp_path / "s")
    place.write("manifest.json", (tmp_path / "s" / "manifest.json").read_bytes())
    with pytest.raises(StoreError, match="never planned"):
        featreg.open_store(url)
    assert featreg.extract(images, url, MODEL, "C1", batch_size=2).complete
    assert {name: place.read(name) for name in place.walk()} == content(tmp_path / "s")
