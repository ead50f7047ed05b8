from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featreg
from featreg.plugin import errors
from featreg_mindspore.libraries import mindcv, mindspore

MODEL = "mobilenet_v2_035_96"
URL = "https://download.mindspore.cn/toolkits/mindcv/mobilenet/mobilenetv2/mobilenet_v2_100-d5532038.ckpt"


@pytest.fixture(scope="module")
def network() -> Any:
    return mindcv.create_model(MODEL).set_train(False)


@pytest.fixture
def images() -> np.ndarray[Any, Any]:
    return np.random.default_rng(2).standard_normal((1, 3, 32, 32)).astype(np.float32)


def saved(network: Any, path: Path, **changes: Any) -> str:
    """A checkpoint of a network, some of its parameters replaced, or left out where None."""
    values = {name: mindspore.Tensor(value.asnumpy()) for name, value in network.parameters_dict().items()}
    values.update({name.replace("__", "."): value for name, value in changes.items()})
    entries = [{"name": name, "data": value} for name, value in values.items() if value is not None]
    mindspore.save_checkpoint(entries, str(path), format=path.suffix[1:])
    return str(path)


def opened(weights: str) -> featreg.Extractor:
    return featreg.create_extractor(f"mindspore:{MODEL}", "logits", weights=weights)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_checkpoint_gives_the_outputs_of_the_network_that_was_saved(
    suffix: str, network: Any, images: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    with opened(saved(network, tmp_path / f"net{suffix}")) as extractor:
        np.testing.assert_array_equal(extractor(images)["logits"], network(mindspore.Tensor(images)).asnumpy())


def test_every_mismatch_is_listed(network: Any, tmp_path: Path) -> None:
    path = saved(
        network,
        tmp_path / "other.ckpt",
        classifier__1__bias=mindspore.Tensor(np.zeros(10, np.float32)),
        classifier__1__weight=None,
        extra__weight=mindspore.Tensor(np.zeros(3, np.float32)),
    )
    with pytest.raises(errors.WeightsError) as caught:
        opened(path)
    assert "1 missing: classifier.1.weight" in caught.value.got
    assert "1 unexpected: extra.weight" in caught.value.got
    assert "1 of another shape: classifier.1.bias is (10,), not (1000,)" in caught.value.got


def test_the_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.WeightsError, match="do not match"):
        opened(saved(mindcv.create_model("resnet18"), tmp_path / "resnet.ckpt"))


@pytest.mark.parametrize("name", ["absent.ckpt", "imagenet1k"])
def test_a_path_that_is_not_there_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(errors.WeightsError, match=name):
        opened(str(tmp_path / name))


@pytest.mark.parametrize("name", ["broken.ckpt", "broken.safetensors", "empty.ckpt", "net.pth"])
def test_a_file_that_is_no_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"" if "empty" in name else b"no checkpoint\x00\xff" * 50)
    with pytest.raises(errors.WeightsError, match=name):
        opened(str(path))


def test_a_model_without_published_weights_says_so() -> None:
    with pytest.raises(errors.WeightsError, match="publishes no weights"):
        opened("default")


def test_a_failed_download_names_the_url_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(self: Any, url: str, file_path: str, chunk_size: int = 1024) -> None:
        Path(file_path).write_bytes(b"half")
        raise OSError(f"no route to {url}")

    monkeypatch.setattr(mindcv.models.helpers, "get_checkpoint_download_root", lambda: str(tmp_path / "cache"))
    monkeypatch.setattr(mindcv.utils.download.DownLoad, "download_file", fail)
    with pytest.raises(errors.WeightsError) as caught:
        featreg.create_extractor("mindspore:mobilenet_v2_100", "C2", weights="default")
    assert URL in caught.value.problem
    assert "mobilenet_v2_100-d5532038.ckpt" in caught.value.remedy
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_default_weights_are_downloaded_once_and_loaded(
    monkeypatch: pytest.MonkeyPatch, images: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    published = mindcv.create_model("mobilenet_v2_100").set_train(False)
    source = Path(saved(published, tmp_path / "published.ckpt"))
    calls: list[str] = []

    def fetch(self: Any, url: str, file_path: str, chunk_size: int = 1024) -> None:
        calls.append(url)
        Path(file_path).write_bytes(source.read_bytes())

    monkeypatch.setattr(mindcv.models.helpers, "get_checkpoint_download_root", lambda: str(tmp_path / "cache"))
    monkeypatch.setattr(mindcv.utils.download.DownLoad, "download_file", fetch)
    for _ in range(2):
        with featreg.create_extractor("mindspore:mobilenet_v2_100", "logits", weights="default") as extractor:
            np.testing.assert_array_equal(extractor(images)["logits"], published(mindspore.Tensor(images)).asnumpy())
    assert calls == [URL]
