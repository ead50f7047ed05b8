"""Output strides of the networks that timm dilates in ``features_only`` alone: those of MobileNetV3's class."""

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import featreg
from featreg import errors

# as their features_only dilates: plain, padded as SAME, of another search, with inverted bottlenecks of two kinds
STRIDES = {
    "mobilenetv3_small_050": 16,
    "tf_mobilenetv3_small_075": 8,
    "lcnet_035": 8,
    "hardcorenas_a": 16,
    "fbnetv3_b": 16,
    "mobilenetv4_conv_small_035": 16,
}
LEVELS = ["C1", "C2", "C3", "C4", "C5"]


def draw_network(name):
    """timm's network with statistics of its own in every batch normalisation."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = timm.create_model(name).eval()
        for key, value in network.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    return network


def dilate(network, name, stride):
    """timm's own dilated feature extractor with the weights of a network."""
    twin = timm.create_model(name, features_only=True, output_stride=stride).eval()
    assert not twin.load_state_dict(network.state_dict(), strict=False).missing_keys
    return twin


def batch(height=97, width=75):
    return np.random.default_rng(1).standard_normal((2, 3, height, width), dtype=np.float32)


@pytest.mark.parametrize("name", STRIDES)
def test_levels_equal_those_of_timms_dilated_features(name, tmp_path):
    stride, network = STRIDES[name], draw_network(name)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    fields = {"weights": tmp_path / "w.pth", "output_stride": stride}
    with featreg.create_extractor(f"timm:{name}", [*LEVELS, "pooled", "logits"], **fields) as extractor:
        features, shapes = extractor(batch()), extractor.output_shapes((2, 3, 97, 75))
        reductions = [features.info[level].reduction for level in LEVELS]
    twin = dilate(network, name, stride)
    with torch.no_grad():
        maps = twin(torch.from_numpy(batch()))
        heads = {
            "pooled": network.forward_head(maps[-1], pre_logits=True),
            "logits": network.forward_head(maps[-1]),
        }
    assert reductions == twin.feature_info.reduction() == [min(2**level, stride) for level in range(1, 6)]
    for level, tensor in zip(LEVELS, maps, strict=True):
        assert np.array_equal(features[level], tensor.numpy()), level
    for head, tensor in heads.items():
        assert np.array_equal(features[head], tensor.numpy()), head
    assert shapes == {layer: array.shape for layer, array in features.items()}


def test_the_weights_of_a_folder_go_into_the_dilated_blocks(tmp_path):
    name = "lcnet_035"
    network = draw_network(name)
    content = {"architecture": name, "num_classes": 1000, "pretrained_cfg": network.pretrained_cfg}
    (tmp_path / "config.json").write_text(json.dumps(content))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    fields = {"weights": f"local-dir:{tmp_path}", "output_stride": 16}
    with featreg.create_extractor(f"timm:{name}", "C5", **fields) as extractor:
        found = extractor(batch())["C5"]
    with torch.no_grad():
        assert np.array_equal(found, dilate(network, name, 16)(torch.from_numpy(batch()))[-1].numpy())


@pytest.mark.parametrize("name", ["lcnet_035", "efficientnet_b0"])
@pytest.mark.parametrize("stride", [12, 64])
def test_a_stride_that_the_network_does_not_reach_is_refused(name, stride):
    """timm builds it with another, 8 or 32, and says nothing."""
    with torch.device("meta"):
        twin = timm.create_model(name, features_only=True, output_stride=stride)
    assert twin.feature_info.reduction()[-1] != stride
    with pytest.raises(errors.CapabilityError, match=f"output_stride={stride}"):
        featreg.create_extractor(f"timm:{name}", "C5", output_stride=stride)


def test_random_weights_are_those_of_the_undilated_network():
    with (
        featreg.create_extractor("timm:lcnet_035", "C5", output_stride=16) as dilated,
        featreg.create_extractor("timm:lcnet_035", "C5") as whole,
    ):
        ours, theirs = dilated.module.state_dict(), whole.module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
