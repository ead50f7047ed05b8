"""Weights from a seed, a tag or a file, and the preprocessing that belongs to them."""

from __future__ import annotations

import logging

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import featreg
from featreg import errors
from featreg_open_clip.backend import OpenClipBackend


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of tiny-vit that is not the seeded one: its path and tensors."""
    torch.manual_seed(7)
    state = open_clip.create_model("tiny-vit", pretrained_hf=False).state_dict()
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    return path, state


@pytest.fixture
def tags(monkeypatch, checkpoint):
    """Three tags of tiny-vit: one in a file, one only on the hub, one only behind a URL."""
    own = {
        "local_s1": {
            "file": str(checkpoint[0]),
            "mean": (0.1, 0.2, 0.3),
            "std": (0.4, 0.5, 0.6),
            "interpolation": "bilinear",
            "resize_mode": "squash",
        },
        "hub_s1": {"hf_hub": "somebody/tiny-vit/"},
        "url_s1": {"url": "https://example.invalid/tiny.pt"},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", own)
    return tuple(own)


def open_weights(weights, layers="embedding", model="tiny-vit"):
    return featreg.create_extractor(f"open_clip:{model}", layers, weights=weights)


def has_state(extractor, state):
    """Whether what is left of a network, the tower that was asked for, has these weights."""
    own = extractor.module.network.state_dict()
    return len(own) > 10 and all(torch.equal(own[name], state[name]) for name in own)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-coca", "tiny-rn", "tiny-convnext"])
def test_random_weights_are_the_same_each_time(name):
    first, second = (open_weights(None, model=name) for _ in range(2))
    assert has_state(first, second.module.network.state_dict())
    assert first.module is not second.module


def test_file(checkpoint, images):
    path, state = checkpoint
    extractor = open_weights(str(path))
    assert has_state(extractor, state)
    assert not has_state(open_weights(None), state)


def test_file_of_another_architecture(checkpoint):
    with pytest.raises(errors.WeightsError, match="do not fit") as caught:
        open_weights(str(checkpoint[0]), model="tiny-rn")
    assert "visual.bn1.weight" in caught.value.got
    assert "visual.conv1.weight (32, 3, 16, 16) for (4, 3, 3, 3)" in caught.value.got


def test_tag_is_loaded_by_open_clip_with_its_preprocessing(tags, checkpoint):
    extractor = open_weights("local_s1")
    assert has_state(extractor, checkpoint[1])
    preprocess = extractor.preprocess
    assert (preprocess.mean, preprocess.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (preprocess.resize_mode, preprocess.interpolation) == ("exact", "bilinear")
    assert open_weights(None).preprocess.resize_mode == "shortest"


@pytest.mark.parametrize("tag", ["lokal_s1", "default"])
def test_unknown_tag_is_refused_before_anything_is_downloaded(tag, tags, monkeypatch):
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: pytest.fail("downloads"))
    with pytest.raises(errors.WeightsError, match=tag) as caught:
        open_weights(tag)
    assert all(known in caught.value.expected for known in tags)
    assert ("local_s1" in caught.value.matches) == (tag == "lokal_s1")
    assert "checkpoint" in caught.value.remedy


def test_unknown_tag_of_a_real_model():
    with pytest.raises(errors.WeightsError) as caught:
        open_weights("laion2b_s34b_b79", model="ViT-B-32")
    assert "laion2b_s34b_b79k" in caught.value.matches


@pytest.mark.parametrize(
    ("tag", "download", "origin"),
    [
        ("hub_s1", "download_pretrained_from_hf", "somebody/tiny-vit/"),
        ("url_s1", "download_pretrained_from_url", "https://example.invalid/tiny.pt"),
    ],
)
def test_tag_that_cannot_be_downloaded(tag, download, origin, tags, monkeypatch, caplog):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip.pretrained, download, offline)
    with pytest.raises(errors.WeightsError, match=tag) as caught:
        open_weights(tag)
    assert origin in caught.value.expected
    assert "cache" in caught.value.expected
    assert "no route to host" in caught.value.got
    assert "checkpoint" in caught.value.remedy
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn", "tiny-convnext", "ViT-L-14-336", "ViT-B-16-SigLIP"])
def test_preprocessing_is_the_configuration_of_open_clip(name):
    with torch.device("meta"):
        network = open_clip.create_model(name, device="meta", pretrained_hf=False)
    config = open_clip.get_model_preprocess_cfg(network)
    preprocess = featreg.describe(f"open_clip:{name}").preprocess
    size = config["size"] if isinstance(config["size"], tuple) else (config["size"],) * 2
    assert (preprocess.resize, preprocess.crop) == (size, size)
    assert (preprocess.mean, preprocess.std) == (config["mean"], config["std"])
    assert (preprocess.resize_mode, preprocess.interpolation) == (config["resize_mode"], config["interpolation"])
    assert preprocess.fill == (config["fill_color"],) * 3


@pytest.mark.parametrize("tag", [None, "local_s1"])
def test_float_images_from_open_clips_transform_equal_uint8_crops(tag, tags):
    """The described crop and normalisation, done by hand, against open_clip's own transform."""
    extractor = open_weights(tag)
    _, _, transform = open_clip.create_model_and_transforms("tiny-vit", pretrained=tag)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    preprocess = extractor.preprocess
    method = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[preprocess.interpolation]
    if preprocess.resize_mode == "exact":
        crop = image.resize(preprocess.resize[::-1], method)
    else:
        wide = image.resize((int(64 * 90 / 70), 64), method)
        left = round((wide.width - 64) / 2)
        crop = wide.crop((left, 0, left + 64, 64))
    uint8 = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None]
    by_crop, by_transform = extractor(uint8)["embedding"], extractor(transform(image)[None])["embedding"]
    np.testing.assert_allclose(by_crop, by_transform, rtol=1e-4, atol=1e-5)


def test_building_does_not_configure_logging(monkeypatch, capfd):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    filters = list(root.filters)
    open_weights(None, "text_embedding")
    assert root.handlers == []
    assert root.filters == filters
    assert capfd.readouterr() == ("", "")


def test_notes_of_random_weights_reach_nobody(monkeypatch, checkpoint):
    class Collector(logging.Handler):
        def emit(self, record):
            seen.append(record.getMessage())

    seen = []
    monkeypatch.setattr(logging.getLogger(), "handlers", [Collector()])
    open_weights(str(checkpoint[0]))
    assert seen == []
    logging.getLogger().warning("of somebody else")
    assert seen == ["of somebody else"]


def test_describing_takes_no_memory_for_weights(monkeypatch):
    devices = []
    create = open_clip.create_model

    def watched(*arguments, **named):
        network = create(*arguments, **named)
        devices.append({tensor.device.type for tensor in network.state_dict().values()})
        return network

    monkeypatch.setattr(open_clip, "create_model", watched)
    for name in ("tiny-vit", "tiny-coca", "tiny-rn", "tiny-convnext"):
        OpenClipBackend().info(name)
    assert devices == [{"meta"}] * 4
