"""mindcv's own checkpoints: matched by name and shape, before and after mindcv's wrapper has renamed them."""

from __future__ import annotations

import hashlib
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
    present = {name: value for name, value in values.items() if value is not None}
    if path.suffix == ".npz":
        np.savez(path, **{name: value.asnumpy() for name, value in present.items()})
    else:
        entries = [{"name": name, "data": value} for name, value in present.items()]
        mindspore.save_checkpoint(entries, str(path), format=path.suffix[1:])
    return str(path)


def zeros(*shape: int) -> Any:
    return mindspore.Tensor(np.zeros(shape, np.float32))


def opened(weights: str, layers: Any = "logits", **fields: Any) -> featreg.Extractor:
    return featreg.create_extractor(f"mindspore:{MODEL}", layers, weights=weights, **fields)


# --- mindcv's own -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".npz"])
def test_a_checkpoint_gives_the_outputs_of_the_network_that_was_saved(
    suffix: str, network: Any, images: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    path = saved(network, tmp_path / f"net{suffix}")
    with opened(path) as extractor:
        np.testing.assert_array_equal(extractor(images)["logits"], network(mindspore.Tensor(images)).asnumpy())
        assert extractor.weights_report == featreg.WeightsReport(path, loaded=262)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".npz"])
def test_links_of_a_hubs_cache_are_followed(suffix: str, network: Any, tmp_path: Path) -> None:
    """A name without a suffix links to the file, or the other way."""
    path = Path(saved(network, tmp_path / f"net{suffix}"))
    (tmp_path / "weights").symlink_to(path)
    with opened(str(tmp_path / "weights")) as extractor:
        assert extractor.weights_report.loaded == 262  # type: ignore[union-attr]
    path.rename(tmp_path / "blob")
    (tmp_path / f"link{suffix}").symlink_to(tmp_path / "blob")
    with opened(str(tmp_path / f"link{suffix}")) as extractor:
        assert extractor.weights_report.loaded == 262  # type: ignore[union-attr]


def test_a_file_is_identified_by_its_content(network: Any, tmp_path: Path) -> None:
    path = saved(network, tmp_path / "net.npz")
    with opened(path) as extractor:
        assert extractor.weights_identity() == f"sha256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()}"


@pytest.mark.parametrize("weights", [None, "default"])
def test_the_average_is_chosen_in_a_file_alone(weights: str | None) -> None:
    with pytest.raises(errors.CapabilityError, match="the option 'ema'"):
        featreg.create_extractor(f"mindspore:{MODEL}", "C2", weights=weights, options={"ema": True})


def test_a_checkpoint_that_was_saved_after_wrapping_loads(images: np.ndarray[Any, Any], tmp_path: Path) -> None:
    """mindcv's own case for ``auto_mapping``: ``features.0.weight`` has become ``features_0.weight``."""
    indices = [1, 3, 6, 13, 17]
    wrapped = mindcv.create_model(MODEL, features_only=True, out_indices=indices).set_train(False)
    assert "features_0.weight" in wrapped.parameters_dict()
    expected = [array.asnumpy() for array in wrapped(mindspore.Tensor(images))]
    with opened(saved(wrapped, tmp_path / "wrapped.ckpt"), indices) as extractor:
        for index, array in zip(indices, expected, strict=True):
            np.testing.assert_array_equal(extractor(images)[index], array)
        assert "classifier.1.weight" in extractor.weights_report.kept  # type: ignore[union-attr]


def test_what_wrapping_cut_off_is_missed_where_it_is_needed(tmp_path: Path) -> None:
    wrapped = mindcv.create_model(MODEL, features_only=True, out_indices=[3])
    with pytest.raises(errors.WeightsError, match=r"missing: features\.6\."):
        opened(saved(wrapped, tmp_path / "wrapped.ckpt"), "C5")


def test_the_names_under_which_mindspore_keeps_parameters_are_known(tmp_path: Path) -> None:
    """RegNet's and Swin's own names leave places out: ``0.blocks.0.proj.weight`` lies in ``stages``."""
    regnet = mindcv.create_model("regnet_y_200mf").set_train(False)
    images = np.random.default_rng(2).standard_normal((1, 3, 64, 64)).astype(np.float32)
    assert "0.blocks.0.proj.weight" in regnet.parameters_dict()
    path = saved(regnet, tmp_path / "regnet.ckpt")
    with featreg.create_extractor("mindspore:regnet_y_200mf", "logits", weights=path) as extractor:
        np.testing.assert_array_equal(extractor(images)["logits"], regnet(mindspore.Tensor(images)).asnumpy())


def test_the_moving_averages_of_mindcvs_training_are_preferred(
    network: Any, images: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    averages = {f"ema__{name}": zeros(*value.shape) for name, value in network.parameters_dict().items()}
    path = saved(network, tmp_path / "both.ckpt", **averages)
    with opened(path) as extractor:
        assert not extractor(images)["logits"].any()
        assert extractor.weights_report.averaged  # type: ignore[union-attr]
    with opened(path, options={"ema": False}) as extractor:
        assert extractor(images)["logits"].any()


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_every_mismatch_is_listed(network: Any, tmp_path: Path) -> None:
    path = saved(
        network,
        tmp_path / "other.ckpt",
        classifier__1__bias=zeros(10),
        classifier__1__weight=None,
        extra__weight=zeros(3),
    )
    with pytest.raises(errors.WeightsError) as caught:
        opened(path)
    assert "1 missing: classifier.1.weight" in caught.value.got
    assert "1 unexpected: extra.weight" in caught.value.got
    assert "1 mis-shaped: classifier.1.bias (10,) for (1000,)" in caught.value.got


def test_another_classifier_is_left_out_where_it_is_not_needed(network: Any, tmp_path: Path) -> None:
    path = saved(network, tmp_path / "ten.ckpt", classifier__1__bias=zeros(10), classifier__1__weight=zeros(10, 1280))
    with opened(path, "pooled") as extractor:
        assert extractor.weights_report.kept == ("classifier.1.bias", "classifier.1.weight")  # type: ignore[union-attr]
    with pytest.raises(errors.WeightsError, match="2 mis-shaped"):
        opened(path, ["C2", "logits"])


def test_another_layer_of_another_shape_is_an_error_even_where_it_is_not_needed(network: Any, tmp_path: Path) -> None:
    path = saved(network, tmp_path / "other.ckpt", features__20__weight=zeros(8, 112, 1, 1))
    with pytest.raises(errors.WeightsError, match=r"1 mis-shaped: features\.20\.weight"):
        opened(path, "C1")


def test_the_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.WeightsError, match="do not fit"):
        opened(saved(mindcv.create_model("resnet18"), tmp_path / "resnet.ckpt"))


@pytest.mark.parametrize("name", ["absent.ckpt", "imagenet1k"])
def test_a_path_that_is_not_there_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(errors.WeightsError, match=name):
        opened(str(tmp_path / name))


@pytest.mark.parametrize("name", ["broken.ckpt", "broken.safetensors", "empty.ckpt", "net.pth", "net.npz", "net.txt"])
def test_a_file_that_is_no_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"" if "empty" in name else b"no checkpoint\x00\xff" * 50)
    with pytest.raises(errors.WeightsError, match=name):
        opened(str(path))


# --- mindcv's server --------------------------------------------------------------------------------------------------


def test_a_model_without_published_weights_says_so() -> None:
    with pytest.raises(errors.WeightsError, match="publishes no weights"):
        opened("default")


def test_a_failed_download_names_the_url_and_the_cache_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(self: Any, url: str, file_path: str, chunk_size: int = 1024) -> None:
        Path(file_path).write_bytes(b"half")
        raise OSError(f"no route to {url}")

    monkeypatch.setattr(mindcv.models.helpers, "get_checkpoint_download_root", lambda: str(tmp_path / "cache"))
    monkeypatch.setattr(mindcv.utils.download.DownLoad, "download_file", fail)
    with pytest.raises(errors.WeightsError) as caught:
        featreg.create_extractor("mindspore:mobilenet_v2_100", "C2", weights="default")
    assert URL in caught.value.problem
    assert str(tmp_path / "cache") in caught.value.expected
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
