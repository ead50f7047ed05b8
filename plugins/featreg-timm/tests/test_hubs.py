"""Weights by the names that timm resolves itself: a folder written here, and a repository that cannot be reached."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from safetensors.torch import save_file

import featreg
from featreg import errors

MODEL = "test_resnet"


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(5)
    return timm.create_model(MODEL, num_classes=7).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, network):
    """As timm writes a model: its configuration and its weights."""
    place = tmp_path_factory.mktemp("model")
    config = {**network.pretrained_cfg, "mean": [0.1, 0.2, 0.3], "interpolation": "bilinear", "crop_pct": 1.0}
    content = {"architecture": MODEL, "num_classes": 7, "pretrained_cfg": config}
    (place / "config.json").write_text(json.dumps(content))
    save_file(network.state_dict(), place / "model.safetensors")
    return place


def test_a_folder_gives_the_weights_the_classes_and_the_preprocessing(folder, network):
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64), dtype=np.float32)
    with featreg.create_extractor(f"timm:{MODEL}", ["C4", "logits"], weights=f"local-dir:{folder}") as extractor:
        features = extractor(images)
        preprocess = extractor.preprocess
    with torch.no_grad():
        logits = network(torch.from_numpy(images)).numpy()
    assert features["logits"].shape == (2, 7)
    assert np.array_equal(features["logits"], logits)
    assert (preprocess.mean, preprocess.interpolation) == ((0.1, 0.2, 0.3), "bilinear")
    assert preprocess.resize == preprocess.crop


def test_a_folder_is_identified_by_what_it_holds(folder, network, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    identities = set()
    for place in (folder, tmp_path / "copy"):
        with featreg.create_extractor(f"timm:{MODEL}", ["C4"], weights=f"local-dir:{place}") as extractor:
            identities.add(extractor.weights_identity())
    assert len(identities) == 1
    other = {name: value + 1 for name, value in network.state_dict().items()}
    save_file(other, tmp_path / "copy" / "model.safetensors")
    with featreg.create_extractor(f"timm:{MODEL}", ["C4"], weights=f"local-dir:{tmp_path / 'copy'}") as extractor:
        assert extractor.weights_identity() not in identities


def test_a_repository_is_identified_by_the_revision_in_the_cache(folder, tmp_path, monkeypatch):
    """The cache as the Hub's client keeps it: ``refs`` name commits, ``snapshots`` hold their files."""
    cache = tmp_path / "models--someone--net"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(folder, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    for name, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        (cache / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for weights, commit in (("hf-hub:someone/net", "a" * 40), ("hf-hub:someone/net@v2", "b" * 40)):
        with featreg.create_extractor(f"timm:{MODEL}", ["C4"], weights=weights) as extractor:
            assert extractor.weights_identity() == f"hf-hub:someone/net@{commit}"


def test_a_folder_of_another_architecture_or_without_a_model_is_refused(folder, tmp_path):
    with pytest.raises(errors.WeightsError, match="another architecture") as caught:
        featreg.create_extractor("timm:resnet18", ["C5"], weights=f"local-dir:{folder}")
    assert (caught.value.expected, caught.value.got) == ("resnet18", MODEL)
    with pytest.raises(errors.WeightsError) as caught:
        featreg.create_extractor("timm:resnet18", ["C5"], weights=f"local-dir:{tmp_path}")
    assert str(tmp_path) in str(caught.value)


def test_weights_that_do_not_fit_are_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(errors.WeightsError):
        featreg.create_extractor(f"timm:{MODEL}", ["C5"], weights=f"local-dir:{tmp_path}")


def test_a_repository_that_cannot_be_reached_is_named_with_the_cache_and_the_way_out(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)
    with pytest.raises(errors.WeightsError) as caught:
        featreg.create_extractor("timm:resnet18", ["C5"], weights="hf-hub:someone/resnet18-of-mine")
    text = str(caught.value)
    for word in ("someone/resnet18-of-mine", HF_HUB_CACHE, "no network", "/path/to/file"):
        assert word in text
