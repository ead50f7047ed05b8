"""Files of weights: what names one, and what is said of one that cannot be read."""

import pickle

import numpy as np
import pytest

from featreg.errors import CapabilityError, WeightsError
from featreg.weightfiles import SUFFIXES, is_path, read_npz, reading_weights


def test_paths_and_tags_are_told_apart():
    for path in ("w.pth", "w.npz", "./weights", "a/b", r"a\b", *(f"w{suffix}" for suffix in SUFFIXES)):
        assert is_path(path)
    for tag in ("IMAGENET1K_V2", "a1_in1k", "default", "laion2b_s34b_b79k.v1"):
        assert not is_path(tag)


def test_links_without_a_suffix_get_that_of_their_target_and_the_other_way(tmp_path):
    (tmp_path / "blob").write_bytes(b"1")
    (tmp_path / "w.npz").write_bytes(b"2")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "blob")
    (tmp_path / "bare").symlink_to(tmp_path / "w.npz")
    for name, suffix, content in (
        ("link.safetensors", ".safetensors", b"1"),
        ("bare", ".npz", b"2"),
        ("blob", "", b"1"),
    ):
        with reading_weights(str(tmp_path / name)) as file:
            assert (file.suffix, file.read_bytes()) == (suffix, content)


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "w.pth").touch()
    with reading_weights("~/w.pth") as file:
        assert file == tmp_path / "w.pth"


@pytest.mark.parametrize(("name", "got"), [("none.pth", "no such file"), (".", "a folder")])
def test_a_missing_file_and_a_folder_are_told_apart(name, got, tmp_path):
    with pytest.raises(WeightsError, match="there is no checkpoint") as caught, reading_weights(str(tmp_path / name)):
        pass
    assert caught.value.got == got


def test_a_pickle_says_how_it_is_converted(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"\x80\x02")
    with (
        pytest.raises(WeightsError, match="more than tensors") as caught,
        reading_weights(str(tmp_path / "w.pth"), "!"),
    ):
        raise pickle.UnpicklingError("\x1b[31mno\x1b[0m class\nand more")
    assert caught.value.got == "no class"
    assert caught.value.remedy.endswith("torch.save the state_dict in it alone!")


@pytest.mark.parametrize("error", [ValueError("bad\nheader"), ValueError()])
def test_whatever_goes_wrong_is_chained_and_errors_of_ours_are_left(error, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"\x80\x02")
    with pytest.raises(WeightsError, match="cannot be read") as caught, reading_weights(str(tmp_path / "w.pth")):
        raise error
    assert caught.value.__cause__ is error
    assert "its suffix" in caught.value.remedy
    with pytest.raises(CapabilityError), reading_weights(str(tmp_path / "w.pth")):
        raise CapabilityError("ours")


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "an empty file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "text, beginning with 'version https://git-lfs.",
        ),
        (b"\n  <!DOCTYPE html>\n<html>", "text, beginning with '<!DOCTYPE html>'"),
    ],
)
@pytest.mark.parametrize("error", [KeyError(101), pickle.UnpicklingError("no"), EOFError()])
def test_what_is_no_file_of_weights_is_called_what_it_is(content, got, error, tmp_path):
    """torch says ``KeyError: 101`` of a text that begins with an h."""
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match="holds no weights") as caught, reading_weights(str(tmp_path / "w.pth")):
        raise error
    assert caught.value.got.startswith(got)
    assert "fetch the file again" in caught.value.remedy
    assert caught.value.__suppress_context__, "no framework's traceback comes first"


def test_arrays_come_by_name_and_objects_do_not(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.arange(3), b=np.ones((2, 2)))
    arrays = read_npz(tmp_path / "w.npz")
    assert list(arrays) == ["a", "b"]
    np.testing.assert_array_equal(arrays["a"], [0, 1, 2])
    np.savez(tmp_path / "o.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_npz(tmp_path / "o.npz")
