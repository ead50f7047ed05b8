"""Runs that add to a store at the same time, resumed limits, and stores whose source has changed since."""

import numpy as np
import pytest
from PIL import Image

import featreg
from featreg.engine import add_layers, append, repair
from featreg.engine.planning import plan
from featreg.errors import ErrorRateError, ImageError, StoreMismatchError
from featreg.sources import FolderSource
from featreg.stores.check import examine
from featreg.stores.places.opening import place_at
from featreg.stores.writer import StoreWriter

MODEL = "numpy:tinynet"


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    """Tasks of four rows for the layer C1."""
    monkeypatch.setattr(plan, "TASK_BYTES", 4 * 8 * 32 * 32 * 4)


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)).save(path)


@pytest.fixture
def images(tmp_path):
    for number in range(6):
        picture(tmp_path / "images" / f"{number}.png", number)
    return tmp_path / "images"


def extract(images, store, layers="C1", **options):
    return featreg.extract(images, store, MODEL, layers, **options)


def before(monkeypatch, method, action):
    """Do something before the first call of a method of the writer."""
    original, waiting = getattr(StoreWriter, method), [action]

    def hooked(self, *arguments, **options):
        if waiting:
            waiting.pop()()
        return original(self, *arguments, **options)

    monkeypatch.setattr(StoreWriter, method, hooked)


def plan_a_layer(store):
    """As somebody who is killed right after."""
    writer = StoreWriter(place_at(store))
    with featreg.create_extractor(MODEL, "pooled") as extractor:
        from featreg.engine.planning.passes import make_plan
        from featreg.registry import default_registry

        planned = make_plan(writer.manifest.source, extractor, default_registry(), batch_size=2, taken=["C1"])
    writer.add_pass(planned, 0, writer.manifest.rows)


def test_a_layer_that_is_planned_as_a_run_finishes_is_done_too(tmp_path, images, monkeypatch):
    before(monkeypatch, "finalize_if_complete", lambda: plan_a_layer(tmp_path / "s"))
    store = extract(images, tmp_path / "s")
    assert (store.layers, store.complete) == (("C1", "pooled"), True)
    assert list(examine(place_at(tmp_path / "s"))) == []


def test_of_two_who_append_at_once_both_end_with_the_whole_store(tmp_path, images, monkeypatch):
    extract(images, tmp_path / "s")
    picture(images / "6.png", 6)

    def other():
        append(tmp_path / "s")
        picture(images / "7.png", 7)

    before(monkeypatch, "add_pass", other)
    store = append(tmp_path / "s")
    assert store.keys == [f"{number}.png" for number in range(8)]
    assert list(examine(place_at(tmp_path / "s"))) == []


def test_a_layer_is_added_though_rows_were_meanwhile(tmp_path, images, monkeypatch):
    extract(images, tmp_path / "s")
    picture(images / "6.png", 6)
    before(monkeypatch, "add_pass", lambda: append(tmp_path / "s"))
    store = add_layers(tmp_path / "s", "pooled")
    assert (store.layers, len(store), store.complete) == (("C1", "pooled"), 7, True)
    assert np.array_equal(np.asarray(store["pooled"]), np.asarray(extract(images, tmp_path / "o", "pooled")["pooled"]))


def test_of_two_who_add_a_layer_at_once_both_end_with_it(tmp_path, images, monkeypatch):
    extract(images, tmp_path / "s")
    before(monkeypatch, "add_pass", lambda: add_layers(tmp_path / "s", "pooled"))
    assert add_layers(tmp_path / "s", "pooled").layers == ("C1", "pooled")


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_new_rows_come_from_the_source_of_the_store(tmp_path, images, kind):
    extract(images, tmp_path / "s")
    picture(tmp_path / "others" / "6.png", 6)
    (tmp_path / "list.txt").write_text("images/0.png\n")
    source = (
        tmp_path / "others" if kind == "folder" else featreg.sources.open_source(tmp_path / "list.txt", kind="list")
    )
    files = sorted(place_at(tmp_path / "s").walk())
    with pytest.raises(StoreMismatchError, match=r"source\.uri") as caught:
        append(tmp_path / "s", source=source)
    assert "featreg merge" in caught.value.remedy
    assert sorted(place_at(tmp_path / "s").walk()) == files


class Bad(FolderSource):
    """A folder of which nothing can be read, and whose end stops the first run."""

    reads = 0

    def read(self, sample):
        self.reads += 1
        if sample.key == "5.png" and self.reads <= 6:
            raise KeyboardInterrupt
        raise ImageError("bad")


def test_failures_of_earlier_runs_count(tmp_path, images):
    source = Bad(images)
    with pytest.raises(KeyboardInterrupt):
        extract(source, tmp_path / "s", batch_size=2, num_workers=1)
    there = source.reads
    with pytest.raises(ErrorRateError, match="4 of 6 rows"):
        extract(source, tmp_path / "s", batch_size=2, num_workers=1, max_error_rate=0.5)
    assert source.reads == there


def test_every_part_of_an_index_comes_back_though_new_keys_sort_first(tmp_path):
    for name, seed in (("b/1.png", 1), ("d/2.png", 2)):
        picture(tmp_path / "images" / name, seed)
    extract(tmp_path / "images", tmp_path / "s")
    for name, seed in (("a/0.png", 0), ("b/0.png", 3)):
        picture(tmp_path / "images" / name, seed)
    store = append(tmp_path / "s")
    assert (store.classes, store.targets.tolist()) == (("b", "d", "a"), [0, 1, 2, 0])
    for part in sorted((tmp_path / "s" / "index").iterdir()):
        content = part.read_bytes()
        part.write_bytes(content[:-1])
        assert repair(tmp_path / "s").restored == [f"index/{part.name}"]
        assert part.read_bytes() == content
    assert list(examine(place_at(tmp_path / "s"))) == []
