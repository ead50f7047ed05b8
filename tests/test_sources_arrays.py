import contextlib
import itertools
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from featreg.errors import SourceError
from featreg.images import to_pixels
from featreg.sources import Sample, open_source
from featreg.sources.arrays import NumpySource

FORMS = st.tuples(st.sampled_from([(), (1,), (3,), (4,)]), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))


def expected_pixels(image):
    """The stated rule, once more and otherwise: per pixel."""
    image = image if image.ndim == 3 else image[:, :, None]
    scale = 256 if image.dtype.itemsize == 2 else 1
    found = np.empty((*image.shape[:2], 3), np.uint8)
    for channel in range(3):
        found[:, :, channel] = image[:, :, 0 if image.shape[2] == 1 else channel] // scale
    return found


@settings(max_examples=40)
@given(FORMS, st.sampled_from(["u1", "<u2", ">u2"]), st.data())
def test_every_row_is_its_own_image(tmp_path_factory, form, dtype, data):
    channels, count, height, width = form
    array = data.draw(arrays(dtype, (count, height, width, *channels)))
    path = tmp_path_factory.mktemp("npy") / "x.npy"
    np.save(path, array)
    source = NumpySource(path)
    assert [sample.key for sample in source.samples] == [str(row) for row in range(count)]
    assert {sample.size for sample in source.samples} == {array[0].nbytes}
    for row in reversed(range(count)):
        found = source.read(source.samples[row])
        assert (found.dtype, found.flags.c_contiguous, found.flags.writeable) == (np.uint8, True, True)
        assert np.array_equal(to_pixels(found), expected_pixels(array[row]))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 4, 4), np.float32), "float32"),
        (np.zeros((2, 4, 4), np.int16), "int16"),
        (np.zeros((2, 4, 4), bool), "bool"),
        (np.zeros((4, 4), np.uint8), r"(4, 4)"),
        (np.zeros((2, 4, 4, 2), np.uint8), r"(2, 4, 4, 2)"),
        (np.zeros((2, 0, 4, 3), np.uint8), r"(2, 0, 4, 3)"),
        (np.array([b"x", None]), "object"),
        (np.asfortranarray(np.zeros((2, 4, 4), np.uint8)), "Fortran"),
    ],
)
def test_what_holds_no_images_says_what_it_holds(tmp_path, array, said):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(SourceError) as caught:
        list(NumpySource(tmp_path / "x.npy").index())
    assert said in caught.value.got


def test_channels_first_have_a_remedy(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 8, 8), np.uint8))
    with pytest.raises(SourceError) as caught:
        list(NumpySource(tmp_path / "x.npy").index())
    assert "moveaxis" in caught.value.remedy


def test_targets_lie_in_a_file_beside(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 2, 2), np.uint8))
    np.save(tmp_path / "y.npy", np.array([2, 0, 1], np.int16))
    np.save(tmp_path / "z.npy", np.zeros((2,), np.int64))
    source = open_source(tmp_path / "x.npy", target="y.npy", classes=["a", "b", "c"])
    assert [sample.target for sample in source.samples] == [2, 0, 1]
    assert source.classes == ("a", "b", "c")
    with pytest.raises(SourceError, match="does not hold the targets"):
        list(open_source(tmp_path / "x.npy", target="z.npy").index())


def npy_array(root, images, **others):
    np.save(root / "x.npy", images)
    for name, array in others.items():
        np.save(root / f"{name}.npy", array)
    return root / "x.npy", {name: f"{name}.npy" for name in others}


def hdf5_array(root, images, **others):
    h5py = pytest.importorskip("h5py")
    with h5py.File(root / "x.h5", "w") as file:
        file["images"] = images
        file["nothing"] = h5py.Empty("u1")
        for name, array in others.items():
            file[name] = array
    return root / "x.h5", {name: name for name in others}


@pytest.mark.parametrize("write", [npy_array, hdf5_array])
@pytest.mark.parametrize("form", [list, np.array, "a file"])
def test_the_rows_that_are_asked_for_are_taken_in_that_order(tmp_path, monkeypatch, write, form):
    """As the img_indices of thingsvision's HDF5Dataset; the targets are those of these rows."""
    monkeypatch.setattr("featreg.sources.arrays.BLOCK_ROWS", 2)
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 3)).astype(np.uint8)
    rows = [3, 0, 4, 3]
    path, names = write(tmp_path, images, target=np.arange(5)[::-1].copy(), rows=np.array(rows))
    source = open_source(path, target=names["target"], rows=names["rows"] if form == "a file" else form(rows))
    assert [(sample.key, sample.target) for sample in source.samples] == [(str(row), 4 - row) for row in rows]
    again = open_source(source.uri, kind=source.kind, **json.loads(json.dumps(dict(source.options))))
    assert all(
        np.array_equal(again.read(sample), images[row]) for row, sample in zip(rows, source.samples, strict=True)
    )


@pytest.mark.parametrize("write", [npy_array, hdf5_array])
@pytest.mark.parametrize("row", [-1, 2, 2**70])
def test_a_row_that_is_not_there_is_an_error_of_the_index(tmp_path, write, row):
    path, _ = write(tmp_path, np.zeros((2, 3, 4), np.uint8))
    with pytest.raises(SourceError, match=f"has no row {row}") as caught:
        list(open_source(path, rows=[0, row]).index())
    assert caught.value.expected == "0 to 1"


@pytest.mark.parametrize("write", [npy_array, hdf5_array])
def test_targets_that_are_no_classes_are_errors(tmp_path, write):
    images = np.zeros((2, 3, 4), np.uint8)
    path, names = write(tmp_path, images, huge=np.array([2**63, 0], np.uint64), far=np.array([1, 2]))
    with pytest.raises(SourceError, match="no whole number"):
        list(open_source(path, target=names["huge"]).index())
    with pytest.raises(SourceError, match="none of the 2 classes"):
        list(open_source(path, target=names["far"], classes=["a", "b"]).index())


def test_a_dataset_whose_name_is_no_unicode_is_read(tmp_path):
    h5py = pytest.importorskip("h5py")
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file[b"caf\xe9"] = images
    source = open_source(tmp_path / "x.h5")
    assert source.samples[1].uri.endswith("x.h5#caf%E9[1]")
    assert np.array_equal(source.read(source.samples[1])[:, :, 0], images[1])
    with pytest.raises(SourceError, match="no dataset 'cafe'") as caught:
        list(open_source(tmp_path / "x.h5", dataset="cafe").index())
    assert str(caught.value).encode("utf-8", "surrogateescape")


def test_a_null_dataset_of_hdf5_holds_no_images(tmp_path):
    path, _ = hdf5_array(tmp_path, np.zeros((2, 3, 4), np.uint8))
    assert len(open_source(path)) == 2
    with pytest.raises(SourceError, match="no dataset 'nothing'"):
        list(open_source(path, dataset="nothing").index())


@pytest.mark.parametrize(
    "data",
    [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"\x93NUMPY\x01\x00\x03\x00{(\n", b"nothing of the kind" * 9],
)
def test_a_file_that_is_no_array_is_typed(tmp_path, data):
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(SourceError, match=r"no \.npy file"):
        list(NumpySource(tmp_path / "x.npy").index())


@settings(max_examples=60)
@given(st.booleans(), st.lists(st.tuples(st.integers(0, 140), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bits_never_escape_as_anything_else(tmp_path_factory, texts, changes):
    path = tmp_path_factory.mktemp("npy") / "x.npy"
    np.save(path, np.array(["a.png", "b.png"]) if texts else np.zeros((2, 4, 4), np.uint8))
    data = bytearray(path.read_bytes())
    for place, byte in changes:
        data[place] = byte
    path.write_bytes(data)
    with contextlib.suppress(SourceError):
        source = open_source(path)
        for sample in itertools.islice(source.index(), 10):
            with contextlib.suppress(SourceError):
                source.read(sample)


def test_a_cut_array_is_noticed_before_a_row_is_read(tmp_path):
    np.save(tmp_path / "x.npy", np.full((3, 10, 10), 7, np.uint8))
    data = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(data[:-1])
    source = NumpySource(tmp_path / "x.npy")
    with pytest.raises(SourceError, match="is cut") as caught:
        list(source.index())
    assert (caught.value.expected, caught.value.got) == (f"{len(data)} bytes", f"{len(data) - 1} bytes")
    assert source.read(Sample("1", f"{source.uri}#1"))[0, 0, 0] == 7
    with pytest.raises(SourceError, match="ends before"):
        source.read(Sample("2", f"{source.uri}#2"))


# --- HDF5 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [None, (2, 5, 6, 3)])
def test_a_dataset_of_hdf5_is_read_by_rows(tmp_path, chunks):
    h5py = pytest.importorskip("h5py")
    images = np.random.default_rng(0).integers(0, 256, (5, 5, 6, 3)).astype(np.uint8)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("deep/[odd] #name", data=images, chunks=chunks, compression="gzip" if chunks else None)
        file["labels"] = np.array([4, 3, 2, 1, 0])
        file["features"] = np.zeros((5, 8), np.float32)
    source = open_source(tmp_path / "x.h5", target="labels")
    assert [(sample.key, sample.target) for sample in source.samples] == [(str(row), 4 - row) for row in range(5)]
    for again in (source, pickle.loads(pickle.dumps(source)), open_source(source.uri, **source.options)):
        assert all(np.array_equal(again.read(sample), images[int(sample.key)]) for sample in source.samples)


def test_hdf5_says_which_datasets_there_are(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["train"], file["test"] = np.zeros((2, 4, 4), np.uint16), np.full((2, 4, 4), 0x1234, np.uint16)
        file["y"] = np.zeros((3,))
    with pytest.raises(SourceError, match="which dataset") as caught:
        list(open_source(tmp_path / "x.h5").index())
    assert set(caught.value.matches) == {"train", "test"}
    with pytest.raises(SourceError, match="no dataset 'tset'") as caught:
        list(open_source(tmp_path / "x.h5", dataset="tset").index())
    assert "test" in caught.value.matches
    with pytest.raises(SourceError, match="does not hold the targets"):
        list(open_source(tmp_path / "x.h5", dataset="test", target="y").index())
    source = open_source(tmp_path / "x.h5", dataset="test")
    assert (source.read(source.samples[0]) == 0x12).all()


def test_a_file_that_is_no_hdf5_is_typed(tmp_path):
    pytest.importorskip("h5py")
    (tmp_path / "x.h5").write_bytes(b"nothing of the kind")
    with pytest.raises(SourceError, match="no readable HDF5"):
        list(open_source(tmp_path / "x.h5").index())
