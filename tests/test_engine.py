import io
import subprocess
import sys
import threading
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import featreg
from featreg.engine import local
from featreg.engine.loop.loader import load_crops
from featreg.engine.loop.options import Options
from featreg.engine.loop.worker import run_tasks
from featreg.engine.planning import plan
from featreg.errors import (
    BackendError,
    CapabilityError,
    DeviceError,
    ImageError,
    LayerError,
    SourceError,
    SpecError,
    StoreError,
    StoreExistsError,
    StoreMismatchError,
)
from featreg.featureset import FeatureSet
from featreg.reference import backend as reference
from featreg.sources import Sample, Source
from featreg.spec import FeatureInfo, Preprocess
from featreg.stores.writer import Plan, StoreWriter

PHOTOS = Path(__file__).parent.parent / "photos"
LAYERS = ["C5", "pooled", 0, "stage3"]
C1_BYTES = 8 * 32 * 32 * 4


class Memory(Source):
    """Images held in memory; ``bad`` rows give other bytes, or raise."""

    kind, uri = "memory", "memory:"

    def __init__(self, count, bad=None):
        self.samples = tuple(Sample(f"{row}.png", f"memory:{row}") for row in range(count))
        self.bad = bad or {}

    def read(self, sample):
        row = int(sample.key.removesuffix(".png"))
        given = self.bad.get(row, picture(row))
        if isinstance(given, type | BaseException):
            raise given
        return given


def picture(row):
    pixels = np.random.default_rng(row).integers(0, 256, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def tasks_of_four(monkeypatch):
    """Tasks of four rows for the layer C1, so that small data sets have several."""
    monkeypatch.setattr(plan, "TASK_BYTES", 4 * C1_BYTES)


# --- rows and values ----------------------------------------------------------------------------------------------


def independent_crop(path):
    """tinynet's preprocessing by Pillow alone: the shorter side to 64, the longer one truncated, the middle cut out."""
    with Image.open(path) as photo:
        rgb = photo.convert("RGB")
    scale = 64 / min(rgb.size)
    width, height = (64 if side == min(rgb.size) else int(64 * side / min(rgb.size)) for side in rgb.size)
    assert max(width, height) - scale * max(rgb.size) <= 0
    small = rgb.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - 64) / 2), round((height - 64) / 2)
    return np.asarray(small.crop((left, top, left + 64, top + 64)))


def test_every_row_holds_the_features_of_its_own_image(tmp_path):
    store = featreg.extract(PHOTOS, tmp_path / "s", "numpy:tinynet", LAYERS, batch_size=5)
    assert store.layers == tuple(LAYERS)
    assert store.keys == sorted(str(path.relative_to(PHOTOS)) for path in PHOTOS.glob("*/*.[jp][pn]g"))
    with featreg.create_extractor("numpy:tinynet", LAYERS) as extractor:
        for row, key in enumerate(store.keys):
            image = independent_crop(PHOTOS / key).transpose(2, 0, 1)[None]
            for layer, expected in extractor(image).items():
                np.testing.assert_allclose(store[layer][row], expected[0], rtol=1e-5, atol=1e-6)
    assert len({store["C5"][row].tobytes() for row in range(12)}) == 12


def test_a_batch_is_stored_bit_for_bit(tmp_path):
    store = featreg.extract(PHOTOS, tmp_path / "s", "numpy:tinynet", LAYERS, batch_size=12)
    batch = np.stack([independent_crop(PHOTOS / key) for key in store.keys]).transpose(0, 3, 1, 2)
    with featreg.create_extractor("numpy:tinynet", LAYERS) as extractor:
        for layer, expected in extractor(np.ascontiguousarray(batch)).items():
            assert np.array_equal(store[layer][:], expected)


def test_targets_keys_and_the_summary_come_from_the_source(tmp_path):
    store = featreg.extract(str(PHOTOS), str(tmp_path / "s"), "numpy:tinynet", "pooled")
    assert store.classes == ("animals", "medical", "objects", "people", "space", "textures")
    assert [store.classes[target] for target in store.targets] == [key.split("/")[0] for key in store.keys]
    summary = store.summary
    assert (summary.rows, summary.ok, summary.failed, summary.pending, summary.skipped) == (12, 12, 0, 0, 1)
    assert summary.images_per_second == pytest.approx(12 / summary.seconds)
    assert featreg.open_store(tmp_path / "s").summary == attrs.evolve(
        summary, seconds=None, done=None, done_before=None, worked=()
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_neither_tasks_nor_threads_nor_batches_change_a_row(tmp_path, tasks_of_four, workers):
    store = featreg.extract(Memory(11), tmp_path / "s", "numpy:tinynet", "C1", batch_size=3, num_workers=workers)
    assert [task.rows for task in store.manifest.tasks] == [4, 4, 3]
    assert len(list((tmp_path / "s" / "receipts" / "0000").iterdir())) == 3
    with featreg.create_extractor("numpy:tinynet", "C1") as extractor:
        for row in range(11):
            with Image.open(io.BytesIO(picture(row))) as image:
                expected = extractor(np.asarray(image).transpose(2, 0, 1)[None])["C1"][0]
            np.testing.assert_allclose(store["C1"][row], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("limit", "rows"), [(1, 1), (5, 5), (99, 7)])
def test_limit_takes_the_first_images(tmp_path, limit, rows):
    store = featreg.extract(Memory(7), tmp_path / "s", "numpy:tinynet", "pooled", limit=limit)
    assert store.keys == [f"{row}.png" for row in range(rows)]
    assert store.complete


# --- images that fail ---------------------------------------------------------------------------------------------

BAD = {
    1: b"",
    2: picture(2)[:3000],
    5: b"this is a text",
    6: picture(6)[:-30] + b"\0" * 30,
    9: SourceError("the disk is on fire"),
}


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_bad_images_cost_their_own_rows_only(tmp_path, batch_size):
    options = {"layers": ["C5", "pooled"], "batch_size": batch_size}
    good = featreg.extract(Memory(10), tmp_path / "good", "numpy:tinynet", **options)
    store = featreg.extract(Memory(10, BAD), tmp_path / "bad", "numpy:tinynet", **options)
    failed = np.isin(np.arange(10), list(BAD))
    assert store.status.tolist() == ["error" if bad else "ok" for bad in failed]
    assert store.summary.failed == len(BAD)
    assert store.complete
    for layer in options["layers"]:
        assert np.isnan(store[layer][:][failed]).all()
        assert np.array_equal(store[layer][:][~failed], good[layer][:][~failed])
    assert set(store.errors) == {f"{row}.png" for row in BAD}
    assert store.errors["1.png"].startswith("ImageError: an empty file")
    assert store.errors["5.png"].startswith("ImageError: not an image")
    assert store.errors["9.png"] == "SourceError: the disk is on fire"


def test_a_folder_with_every_kind_of_trouble(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "dir.jpg").mkdir()
    (images / "broken.jpg").symlink_to(images / "nothing")
    (images / "empty.png").write_bytes(b"")
    (images / "good ü\n'1.png").write_bytes(picture(0))
    (images / "readme.txt").write_bytes(b"")
    (images / "text.jpg").write_bytes(b"hello")
    store = featreg.extract(images, tmp_path / "s", "numpy:tinynet", "pooled")
    assert dict(zip(store.keys, store.status, strict=True)) == {
        "broken.jpg": "error",
        "dir.jpg": "error",
        "empty.png": "error",
        "good ü\n'1.png": "ok",
        "text.jpg": "error",
    }
    assert store.errors["broken.jpg"].startswith("SourceError: the file cannot be read")
    assert store.summary.skipped == 1


def test_a_data_set_of_nothing_but_bad_images_is_complete(tmp_path):
    store = featreg.extract(Memory(3, dict.fromkeys(range(3), b"bad")), tmp_path / "s", "numpy:tinynet", "C5")
    assert store.status.tolist() == ["error"] * 3
    assert np.isnan(store["C5"][:]).all()


# --- runs that stop -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_run_that_stops_leaves_what_is_finished(tmp_path, tasks_of_four, error):
    with pytest.raises(error):
        featreg.extract(Memory(11, {6: error}), tmp_path / "s", "numpy:tinynet", "C1", batch_size=2)
    store = featreg.open_store(tmp_path / "s")
    assert not store.complete
    assert store.status.tolist() == ["ok"] * 4 + ["pending"] * 7
    whole = featreg.extract(Memory(11), tmp_path / "whole", "numpy:tinynet", "C1", batch_size=2)
    assert np.array_equal(store["C1"][:4], whole["C1"][:4])
    assert not (tmp_path / "s" / "samples.parquet").exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("featreg-load")]


def test_a_process_that_dies_leaves_what_is_finished(tmp_path):
    code = f"""
import os
import featreg
from featreg.engine.planning import plan
from featreg.sources import FolderSource

class Deadly(FolderSource):
    def read(self, sample):
        if sample.key == "people/camera.jpg":
            while not os.path.exists({str(tmp_path / "s/C1/c/0/0/0/0")!r}):
                pass
            os._exit(9)
        return super().read(sample)

plan.TASK_BYTES = 4 * {C1_BYTES}
featreg.extract(Deadly({str(PHOTOS)!r}), {str(tmp_path / "s")!r}, "numpy:tinynet", "C1", batch_size=2)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 9
    store = featreg.open_store(tmp_path / "s")
    assert store.status.tolist() == ["ok"] * 4 + ["pending"] * 8
    assert not np.isnan(store["C1"][:4]).any()


def test_a_model_that_fails_stops_the_run_and_leaves_the_store_readable(tmp_path, tasks_of_four, monkeypatch):
    convolve, calls = reference.convolve, []

    def failing(x, kernel):
        calls.append(len(x))
        if len(calls) > 1:
            raise FloatingPointError("no")
        return convolve(x, kernel)

    monkeypatch.setattr(reference, "convolve", failing)
    with pytest.raises(BackendError, match="numpy:tinynet"):
        featreg.extract(Memory(8), tmp_path / "s", "numpy:tinynet", "C1", batch_size=4)
    assert featreg.open_store(tmp_path / "s").status.tolist() == ["ok"] * 4 + ["pending"] * 4


# --- what is refused, and leaves nothing --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"layers": "C9"}, LayerError),
        ({"layers": []}, LayerError),
        ({"device": "tpu"}, DeviceError),
        ({"weights": "default"}, CapabilityError),
        ({"batch_size": 0}, SpecError),
        ({"limit": 0}, SpecError),
        ({"limit": True}, SpecError),
        ({"num_workers": 0}, SpecError),
        ({"colour": "red"}, SpecError),
        ({"array": "native"}, CapabilityError),
        ({"source": "nowhere"}, SourceError),
    ],
)
def test_a_request_that_cannot_be_leaves_no_store(tmp_path, options, error):
    options = {"source": PHOTOS, "layers": "pooled", **options}
    with pytest.raises(error):
        featreg.extract(store=tmp_path / "s", model="numpy:tinynet", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_source_without_images_leaves_no_store(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(SourceError, match="no images"):
        featreg.extract(tmp_path / "images", tmp_path / "s", "numpy:tinynet", "C5")
    assert [entry.name for entry in tmp_path.iterdir()] == ["images"]


def test_an_empty_index_leaves_no_store(tmp_path):
    with pytest.raises(SourceError, match="no images"):
        featreg.extract(Memory(0), tmp_path / "s", "numpy:tinynet", "C5")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_crop_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "PREPROCESS", attrs.evolve(reference.PREPROCESS, crop=None))
    with pytest.raises(CapabilityError, match="no fixed size"):
        featreg.extract(PHOTOS, tmp_path / "s", "numpy:tinynet", "C5")
    assert not (tmp_path / "s").exists()


def test_a_store_is_not_written_over_unless_asked(tmp_path):
    featreg.extract(Memory(2), tmp_path / "s", "numpy:tinynet", "C5")
    with pytest.raises(StoreMismatchError):
        featreg.extract(Memory(3), tmp_path / "s", "numpy:tinynet", "C4")
    assert len(featreg.open_store(tmp_path / "s")) == 2
    assert len(featreg.extract(Memory(3), tmp_path / "s", "numpy:tinynet", "C4", overwrite=True)) == 3


def test_a_path_that_is_taken_is_refused_before_a_model_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "create_extractor", None)
    (tmp_path / "s").mkdir()
    with pytest.raises(StoreExistsError):
        featreg.extract(Memory(3), tmp_path / "s", "numpy:tinynet", "C5")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_run_that_stops_leaves_the_store_that_it_was_to_replace(tmp_path, tasks_of_four, error):
    featreg.extract(Memory(3), tmp_path / "s", "numpy:tinynet", "C5")
    before = {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}
    with pytest.raises(error) as caught:
        featreg.extract(Memory(11, {6: error}), tmp_path / "s", "numpy:tinynet", "C1", batch_size=2, overwrite=True)
    assert f"the store {tmp_path / 's'} is as it was" in caught.value.__notes__[0]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


def test_a_process_that_dies_leaves_the_store_that_it_was_to_replace(tmp_path):
    featreg.extract(PHOTOS, tmp_path / "s", "numpy:tinynet", "C5")
    code = f"""
import os
import featreg
from featreg.sources import FolderSource

class Deadly(FolderSource):
    def read(self, sample):
        os._exit(9)

featreg.extract(Deadly({str(PHOTOS)!r}), {str(tmp_path / "s")!r}, "numpy:tinynet", "C1", overwrite=True)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 9
    store = featreg.open_store(tmp_path / "s")
    assert (store.layers, store.complete) == (("C5",), True)
    [aside] = [entry.name for entry in tmp_path.iterdir() if entry.name != "s"]
    assert aside.startswith(".s.")


def test_the_old_store_is_there_until_the_new_one_is_complete(tmp_path, monkeypatch):
    featreg.extract(Memory(3), tmp_path / "s", "numpy:tinynet", "C5")
    finalize, seen = StoreWriter.finalize_if_complete, []

    def watched(self):
        finish = finalize(self)
        seen.append(len(featreg.open_store(tmp_path / "s")))
        return finish

    monkeypatch.setattr(StoreWriter, "finalize_if_complete", watched)
    store = featreg.extract(Memory(5), tmp_path / "s", "numpy:tinynet", "C5", overwrite=True)
    assert seen == [3]
    assert (store.path, len(store), store.complete) == (tmp_path / "s", 5, True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


def test_a_run_into_an_empty_folder_keeps_what_is_finished(tmp_path, tasks_of_four):
    (tmp_path / "s").mkdir()
    with pytest.raises(KeyboardInterrupt):
        featreg.extract(
            Memory(11, {6: KeyboardInterrupt}), tmp_path / "s", "numpy:tinynet", "C1", batch_size=2, overwrite=True
        )
    assert featreg.open_store(tmp_path / "s").summary.ok == 4


def test_a_finished_store_that_cannot_move_in_is_kept_and_named(tmp_path, monkeypatch):
    featreg.extract(Memory(3), tmp_path / "s", "numpy:tinynet", "C5")
    finalize = StoreWriter.finalize_if_complete

    def meddled(self):
        finish = finalize(self)
        (tmp_path / "s" / "thesis.txt").write_text("mine")
        return finish

    monkeypatch.setattr(StoreWriter, "finalize_if_complete", meddled)
    with pytest.raises(StoreError, match="cannot take the place") as caught:
        featreg.extract(Memory(5), tmp_path / "s", "numpy:tinynet", "C5", overwrite=True)
    assert (tmp_path / "s" / "thesis.txt").exists()
    [aside] = [entry for entry in tmp_path.iterdir() if entry.name != "s"]
    assert str(aside) in caught.value.remedy
    assert len(featreg.open_store(aside)) == 5


@pytest.mark.parametrize(
    ("path", "error"), [(None, SpecError), (3, SpecError), ("", StoreError), ("nofs://x", StoreError)]
)
def test_a_store_must_have_a_path(tmp_path, monkeypatch, path, error):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        featreg.extract(Memory(2), path, "numpy:tinynet", "C5", overwrite=True)
    assert list(tmp_path.iterdir()) == []


def test_stray_images_are_in_the_manifest(tmp_path):
    for name in ("a/x.png", "b/x.png", "x.png", "y.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(picture(0))
    store = featreg.extract(tmp_path / "images", tmp_path / "s", "numpy:tinynet", "C5", limit=1)
    assert (store.manifest.source.stray, store.classes) == (2, None)


def test_overwriting_never_deletes_the_source(tmp_path):
    store = featreg.extract(Memory(2), tmp_path / "s", "numpy:tinynet", "C5")
    (store.path / "photos").mkdir()
    (store.path / "photos" / "x.png").write_bytes(picture(0))
    with pytest.raises(StoreExistsError, match="refused"):
        featreg.extract(store.path / "photos", tmp_path / "s", "numpy:tinynet", "C5", overwrite=True)
    assert (store.path / "photos" / "x.png").exists()


# --- the manifest -------------------------------------------------------------------------------------------------


def test_the_fingerprint_holds_what_decides_the_values(tmp_path):
    first = featreg.extract(Memory(2), tmp_path / "a", "numpy:tinynet", ["C5", -1]).manifest
    second = featreg.extract(Memory(2), tmp_path / "b", "numpy:tinynet", ["C5", -1]).manifest
    other = featreg.extract(Memory(2), tmp_path / "c", "numpy:tinynet", ["C5"]).manifest
    assert first.fingerprint == second.fingerprint != other.fingerprint
    assert set(first.fingerprint) == {"request", "preprocess", "decoder", "weights", "versions"}
    assert first.fingerprint["weights"] == "none: seeded random init"
    assert first.fingerprint["versions"] == {"featreg": featreg.__version__, "numpy": np.__version__}
    assert first.fingerprint["decoder"]["version"] == Image.__version__
    assert first.fingerprint["request"]["layers"] == ["C5", -1]
    assert first.request.model == "numpy:tinynet"
    assert [layer.array for layer in first.layers] == ["C5", "index_-1"]
    assert first.created.endswith("+00:00")
    assert featreg.open_store(tmp_path / "a").manifest == first


# --- tasks, threads and memory ------------------------------------------------------------------------------------


@given(st.integers(1, 2**40))
def test_tasks_are_as_large_as_memory_allows(row_bytes):
    rows = plan.task_rows(row_bytes)
    assert 1 <= rows <= 256
    assert rows & (rows - 1) == 0
    assert rows == 1 or rows * row_bytes <= plan.TASK_BYTES
    assert rows == 256 or 2 * rows * row_bytes > plan.TASK_BYTES


def test_a_row_of_nothing_is_refused():
    with pytest.raises(SpecError):
        plan.task_rows(0)


class Counting(Memory):
    """Counts the images that were read and are not yet committed."""

    def __init__(self, count):
        super().__init__(count)
        self.lock = threading.Lock()
        self.live = self.most = 0

    def read(self, sample):
        with self.lock:
            self.live += 1
            self.most = max(self.most, self.live)
        return super().read(sample)


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, tasks_of_four, monkeypatch):
    source, commit = Counting(120), StoreWriter.commit

    def counted(self, task, *arguments):
        won = commit(self, task, *arguments)
        with source.lock:
            source.live -= task.rows
        return won

    monkeypatch.setattr(StoreWriter, "commit", counted)
    featreg.extract(source, tmp_path / "s", "numpy:tinynet", "C1", batch_size=2, num_workers=2)
    assert source.live == 0
    assert source.most <= 2 * 4 + 2 * 2 + 1  # two tasks, two batches ahead, and the one that is handed over


def test_crops_come_in_order_and_no_further_ahead_than_allowed():
    source = Counting(30)
    preprocess = reference.PREPROCESS
    loaded = load_crops(source, source.samples, preprocess, threads=4, ahead=5)
    for row, crop in enumerate(loaded):
        with Image.open(io.BytesIO(picture(row))) as image:
            assert np.array_equal(crop, np.asarray(image))
        assert source.live <= row + 5
    assert source.live == 30


def test_an_image_error_is_a_result_and_anything_else_is_raised_in_its_turn():
    source = Memory(4, {1: b"bad", 2: RuntimeError("a bug")})
    loaded = load_crops(source, source.samples, reference.PREPROCESS, threads=2, ahead=4)
    assert next(loaded).shape == (64, 64, 3)
    assert isinstance(next(loaded), ImageError)
    with pytest.raises(RuntimeError, match="a bug"):
        next(loaded)


class Loud:
    """An extractor whose features for white images are beyond float16."""

    takes_text = False
    preprocess = Preprocess(resize=None, crop=(2, 2), mean=(0, 0, 0), std=(1, 1, 1))
    info = FeatureInfo("loud", 3, None, "vector")

    def __call__(self, images, *, transfers):
        values = images.astype(np.float32).mean(axis=(2, 3)) * 1000
        return FeatureSet({"loud": values}, {"loud": self.info})


def test_overflow_on_the_way_to_float16_is_an_error_of_its_row(tmp_path):
    def image(value):
        buffer = io.BytesIO()
        Image.new("RGB", (2, 2), (value, 0, 0)).save(buffer, "PNG")
        return buffer.getvalue()

    source = Memory(4, {0: image(65), 1: image(66), 2: b"bad", 3: image(3)})
    manifest = featreg.extract(Memory(4), tmp_path / "model", "numpy:tinynet", "pooled").manifest
    layer = attrs.evolve(manifest.layers[0], key="loud", array="loud", info=Loud.info, shape=(3,), dtype="float16")
    plan = Plan(manifest.request, manifest.fingerprint, (layer,), manifest.source, manifest.task_rows)
    writer = StoreWriter.create(tmp_path / "s", plan, source.samples)
    run_tasks(writer.manifest.tasks, source, Loud(), writer, Options(batch_size=4))
    store = featreg.open_store(tmp_path / "s")
    assert store["loud"].dtype == np.float16
    assert store.status.tolist() == ["ok", "error", "error", "ok"]
    assert store["loud"][:, 0].tolist()[::3] == [65000 - 65000 % 32 + 0, 3000]
    assert np.isnan(store["loud"][1:3]).all()
    assert "range of float16" in store.errors["1.png"]


class Words(Source):
    kind, uri = "words", "words:"
    texts = ("a cat", b"a dog", b"\xff", np.zeros(3), "")
    samples = tuple(Sample(str(row), f"words:{row}") for row in range(len(texts)))

    def read(self, sample):
        return self.texts[int(sample.key)]


class Counter:
    """An extractor of texts: how many letters each has."""

    takes_text = True
    info = FeatureInfo("letters", 1, None, "vector")

    def __call__(self, texts, *, transfers):
        return FeatureSet({"letters": np.array([[len(text)] for text in texts], np.float32)}, {"letters": self.info})


def test_texts_are_extracted_as_images_are(tmp_path):
    manifest = featreg.extract(Memory(4), tmp_path / "model", "numpy:tinynet", "pooled").manifest
    layer = attrs.evolve(manifest.layers[0], key="letters", array="letters", info=Counter.info, shape=(1,))
    plan = Plan(manifest.request, manifest.fingerprint, (layer,), manifest.source, manifest.task_rows)
    writer = StoreWriter.create(tmp_path / "s", plan, Words.samples)
    run_tasks(writer.manifest.tasks, Words(), Counter(), writer, Options(batch_size=2))
    store = featreg.open_store(tmp_path / "s")
    assert store.status.tolist() == ["ok", "ok", "error", "error", "ok"]
    assert np.array_equal(store["letters"][:, 0], [5, 5, np.nan, np.nan, 0], equal_nan=True)
    assert store.errors["2"].startswith("InputError: the text is not UTF-8")
    assert store.errors["3"].startswith("InputError: the sample is no text")


def test_an_open_extractor_in_place_of_a_model_stays_open(tmp_path: Path) -> None:
    with featreg.create_extractor("numpy:tinynet", LAYERS) as extractor:
        store = featreg.extract(PHOTOS, tmp_path / "given.zarr", extractor)
        wanted = featreg.extract(PHOTOS, tmp_path / "named.zarr", "numpy:tinynet", LAYERS)
        assert store.manifest.request == wanted.manifest.request
        for layer in LAYERS:
            assert np.array_equal(store[layer][:], wanted[layer][:])
        extractor(np.zeros((1, 3, 64, 64), np.float32))
        with pytest.raises(SpecError, match="has its request"):
            featreg.extract(PHOTOS, tmp_path / "both.zarr", extractor, ["C1"])
        with pytest.raises(SpecError, match="has its request"):
            featreg.extract(PHOTOS, tmp_path / "both.zarr", extractor, weights=None)
    assert not (tmp_path / "both.zarr").exists()
