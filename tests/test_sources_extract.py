"""Every kind of source through extraction: the rows are those of the images, whatever lies between them."""

import io
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
from featreg.errors import FeatregError
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
