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


# what forward_features gives: CoaT's class token and patches, patches alone, TNT's (whose parameters count the prefix)
SEQUENCES = {"coat_lite_tiny": 1, "gmlp_ti16_224": 0, "efficientformer_l1": 0, "tnt_s_legacy_patch16_224": 1}


@pytest.mark.parametrize("name", SEQUENCES)
def test_tokens_are_the_sequence_of_forward_features_and_features_its_map(name, tmp_path):
    prefix, network = SEQUENCES[name], build(name)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    with featreg.create_extractor(f"timm:{name}", ["features", "tokens"], weights=str(tmp_path / "w.pth")) as extractor:
        heads = {head: extractor.info.resolve(head) for head in ("features", "tokens")}
        images = images_for(extractor.info.input_size)
        features = extractor(images)
    with torch.no_grad():
        sequence = network.forward_features(torch.from_numpy(images))
        (last,) = network.forward_intermediates(torch.from_numpy(images), [-1], norm=True, intermediates_only=True)
    assert np.array_equal(features["tokens"], sequence.numpy())
    assert np.array_equal(features["features"], last.numpy()), "timm's own order of the patches"
    assert (heads["tokens"].prefix_tokens, heads["tokens"].class_token) == (prefix, prefix > 0)
    assert {head: info.shape(1, *images.shape[2:]) for head, info in heads.items()} == {
        "tokens": tuple(sequence.shape),
        "features": tuple(last.shape),
    }


# the class tokens alone; vectors of states beside the map; the tokens of several scales
LAST_LEVELS = {"pit_ti_224": "C5", "efficientvim_m1": "C6", "coat_tiny": "C5"}


@pytest.mark.parametrize("name", LAST_LEVELS)
def test_the_last_level_is_the_final_map_where_forward_features_gives_none(name, tmp_path):
    network = build(name)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    layers = [LAST_LEVELS[name], "features", "pooled"]
    with featreg.create_extractor(f"timm:{name}", layers, weights=str(tmp_path / "w.pth")) as extractor:
        declared = [info.level for info in extractor.info.features if info.level]
        heads = [info.head for info in extractor.info.features if info.head]
        images = images_for(extractor.info.input_size)
        features = extractor(images)
    with torch.no_grad():
        *_, last = network.forward_intermediates(torch.from_numpy(images), intermediates_only=True)
        pooled = network.forward_head(network.forward_features(torch.from_numpy(images)), pre_logits=True)
    assert declared[-1] == LAST_LEVELS[name]
    assert heads == ["features", "pooled", "logits"]
    assert np.array_equal(features["features"], last.numpy())
    assert np.array_equal(features[LAST_LEVELS[name]], last.numpy())
    assert np.array_equal(features["pooled"], pooled.numpy())


def test_registers_before_a_final_sequence_are_counted():
    tokens = featreg.describe("timm:naflexvit_base_patch16_gap").resolve("tokens")
    with torch.device("meta"):
        network = timm.create_model("naflexvit_base_patch16_gap").eval()
        sequence = network.forward_features(torch.empty(1, 3, 384, 384))
    assert network.embeds.cls_token is None
    assert (tokens.prefix_tokens, tokens.class_token) == (network.embeds.reg_token.shape[1], False)
    assert tokens.shape(1, 384, 384) == tuple(sequence.shape)


def test_the_class_token_of_a_network_with_one_for_each_scale_is_found():
    with featreg.create_extractor("timm:coat_lite_tiny", ["tokens"], pool="cls") as extractor:
        images = images_for((224, 224))
        features = extractor(images)
        network = timm.create_model("coat_lite_tiny").eval()
        network.load_state_dict(extractor.module.network.state_dict(), strict=False)
    with torch.no_grad():
        assert np.array_equal(features["tokens"], network.forward_features(torch.from_numpy(images))[:, 0].numpy())


def test_a_grid_that_the_declared_stride_gives_has_that_stride():
    """LeViT has 4x4 cells at 224, which 56 and 64 pixels give alike; timm says 64."""
    info = featreg.describe("timm:levit_128s")
    with torch.device("meta"):
        declared = timm.create_model("levit_128s").feature_info
    assert [info.resolve(level).reduction for level in ("C4", "C5", "C6")] == [one["reduction"] for one in declared]
    assert info.resolve("features").reduction == declared[-1]["reduction"]
    assert info.resolve("C6").shape(1, 224, 224) == (1, 384, 4, 4)
