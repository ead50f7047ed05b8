"""Which file a name stands for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import featreg
from featreg import errors
from featreg.cli.main import cli
from featreg_onnx.nets import make_resnet


@pytest.fixture
def zoo(tmp_path: Path, save: Any, resnet: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two listed folders, which both have ``net.onnx``, and a folder that is not there."""
    save(resnet, "first/net.onnx")
    save(resnet, "first/deep/small.onnx")
    save(resnet, "second/net.onnx")
    save(resnet, "second/other.onnx")
    folders = [tmp_path / name for name in ("first", "absent", "second")]
    monkeypatch.setenv("FEATREG_ONNX_PATH", os.pathsep.join(map(str, folders)))
    return tmp_path


def test_nothing_is_listed_without_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEATREG_ONNX_PATH", raising=False)
    assert featreg.list_models("onnx") == ()


def test_files_of_the_folders_are_listed(zoo: Path) -> None:
    assert featreg.list_models("onnx") == ("deep/small.onnx", "net.onnx", "other.onnx")
    assert featreg.list_models("onnx", "deep/*") == ("deep/small.onnx",)
    assert featreg.describe("onnx:deep/small.onnx").id == "onnx:deep/small.onnx"


def test_the_first_folder_that_has_a_name_counts(zoo: Path) -> None:
    with featreg.create_extractor("onnx:net.onnx", "C2") as one:
        before = one.weights_identity()
    (zoo / "second/net.onnx").write_bytes(make_resnet((4, 4, 4, 4, 4)).SerializeToString())
    with featreg.create_extractor("onnx:net.onnx", "C2") as again:
        assert again.weights_identity() == before
    (zoo / "first/net.onnx").unlink()
    with featreg.create_extractor("onnx:net.onnx", "C2") as other:
        assert other.feature_info["C2"].channels == 4


def test_a_path_is_a_name(save: Any, resnet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save(resnet)
    monkeypatch.chdir(tmp_path)
    for name in (model, "onnx:net.onnx", "onnx:./net.onnx", "net.onnx"):
        assert featreg.describe(name).model in (name.removeprefix("onnx:"), "net.onnx")


def test_an_unknown_path_names_its_neighbours(zoo: Path) -> None:
    with pytest.raises(errors.UnknownModelError) as caught:
        featreg.describe(f"onnx:{zoo}/second/othr.onnx")
    assert caught.value.matches[0] == str(zoo / "second/other.onnx")

    with pytest.raises(errors.UnknownModelError) as caught:
        featreg.describe("onnx:othr.onnx")
    assert caught.value.matches[0] == "other.onnx"
    assert "FEATREG_ONNX_PATH" in caught.value.remedy


def test_the_command_says_where_files_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEATREG_ONNX_PATH", raising=False)
    done = CliRunner().invoke(cli, ["models", "onnx"])
    assert done.exit_code != 0
    assert "FEATREG_ONNX_PATH holds folders" in done.output


@pytest.mark.parametrize("name", ["onnx:nowhere/at/all.onnx", "onnx:resnet50", "onnx:"])
def test_what_is_no_file_is_unknown(name: str) -> None:
    with pytest.raises(errors.UnknownModelError) as caught:
        featreg.create_extractor(name, "C2")
    assert "path of any .onnx file" in caught.value.remedy


def test_a_folder_and_a_file_of_another_kind_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"")
    for name in ("folder.onnx", "photo.jpg"):
        with pytest.raises(errors.UnknownModelError):
            featreg.describe(f"onnx:{tmp_path / name}")
