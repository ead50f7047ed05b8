"""What weights are: other where anything differs that changes values."""

import hashlib

import numpy as np
import pytest

from featreg.errors import WeightsError
from featreg.identity import identify_path, identify_state, watch_path

ARRAYS = [("a", "float32", np.arange(4, dtype=np.float32)), ("b", "int64", np.zeros((), np.int64))]


def test_a_file_is_its_hash(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(b"weights")
    expected = f"sha256:{hashlib.sha256(b'weights').hexdigest()}"
    assert identify_path(str(tmp_path / "w.pth")) == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    assert identify_path("~/w.pth") == expected


def test_a_folder_is_its_files_by_name_and_nothing_hidden(tmp_path):
    def identity(files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return identify_path(str(folder))

    files = {"config.json": b"{}", "text/vocab.txt": b"a"}
    first = identity(files)
    assert first == identity({**files, ".cache/lock": b"1", "text/.hidden": b"2"})
    others = [
        identity({**files, "config.json": b"[]"}),
        identity({**files, "text/vocab.txt": b"b"}),
        identity({"config.json": b"{}", "vocab.txt": b"a"}),
        identity({"config.json": b"{}"}),
    ]
    assert len({first, *others}) == 5


@pytest.mark.parametrize("change", [b"others!", b"more weights", None])
def test_what_has_changed_since_it_was_loaded_does_not_speak_for_it(change, tmp_path):
    file = tmp_path / "w.pth"
    file.write_bytes(b"weights")
    of_file, of_folder = watch_path(str(file)), watch_path(str(tmp_path))
    assert (of_file(), of_folder()) == (identify_path(str(file)), identify_path(str(tmp_path)))
    file.rename(tmp_path / "old.pth")
    if change is not None:
        file.write_bytes(change)
    for identify in (of_file, of_folder):
        with pytest.raises(WeightsError, match="has changed"):
            identify()


def test_nothing_has_no_identity(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError):
            identify_path(str(path))


def test_a_state_is_its_structure_its_names_its_types_and_its_values():
    first = identify_state("net", ARRAYS)
    assert first == identify_state("net", iter(ARRAYS))
    (a, kind, values), b = ARRAYS
    others = [
        identify_state("other", ARRAYS),
        identify_state("net", [("c", kind, values), b]),
        identify_state("net", [(a, "int32", values), b]),
        identify_state("net", [(a, kind, values.reshape(2, 2)), b]),
        identify_state("net", [(a, kind, values + 1), b]),
        identify_state("net", [b, (a, kind, values)]),
        identify_state("net", ARRAYS[:1]),
    ]
    assert len({first, *others}) == 8


def test_a_state_in_another_layout_of_memory_is_the_same():
    values = np.arange(6).reshape(2, 3)
    assert identify_state("", [("a", "", values)]) == identify_state("", [("a", "", np.asfortranarray(values))])
