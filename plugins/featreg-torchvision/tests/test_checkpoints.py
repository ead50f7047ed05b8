"""Checkpoints of others: another number of classes, and VISSL's trunk and projection head.

The VISSL files are made here as ``vissl/models/base_ssl_model.py`` (``get_classy_state``), ``models/trunks/resnext.py``
and ``models/heads/mlp.py`` of https://github.com/facebookresearch/vissl write them.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import featreg
from featreg.errors import CapabilityError, LayerError, SpecError, WeightsError

MODEL = "torchvision:resnet18"
WIDTH = 512


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return torchvision.models.resnet18(num_classes=10).eval()


@pytest.fixture(scope="module")
def batch():
    return np.random.default_rng(4).standard_normal((2, 3, 64, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def pooled(network, batch):
    with torch.no_grad():
        return nn.Sequential(*list(network.children())[:-1], nn.Flatten())(torch.from_numpy(batch))


def layer_4(network, batch):
    with torch.no_grad():
        return nn.Sequential(*list(network.children())[:-2])(torch.from_numpy(batch)).numpy()


def mlp(*widths, bn=False):
    parts = []
    for wide, narrow in pairwise(widths):
        parts += [nn.Linear(wide, narrow), *([nn.BatchNorm1d(narrow)] if bn else []), nn.ReLU()]
    with torch.random.fork_rng():
        torch.manual_seed(6)
        head = nn.Sequential(*parts[: -2 if bn else -1])
        for part in head:
            if isinstance(part, nn.BatchNorm1d):
                nn.init.normal_(part.running_mean)
                nn.init.uniform_(part.running_var, 0.5, 2)
    return head.eval()


def vissl(network, heads, **more):
    """What VISSL saves: the trunk's parts in ``_feature_blocks``, the heads as a list of modules."""
    trunk = {f"_feature_blocks.{n}": value for n, value in network.state_dict().items() if not n.startswith("fc.")}
    model = {"model": {"trunk": trunk, "heads": heads}, "meta": {"trunk": {}, "heads": []}}
    state = {"train": True, "base_model": model, "meters": {}, "optimizer": {"state": {}}, **more}
    return {"phase_idx": 3, "iteration": 40, "loss": {}, "type": "consolidated", "classy_state_dict": state}


def saved(content, tmp_path):
    torch.save(content, tmp_path / "model_final_checkpoint_phase99.torch")
    return tmp_path / "model_final_checkpoint_phase99.torch"


def in_one(head, where="0.clf"):
    return {f"{where}.{name}": value for name, value in head.state_dict().items()}


def opened(layers, weights, **fields):
    return featreg.create_extractor(MODEL, layers, weights=weights, **fields)


# --- another number of classes ----------------------------------------------------------------------------------------


def test_another_classifier_is_left_out_where_it_is_not_needed(network, batch, pooled, tmp_path):
    path = saved({"model": network.state_dict()}, tmp_path)
    with opened(["layer4", "pooled"], path) as extractor:
        found = extractor(batch)
        report = extractor.weights_report
    np.testing.assert_array_equal(found["layer4"], layer_4(network, batch))
    np.testing.assert_array_equal(found["pooled"], pooled.numpy())
    assert report.kept == ("fc.bias", "fc.weight")
    assert report.unwrapped == ("model",)


@pytest.mark.parametrize("layer", ["logits", "fc"])
def test_another_classifier_is_an_error_where_it_is_needed(layer, network, tmp_path):
    with pytest.raises(WeightsError) as caught:
        opened(["C2", layer], saved(network.state_dict(), tmp_path))
    assert "2 mis-shaped: fc.weight (10, 512) for (1000, 512), fc.bias (10,) for (1000,)" in caught.value.got


def test_a_checkpoint_without_some_other_layer_is_an_error_for_every_layer(network, tmp_path):
    state = {name: value for name, value in network.state_dict().items() if name != "layer4.1.bn2.weight"}
    with pytest.raises(WeightsError, match=r"1 missing: layer4\.1\.bn2\.weight"):
        opened("C2", saved(state, tmp_path))


def test_weights_of_a_tag_have_no_report():
    with opened("C1", None) as extractor:
        assert extractor.weights_report is None


# --- VISSL ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bn", [False, True])
def test_the_head_is_read_off_the_checkpoint(bn, network, batch, pooled, tmp_path):
    head = mlp(WIDTH, 32, 16, bn=bn)
    with opened(["pooled", "head", "layer4"], saved(vissl(network, in_one(head)), tmp_path)) as extractor:
        found = extractor(batch)
        info = extractor.feature_info["head"]
        report = extractor.weights_report
        assert extractor.output_shapes(batch.shape)["head"] == (2, 16)
    np.testing.assert_array_equal(found["pooled"], pooled.numpy())
    np.testing.assert_array_equal(found["layer4"], layer_4(network, batch))
    with torch.no_grad():
        np.testing.assert_allclose(found["head"], head(pooled).numpy(), rtol=1e-5, atol=1e-6)
    assert (info.kind, info.channels, info.level, info.head) == ("vector", 16, None, None)
    assert report.unwrapped == ("classy_state_dict", "base_model", "model", "trunk")
    assert report.kept == ("fc.bias", "fc.weight")
    assert report.notes == (f"projection head of {len(head.state_dict())} weights loaded",)


def test_a_head_in_parts_must_be_described(network, batch, pooled, tmp_path):
    """Whether an activation ends the first part no name tells: VISSL's SimCLR has one there."""
    head = mlp(WIDTH, 32, 16)
    parts = {f"{k}.clf.0.{name}": value for k in (0, 1) for name, value in head[2 * k].state_dict().items()}
    path = saved(vissl(network, parts), tmp_path)
    with pytest.raises(WeightsError, match="does not say by itself") as caught:
        opened("head", path)
    assert "options={'head'" in caught.value.remedy
    for relu in (True, False):
        with opened("head", path, options={"head": {"mlp": [WIDTH, 32, 16], "relu": relu}}) as extractor:
            found = extractor(batch)["head"]
        with torch.no_grad():
            expected = (head if relu else nn.Sequential(head[0], head[2]))(pooled).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_trunk_alone_says_that_there_is_a_head(network, batch, pooled, tmp_path):
    with opened("pooled", saved(vissl(network, in_one(mlp(WIDTH, 8))), tmp_path)) as extractor:
        np.testing.assert_array_equal(extractor(batch)["pooled"], pooled.numpy())
        assert extractor.weights_report.notes == (
            "projection head of 2 weights not loaded: the layer 'head' was not asked for",
        )


def test_a_trunk_that_was_set_up_for_extraction_loads(network, batch, pooled, tmp_path):
    content = vissl(network, {})
    model = content["classy_state_dict"]["base_model"]["model"]
    model["trunk"] = {f"base_model.{name}": value for name, value in model["trunk"].items()}
    with opened("pooled", saved(content, tmp_path)) as extractor:
        np.testing.assert_array_equal(extractor(batch)["pooled"], pooled.numpy())


@pytest.mark.parametrize(
    ("heads", "options", "error"),
    [
        ({}, {}, LayerError),  # no head at all
        ({}, {"head": {"mlp": [WIDTH, 8]}}, WeightsError),  # described, and not there
        (in_one(mlp(WIDTH, 8)), {"head": {"mlp": [WIDTH, 9]}}, WeightsError),
        (in_one(mlp(2048, 8)), {}, WeightsError),  # of another trunk
        (in_one(mlp(WIDTH, 8)), {"head": {"mlp": [WIDTH]}}, SpecError),
        (in_one(mlp(WIDTH, 8)), {"head": {"mlp": [WIDTH, 8], "gelu": True}}, SpecError),
        (in_one(mlp(WIDTH, 8)), {"projection": True}, CapabilityError),
    ],
)
def test_heads_that_cannot_be_are_refused(heads, options, error, network, tmp_path):
    with pytest.raises(error):
        opened("head", saved(vissl(network, heads), tmp_path), options=options)


def test_a_checkpoint_with_other_objects_says_how_to_convert_it(network, tmp_path):
    with pytest.raises(WeightsError, match="pickled objects are not loaded") as caught:
        opened("pooled", saved(vissl(network, {}, hooks=[np.float64(1)]), tmp_path))
    assert "content['classy_state_dict']['base_model']" in caught.value.remedy


def test_a_described_head_without_weights_is_random_and_the_same_each_time(batch):
    options = {"head": {"mlp": [WIDTH, 8], "bias": False}}
    first, second = (opened("head", None, options=options) for _ in range(2))
    with first, second:
        np.testing.assert_array_equal(first(batch)["head"], second(batch)["head"])


@pytest.mark.parametrize(("classes", "auxiliary"), [(21, False), (5, True)])
def test_a_segmentation_checkpoint_of_one_s_own_gives_its_levels(tmp_path, classes, auxiliary):
    """torchvision's own default has no auxiliary head, and other data has other classes."""
    name = "deeplabv3_mobilenet_v3_large"
    network = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=classes, aux_loss=auxiliary
    ).eval()
    path = saved(network.state_dict(), tmp_path)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with featreg.create_extractor(f"torchvision:{name}", ["C5"], weights=path, array="native") as extractor:
        found = extractor(images)["C5"]
    with torch.no_grad():
        expected = network.backbone(images)["out"]
    assert torch.equal(found, expected)
    if auxiliary:
        with pytest.raises(WeightsError, match="mis-shaped"):
            featreg.create_extractor(f"torchvision:{name}", ["interpolate"], weights=path)
