"""Levels of networks whose declared modules give no map: timm's own ``forward_intermediates``, bit for bit."""

import numpy as np
import pytest
import timm
import torch

import featreg
from featreg import errors

# name: {level: index}; the declared modules give lists or are not there, give tokens in their own order, give lists
LEVELS = {
    "hrnet_w18_small": {"C1": 0, "C2": 1, "C3": 2, "C4": 3, "C5": 4},
    "levit_128s": {"C4": 0, "C5": 1, "C6": 2},
    "crossvit_tiny_240": {"C4": 5},
}


def build(name):
    """timm's network with weights that leave no block without effect, as zero-initialised ones would."""
    network, generator = timm.create_model(name).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return network


def images_for(size):
    return np.random.default_rng(0).standard_normal((1, 3, *size), dtype=np.float32)


@pytest.mark.parametrize("name", LEVELS)
def test_levels_equal_forward_intermediates_and_come_with_heads(name, tmp_path):
    levels, network = LEVELS[name], build(name)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    layers = [*levels, "pooled", "logits"]
    with featreg.create_extractor(f"timm:{name}", layers, weights=str(tmp_path / "w.pth")) as extractor:
        declared = {info.level for info in extractor.info.features if info.level}
        images = images_for(extractor.info.input_size)
        features, shapes = extractor(images), extractor.output_shapes(images.shape)
    with torch.no_grad():
        _, maps = network.forward_intermediates(torch.from_numpy(images))
        logits = network(torch.from_numpy(images))
    assert declared == set(levels)
    for level, index in levels.items():
        assert np.array_equal(features[level], maps[index].numpy()), level
    assert np.array_equal(features["logits"], logits.numpy())
    assert shapes == {layer: array.shape for layer, array in features.items()}


def test_maps_can_be_asked_for_by_name_and_are_listed():
    name = "forward_intermediates[5]"
    nodes = {node.name: node.shape for node in featreg.list_nodes("timm:crossvit_tiny_240")}
    assert nodes[name] == featreg.describe("timm:crossvit_tiny_240").resolve("C4").shape(1, 240, 240)[1:]
    with featreg.create_extractor("timm:crossvit_tiny_240", [name, "C4"]) as extractor:
        features = extractor(images_for((240, 240)))
    assert np.array_equal(features[name], features["C4"])


def test_levels_alone_stop_before_the_head():
    with featreg.create_extractor("timm:hrnet_w18_small", ["C1"]) as extractor:
        ran = []
        extractor.module.network.layer1.register_forward_hook(lambda *_: ran.append("layer1"))
        extractor(images_for((64, 64)))
        assert not ran
        assert "classifier.weight" not in dict(extractor.module.network.named_parameters())


def test_a_silently_resized_input_is_refused():
    network = timm.create_model("crossvit_tiny_240").eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 193, 257)).shape == (1, 1000), "timm resizes any image to 240x240"
    info = featreg.describe("timm:crossvit_tiny_240")
    assert info.input_rule.fixed == (240, 240)
    with pytest.raises(errors.InputError):
        featreg.describe("timm:crossvit_tiny_240", (193, 257))


def test_channels_are_those_of_the_blocks_where_timm_folds_tokens_into_them():
    name, size = "vitamin_xlarge_256", (193, 257)
    with torch.device("meta"), torch.no_grad():
        network = timm.create_model(name).eval()
        maps = network.forward_intermediates(torch.empty(1, 3, *size), indices=[31], intermediates_only=True)
        tokens = network.blocks[31](network.patch_embed(torch.empty(1, 3, *size)))
    assert maps[0].shape == (1, 1326, 12, 16), "timm"
    assert tokens.shape == (1, 13 * 17, 1152)
    assert featreg.describe(f"timm:{name}", size).resolve("C4").shape(1, *size) == (1, 1152, 13, 17)


def test_a_level_is_named_after_the_stride_that_its_map_has():
    network = timm.create_model("tresnet_m").eval()
    assert network.feature_info[0]["reduction"] == 2
    with torch.no_grad():
        first = network.forward_intermediates(torch.zeros(1, 3, 64, 64), indices=[0], intermediates_only=True)[0]
    assert first.shape[2:] == (16, 16), "space to depth by 4"
    info = featreg.describe("timm:tresnet_m")
    assert info.resolve(0).reduction == 4
    assert [feature.level for feature in info.features if feature.level] == ["C2", "C3", "C4", "C5"]


def test_an_encoder_has_no_head_behind_its_features():
    info = featreg.describe("timm:qwen3_vit_88m_enc")
    assert [feature.head for feature in info.features if feature.head] == ["features"]
    with pytest.raises(errors.CapabilityError, match="logits"):
        info.resolve("logits")


def test_a_map_of_as_many_channels_as_rows_and_columns_keeps_its_level():
    info = featreg.describe("timm:maxvit_rmlp_tiny_rw_256")
    assert info.input_rule.fixed == (256, 256)
    assert info.resolve("C2").name == "stages.0"
    assert info.resolve("C2").shape(1, 256, 256) == (1, 64, 64, 64)
