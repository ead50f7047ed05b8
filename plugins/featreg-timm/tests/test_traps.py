"""What timm's own feature extraction gets wrong, and that featreg does not: raw behaviour first, ours after it."""

import numpy as np
import pytest
import timm
import torch

import featreg
from featreg import errors

NAME = "test_resnet"
IMAGES = np.random.default_rng(0).standard_normal((1, 3, 64, 64), dtype=np.float32)


def raw_shapes(indices):
    network = timm.create_model(NAME, features_only=True, out_indices=indices).eval()
    with torch.no_grad():
        tensors = network(torch.from_numpy(IMAGES))
    return [tuple(tensor.shape) for tensor in tensors], network.feature_info.channels()


def our_shapes(layers):
    with featreg.create_extractor(f"timm:{NAME}", layers) as extractor:
        features = extractor(IMAGES)
        assert list(features) == list(layers) == list(extractor.feature_info)
        return [features[key].shape for key in layers], [extractor.feature_info[key].channels for key in layers]


def test_features_come_in_the_order_of_the_request():
    shapes, channels = raw_shapes((-1, 0))
    assert [shape[1] for shape in shapes] == channels[::-1] != channels, "timm: information and tensors disagree"
    shapes, channels = our_shapes([-1, 0])
    assert [shape[1] for shape in shapes] == channels


def test_repeated_indices_are_refused():
    shapes, channels = raw_shapes((1, 1))
    assert (len(shapes), len(channels)) == (1, 2), "timm: two descriptions of one tensor"
    with pytest.raises(errors.LayerError, match="more than once"):
        our_shapes([1, 1])


def test_index_0_is_the_first_feature():
    assert raw_shapes(0)[0] == [], "timm: the last 0 features"
    shapes, _ = our_shapes([0])
    assert len(shapes) == 1


def test_models_open_in_evaluation_mode():
    assert timm.create_model(NAME).training, "timm"
    with featreg.create_extractor(f"timm:{NAME}", ["C5"]) as extractor:
        assert not any(module.training for module in extractor.module.modules())


@pytest.mark.parametrize("name", ["coat_lite_tiny", "convit_tiny", "convmixer_768_32", "visformer_tiny"])
def test_every_index_has_the_shape_that_features_only_gives(name):
    with torch.device("meta"), torch.no_grad():
        network = timm.create_model(name, features_only=True).eval()
        shapes = [tuple(tensor.shape) for tensor in network(torch.empty(1, 3, 224, 224))]
    info = featreg.describe(f"timm:{name}")
    assert [info.resolve(index).shape(1, 224, 224) for index in network.feature_info.out_indices] == shapes


def test_plain_transformers_have_blocks_maps_and_tokens_at_once():
    name, layers = "test_vit", ["C4", "tokens", "block.3", "blocks.3"]
    with featreg.create_extractor(f"timm:{name}", layers) as extractor:
        size = extractor.info.input_size
        images = np.random.default_rng(1).standard_normal((2, 3, *size), dtype=np.float32)
        features = extractor(images)
        network = timm.create_model(name).eval()
        network.load_state_dict(extractor.module.network.state_dict(), strict=False)
        with pytest.raises(errors.LayerError) as caught:
            extractor.info.resolve("block.99")
    assert any(match.startswith("block.") for match in caught.value.matches)
    with torch.no_grad():
        final, maps = network.forward_intermediates(torch.from_numpy(images))
    assert np.array_equal(features["block.3"], maps[3].numpy())
    assert np.array_equal(features["C4"], maps[-1].numpy())
    assert np.array_equal(features["tokens"], final.numpy())
    assert features.info["tokens"].prefix_tokens == features.info["blocks.3"].prefix_tokens == network.num_prefix_tokens
    rows, columns = maps[3].shape[2:]
    patches = features["blocks.3"][:, network.num_prefix_tokens :]
    assert np.array_equal(patches.reshape(2, rows, columns, -1).transpose(0, 3, 1, 2), features["block.3"])


def test_no_size_is_promised_beyond_the_tables_of_relative_positions():
    network = timm.create_model("mvitv2_tiny").eval()
    with torch.no_grad(), pytest.raises(IndexError):
        network(torch.zeros(1, 3, 225, 225))
    with torch.device("meta"), torch.no_grad():
        assert timm.create_model("mvitv2_tiny").eval()(torch.empty(1, 3, 225, 225)).shape == (1, 1000), "no numbers"
    info = featreg.describe("timm:mvitv2_tiny")
    assert info.input_rule.fixed == (224, 224)
    with pytest.raises(errors.InputError):
        info.resolve("C5").shape(1, 225, 225)
