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


@pytest.mark.parametrize(
    "data",
    [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"\x93NUMPY\x01\x00\x03\x00{(\n", b"nothing of the kind" * 9],
)
def test_a_file_that_is_no_array_is_typed(tmp_path, data):
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(SourceError, match=r"no \.npy file"):
        list(NumpySource(tmp_path / "x.npy").index())


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
