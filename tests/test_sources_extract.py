"""Every kind of source through extraction: the rows are those of the images, whatever lies between them."""

import io
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

sys.path.append(
    str(Path(__file__).parent.parent)
)  # fuzz is no part of the distribution; at the end, so that wheels win

import featreg
from featreg.errors import FeatregError, SourceError
from featreg.images import decode
from fuzz.mutations import make_case

COUNT = 5
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 64, 64, 3), np.uint8)
"""As large as the crops of tinynet, so that nothing is resized on the way."""


@pytest.fixture(scope="module")
def expected():
    """The features of the images by the raw extractor."""
    with featreg.create_extractor("numpy:tinynet", "pooled") as extractor:
        return extractor(np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)))["pooled"]


def png(row):
    buffer = io.BytesIO()
    Image.fromarray(IMAGES[row]).save(buffer, "PNG")
    return buffer.getvalue()


def folder(root):
    for row in range(COUNT):
        (root / f"{row}.png").write_bytes(png(row))
    return root, {}


def csv_list(root):
    (root / "images").mkdir()
    folder(root / "images")
    (root / "list.csv").write_text("uri,target\n" + "".join(f"images/{row}.png,{row}\n" for row in range(COUNT)))
    return root / "list.csv", {}


def tar(root):
    for shard, rows in enumerate((range(2), range(2, COUNT))):
        with tarfile.open(root / f"{shard}.tar", "w") as archive:
            for row in rows:
                info = tarfile.TarInfo(f"{row}.png")
                info.size = len(png(row))
                archive.addfile(info, io.BytesIO(png(row)))
    return root, {}


def parquet(root):
    pq.write_table(pa.table({"image": [png(row) for row in range(COUNT)]}), root / "x.parquet", row_group_size=2)
    return root / "x.parquet", {}


def npy(root):
    np.save(root / "x.npy", IMAGES)
    return root / "x.npy", {}


def npy16(root):
    np.save(root / "x.npy", IMAGES.astype(np.uint16) * 256 + 99)
    return root / "x.npy", {}


def hdf5(root):
    h5py = pytest.importorskip("h5py")
    with h5py.File(root / "x.h5", "w") as file:
        file["images"] = IMAGES
    return root / "x.h5", {}


def huggingface(root):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image()})
    images = [{"bytes": png(row), "path": None} for row in range(COUNT)]
    datasets.Dataset.from_dict({"image": images}, features=features).save_to_disk(root / "x")
    return root / "x", {}


def remote(root):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for row in range(COUNT):
        memory.pipe(f"/extracted/{root.name}/{row}.png", png(row))
    return f"memory://extracted/{root.name}", {}


@pytest.mark.parametrize("make", [folder, csv_list, tar, parquet, npy, npy16, hdf5, huggingface, remote])
def test_rows_hold_the_features_of_their_own_images(tmp_path, expected, make):
    source, options = make(tmp_path)
    opened = featreg.sources.open_source(source, **options)
    store = featreg.extract(opened, tmp_path / "s", "numpy:tinynet", "pooled", batch_size=COUNT)
    assert np.array_equal(store["pooled"][:], expected)
    assert list(store.status) == ["ok"] * COUNT


def test_no_damage_moves_a_row_or_changes_its_neighbours(tmp_path, expected):
    """Damaged images of every format, and worse, between sound ones."""
    images = tmp_path / "images"
    images.mkdir()
    for row in range(COUNT):
        (images / f"{row}0-sound.png").write_bytes(png(row))
    wrong = set()
    for number in range(20):
        case = make_case(number, seed=11)
        name = f"{number % COUNT}1-{number}.{case.kind.lower()}"
        (images / name).write_bytes(case.data)
        try:
            decode(case.data)
        except FeatregError:
            wrong.add(name)
    (images / "21-gone.png").symlink_to(tmp_path / "nothing")
    (images / "31-empty.png").write_bytes(b"")
    (images / "41-a\nb.png").write_bytes(b"no image")
    wrong |= {"21-gone.png", "31-empty.png", "41-a\nb.png"}
    store = featreg.extract(images, tmp_path / "s", "numpy:tinynet", "pooled", batch_size=4)
    assert set(store.keys) == {path.name for path in images.iterdir()}
    assert {key for key, status in zip(store.keys, store.status, strict=True) if status == "error"} == wrong
    for row, key in enumerate(store.keys):
        if key.endswith("sound.png"):
            np.testing.assert_allclose(store["pooled"][row], expected[int(key[0])], rtol=1e-5, atol=1e-6)
        assert bool(np.isnan(store["pooled"][row]).all()) == (key in wrong)


NAMES = [
    "a#b.png", "a%20b.png", "a?b.png", "a::b.png", "::c.png", "x:__y.png", "new\nline.png", "ret\rn.png", "tab\t.png",
    "\u202eevil.png", "é.png", "e\u0301.png", "日本語.png", "😀.png", " lead.png", "trail .png", "{0,9}.png",
    "[x]*.png", "q'\".png", "a\\b.png", "-rf.png", "~.png", "$HOME.png", "\x1b[31m.png", "x" * 251 + ".png",
]  # fmt: skip
"""What nobody should call an image; none of them twice, and none of it a wrong one."""


def odd_folder(root):
    (root / "odd").mkdir()
    for row, name in enumerate(NAMES):
        (root / "odd" / name).write_bytes(png(row % COUNT))
    return root / "odd", lambda key: key


def odd_array(root):
    odd_folder(root)
    np.save(root / "list.npy", np.array([f"odd/{name}" for name in NAMES]))
    return root / "list.npy", lambda key: key.removeprefix("odd/")


def odd_tar(root):
    with tarfile.open(root / "x.tar", "w") as archive:
        for row, name in enumerate(NAMES):
            info = tarfile.TarInfo(name)
            info.size = len(png(row % COUNT))
            archive.addfile(info, io.BytesIO(png(row % COUNT)))
    return root / "x.tar", lambda key: f"{key.removeprefix('x.tar/')}.png"


def odd_url(root):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for row, name in enumerate(NAMES):
        memory.pipe(f"/odd/{root.name}/{name}", png(row % COUNT))
    return f"memory://odd/{root.name}", lambda key: key


@pytest.mark.parametrize("make", [odd_folder, odd_array, odd_tar, odd_url])
def test_a_name_of_any_characters_leads_to_its_own_image(tmp_path, expected, make):
    source, name_of = make(tmp_path)
    store = featreg.extract(source, tmp_path / "s", "numpy:tinynet", "pooled", batch_size=COUNT)
    assert sorted(map(name_of, store.keys)) == sorted(NAMES)
    assert list(store.status) == ["ok"] * len(NAMES)
    rows = [NAMES.index(name_of(key)) % COUNT for key in store.keys]
    np.testing.assert_allclose(store["pooled"][:], expected[rows], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not Path("/proc/self/mem").exists() or not hasattr(os, "mkfifo"), reason="a system of its own")
def test_whatever_cannot_be_read_is_a_row_of_its_own(tmp_path, expected):
    """Also for root: links in a circle, pipes, devices, folders, and files that are none."""
    images = tmp_path / "images"
    images.mkdir()
    for row in range(COUNT):
        (images / f"{row}0-sound.png").write_bytes(png(row))
    os.mkfifo(images / "01-pipe.png")
    (images / "02-folder.png" / "empty").mkdir(parents=True)
    (images / "03-empty.png").touch()
    links = {
        "11-itself": "11-itself.png",
        "13-memory": "/proc/self/mem",
        "14-process": "/proc/self/status",
        "15-device": "/dev/zero",
        "16-gone": "nothing",
        "17-below": "16-gone.png/x",
    }
    for name, target in links.items():
        (images / f"{name}.png").symlink_to(target)
    (images / "18-here.png").symlink_to(images)
    before = {path: path.lstat().st_mtime_ns for path in images.iterdir()}
    store = featreg.extract(images, tmp_path / "s", "numpy:tinynet", "pooled", batch_size=4)
    assert set(store.keys) == {path.name for path in images.iterdir()}
    for row, key in enumerate(store.keys):
        if key.endswith("sound.png"):
            np.testing.assert_allclose(store["pooled"][row], expected[int(key[0])], rtol=1e-5, atol=1e-6)
        assert store.status[row] == ("ok" if key.endswith("sound.png") else "error")
    assert {path: path.lstat().st_mtime_ns for path in images.iterdir()} == before
    assert sorted(os.listdir(tmp_path)) == ["images", "s"]


def test_a_file_system_that_refuses_or_breaks_off_costs_its_rows_only(tmp_path, expected, monkeypatch):
    """In place of permissions, which do not bind root."""
    memory = pytest.importorskip("fsspec").filesystem("memory")
    source, _ = remote(tmp_path)
    raised = {"1.png": PermissionError(13, "Permission denied"), "3.png": RuntimeError("the connection broke off")}
    read = type(memory).cat_file

    def cat_file(self, path, *args, **options):
        error = raised.get(path.rpartition("/")[2])
        if error is not None:
            raise error
        return read(self, path, *args, **options)

    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    store = featreg.extract(source, tmp_path / "s", "numpy:tinynet", "pooled", batch_size=COUNT)
    assert list(store.status) == ["ok", "error", "ok", "error", "ok"]
    np.testing.assert_allclose(store["pooled"][::2], expected[::2], rtol=1e-5, atol=1e-6)
    errors = "".join(str(error) for error in store.errors.values())
    assert "Permission denied" in errors
    assert "broke off" in errors


@pytest.mark.parametrize("make", [odd_folder, odd_tar])
def test_an_index_that_fails_writes_no_store(tmp_path, monkeypatch, make):
    source, _ = make(tmp_path)
    opened = featreg.sources.open_source(source)
    index = opened.index

    def failing():
        yield next(index())
        raise SourceError("the folder cannot be listed")

    monkeypatch.setattr(opened, "index", failing)
    with pytest.raises(SourceError, match="cannot be listed"):
        featreg.extract(opened, tmp_path / "s", "numpy:tinynet", "pooled")
    assert not (tmp_path / "s").exists()
