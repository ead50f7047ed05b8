"""The preprocessing of every set of weights that torchvision lists, against torchvision's own transform."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model, get_model_builder, get_model_weights, list_models
from torchvision.transforms import InterpolationMode

from featreg import preprocess as core
from featreg.plugin import errors
from featreg_torch.backend import Variant
from featreg_torchvision.backend import TorchvisionBackend

BACKEND = TorchvisionBackend()
PACKAGES = {name: get_model_builder(name).__module__.split(".")[2] for name in list_models()}
WITH_PRESET = [name for name in list_models() if PACKAGES[name] not in ("detection", "video", "optical_flow")]
DETECTORS = [name for name in list_models() if PACKAGES[name] == "detection"]


@functools.cache
def image():
    values = np.random.default_rng(3).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((67, 90), Image.Resampling.BICUBIC)


# one set of weights for each of the presets that torchvision has
DISTINCT = {repr(one.transforms()): (name, one) for name in WITH_PRESET for one in get_model_weights(name)}


@pytest.mark.parametrize("name", WITH_PRESET)
def test_fields_of_every_tag(name):
    weights = list(get_model_weights(name))
    assert weights
    for one in weights:
        transform = one.transforms()
        found = BACKEND.preprocess(Variant(name, one.name))
        assert found.resize == tuple(transform.resize_size) * 2
        assert found.crop == (tuple(transform.crop_size) * 2 if hasattr(transform, "crop_size") else None)
        assert (list(found.mean), list(found.std)) == (transform.mean, transform.std)
        assert InterpolationMode(found.interpolation) == transform.interpolation
        assert (found.color, found.resize_mode) == ("RGB", "shortest")


@pytest.mark.parametrize(("name", "weights"), DISTINCT.values(), ids=[str(one) for _, one in DISTINCT.values()])
def test_pixels_of_every_preset(name, weights):
    found = BACKEND.preprocess(Variant(name, weights.name))
    pixels = torch.from_numpy(core.crop(np.asarray(image()), found).copy()).permute(2, 0, 1)
    ours = (pixels / 255 - torch.tensor(found.mean).view(3, 1, 1)) / torch.tensor(found.std).view(3, 1, 1)
    assert torch.allclose(ours, weights.transforms()(image()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", WITH_PRESET)
def test_every_tag_is_listed_and_without_one_the_default_s_preset_holds(name):
    variant = Variant(name)
    assert {one.name for one in get_model_weights(name)} <= set(BACKEND.tags(variant))
    default = get_model_weights(name.removeprefix("quantized_")).DEFAULT
    assert BACKEND.default_tag(variant) == default.name or name == "vit_h_14"
    assert BACKEND.preprocess(variant) == BACKEND.preprocess(Variant(name, BACKEND.default_tag(variant)))


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_s_own_resizing_and_normalisation_are_its_preprocessing(name):
    found = BACKEND.preprocess(Variant(name))
    with torch.device("meta"):
        transform = get_model(name, weights=None, weights_backbone=None).transform.eval()
    assert (list(found.mean), list(found.std)) == (transform.image_mean, transform.image_std)
    picture = np.asarray(image())
    tensor = torch.from_numpy(picture.copy()).permute(2, 0, 1) / 255
    expected = transform([tensor])[0].image_sizes[0]
    assert core.crop(picture, found).shape[:2] == tuple(expected)


@pytest.mark.parametrize("name", ["raft_large", "raft_small"])
def test_optical_flow_wants_values_from_minus_one_to_one(name):
    for one in get_model_weights(name):
        found = BACKEND.preprocess(Variant(name, one.name))
        expected, _ = one.transforms()(image(), image())
        pixels = torch.from_numpy(core.crop(np.asarray(image()), found).copy()).permute(2, 0, 1)
        assert torch.equal((pixels / 255 - 0.5) / 0.5, expected)
        assert set(found.mean + found.std) == {0.5}


def test_int8_weights_are_refused_with_the_float_ones_named():
    variant = Variant("quantized_resnet18", "IMAGENET1K_FBGEMM_V1")
    with pytest.raises(errors.CapabilityError, match="int8") as caught:
        BACKEND.pretrained(variant, "IMAGENET1K_FBGEMM_V1")
    assert "IMAGENET1K_V1" in str(caught.value)
