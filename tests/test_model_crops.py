"""The preprocessing that a backend declares crops every sample photo as the library's own transform does."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featreg
from featreg.preprocess import crop

PHOTOS = sorted(
    path for path in (Path(__file__).parent.parent / "photos").glob("*/*") if path.suffix in (".jpg", ".png")
)


def torchvision_transform(name):
    from torchvision.models import get_model_weights
    from torchvision.transforms import functional

    preset = get_model_weights(name).DEFAULT.transforms()

    def transform(image):
        image = functional.resize(image, preset.resize_size, preset.interpolation, antialias=preset.antialias)
        return functional.center_crop(image, preset.crop_size)

    return transform, preset.mean, preset.std


def timm_transform(name):
    import timm
    from timm.data import create_transform, resolve_data_config

    config = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    return images_only(create_transform(**config, is_training=False)), config["mean"], config["std"]


def open_clip_transform(name):
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(name, pretrained=None)
    config = model.visual.preprocess_cfg
    return images_only(transform), config["mean"], config["std"]


def images_only(composed):
    steps = [
        step for step in composed.transforms if type(step).__name__ not in ("MaybeToTensor", "ToTensor", "Normalize")
    ]
    assert len(steps) == len(composed.transforms) - 2

    def transform(image):
        for step in steps:
            image = step(image)
        return image

    return transform


MODELS = {
    "torchvision:resnet50": torchvision_transform,
    "torchvision:efficientnet_b0": torchvision_transform,
    "torchvision:swin_t": torchvision_transform,
    "torchvision:vit_b_16": torchvision_transform,
    "timm:resnet50": timm_transform,
    "timm:resnet50.tv_in1k": timm_transform,
    "timm:vit_base_patch16_224": timm_transform,
    "timm:convnext_tiny": timm_transform,
    "timm:vit_base_patch16_siglip_224": timm_transform,
    "timm:tf_efficientnetv2_s": timm_transform,
    "open_clip:ViT-B-32": open_clip_transform,
    "open_clip:RN50": open_clip_transform,
}


def test_there_are_twelve_photos():
    assert len(PHOTOS) == 12


@pytest.mark.parametrize("model", MODELS)
def test_crops_are_byte_equal(model):
    transform, mean, std = MODELS[model](model.partition(":")[2])
    preprocess = featreg.describe(model).preprocess
    assert np.allclose(preprocess.mean, mean, rtol=0, atol=0)
    assert np.allclose(preprocess.std, std, rtol=0, atol=0)
    for path in PHOTOS:
        with Image.open(path) as image:
            expected = np.asarray(transform(image.convert("RGB")))
            assert np.array_equal(crop(np.asarray(image.convert("RGB")), preprocess), expected), path.name
