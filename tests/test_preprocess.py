"""Crops against the libraries' own transforms, up to the step that makes a tensor of them."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import featreg
from featreg.errors import ImageError, RequestError, SpecError
from featreg.images import MAX_PIXELS
from featreg.preprocess import crop, crop_size, load_images, resized
from featreg.spec import Preprocess

PHOTOS = Path(__file__).parent.parent / "photos"
FILES = sorted([*PHOTOS.glob("*/*.jpg"), *PHOTOS.glob("*/*.png")])
STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def torchvision_case(name):
    """A weights preset: torchvision's functions in the order of ImageClassification.forward, without normalising."""
    from torchvision.models import get_model_weights
    from torchvision.transforms import functional

    preset = get_model_weights(name).DEFAULT.transforms()
    resize, size = preset.resize_size[0], preset.crop_size[0]

    def transform(image):
        resized = functional.resize(image, [resize], interpolation=preset.interpolation, antialias=preset.antialias)
        return functional.center_crop(resized, [size])

    preprocess = Preprocess(
        resize=(resize, resize), crop=(size, size), interpolation=preset.interpolation.value, **STATISTICS
    )
    return transform, preprocess


def timm_case(**config):
    from timm.data import create_transform, resolve_data_config

    resolved = resolve_data_config({}, pretrained_cfg=config)
    size, mode = tuple(resolved["input_size"][1:]), resolved["crop_mode"]
    preprocess = Preprocess(
        resize=tuple(math.floor(side / resolved["crop_pct"]) for side in size),
        crop=size,
        mean=resolved["mean"],
        std=resolved["std"],
        resize_mode={"center": "shortest", "border": "longest", "squash": "exact"}[mode],
        interpolation=resolved["interpolation"],
        fill=tuple(round(255 * value) for value in resolved["mean"]) if mode == "border" else 0,
    )
    return images_only(create_transform(**resolved, is_training=False)), preprocess


def open_clip_case(size, resize_mode, interpolation="bicubic", fill=0):
    from open_clip.transform import image_transform

    transform = image_transform(
        size, is_train=False, resize_mode=resize_mode, interpolation=interpolation, fill_color=fill
    )
    pair = (size, size) if isinstance(size, int) else size
    preprocess = Preprocess(
        resize=pair,
        crop=None if resize_mode == "squash" else pair,
        resize_mode={"squash": "exact"}.get(resize_mode, resize_mode),
        interpolation=interpolation,
        fill=fill,
        **STATISTICS,
    )
    return images_only(transform), preprocess


def images_only(composed):
    """The steps of a Compose that give images: without those that make a tensor and normalise it."""
    steps = [step for step in composed.transforms if type(step).__name__ not in ("MaybeToTensor", "Normalize")]
    assert len(steps) == len(composed.transforms) - 2

    def transform(image):
        for step in steps:
            image = step(image)
        return image

    return transform


CASES = {
    "torchvision resnet50 (232, 224)": lambda: torchvision_case("resnet50"),
    "torchvision vit_b_16 (256, 224)": lambda: torchvision_case("vit_b_16"),
    "torchvision swin_t bicubic (232, 224)": lambda: torchvision_case("swin_t"),
    "torchvision efficientnet_b3 (320, 300)": lambda: torchvision_case("efficientnet_b3"),
    "torchvision inception_v3 (342, 299)": lambda: torchvision_case("inception_v3"),
    "timm center": lambda: timm_case(input_size=(3, 224, 224), crop_pct=0.95),
    "timm center, bilinear, odd": lambda: timm_case(input_size=(3, 225, 225), crop_pct=0.9, interpolation="bilinear"),
    "timm center, not square": lambda: timm_case(input_size=(3, 160, 96), crop_pct=0.875),
    "timm center, enlarged crop": lambda: timm_case(input_size=(3, 101, 101), crop_pct=1.1),
    "timm squash": lambda: timm_case(input_size=(3, 128, 96), crop_pct=0.9, crop_mode="squash"),
    "timm squash, whole": lambda: timm_case(input_size=(3, 64, 64), crop_pct=1.0, crop_mode="squash"),
    "timm border": lambda: timm_case(input_size=(3, 224, 224), crop_pct=1.0, crop_mode="border"),
    "timm border, cropped": lambda: timm_case(input_size=(3, 97, 61), crop_pct=0.9, crop_mode="border"),
    "open_clip shortest": lambda: open_clip_case(224, "shortest"),
    "open_clip shortest, bilinear": lambda: open_clip_case(77, "shortest", "bilinear"),
    "open_clip shortest, not square": lambda: open_clip_case((90, 140), "shortest"),
    "open_clip longest": lambda: open_clip_case(224, "longest", fill=127),
    "open_clip longest, not square": lambda: open_clip_case((61, 98), "longest", "bilinear"),
    "open_clip squash": lambda: open_clip_case((96, 112), "squash"),
}


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    """A library's transform, PIL image to PIL image, and the Preprocess that its settings amount to."""
    return CASES[request.param]()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_photos_are_cropped_as_the_library_crops_them(case, path):
    transform, preprocess = case
    with Image.open(path) as photo:
        rgb = photo.convert("RGB")
    expected = np.asarray(transform(rgb))
    assert np.array_equal(crop(np.asarray(rgb), preprocess), expected)
    assert expected.shape[:2] == crop_size(preprocess)


SIDES = st.one_of(st.integers(1, 40), st.integers(1, 400))


@settings(max_examples=25, deadline=None)
@given(height=SIDES, width=SIDES, seed=st.integers(0, 2**16))
def test_any_size_is_cropped_as_the_library_crops_it(case, height, width, seed):
    transform, preprocess = case
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    if 0 in resized(height, width, preprocess):
        with pytest.raises(ValueError, match="must be > 0"):
            transform(Image.fromarray(image))
        with pytest.raises(ImageError, match="empty"):
            crop(image, preprocess)
    else:
        assert np.array_equal(crop(image, preprocess), np.asarray(transform(Image.fromarray(image))))


@pytest.mark.parametrize("name", ["resnet50", "swin_t", "inception_v3"])
def test_the_torchvision_case_is_the_preset(name):
    """The case above against the preset as a whole: so that the oracle is torchvision, not a reading of it."""
    import torch
    from torchvision.models import get_model_weights

    preset = get_model_weights(name).DEFAULT.transforms()
    _, preprocess = torchvision_case(name)
    for path in FILES[:4]:
        with Image.open(path) as photo:
            rgb = photo.convert("RGB")
        found = torch.from_numpy(crop(np.asarray(rgb), preprocess).transpose(2, 0, 1).copy())
        mean, std = torch.tensor(preset.mean).view(3, 1, 1), torch.tensor(preset.std).view(3, 1, 1)
        assert torch.equal((found.float().div(255)).sub(mean).div(std), preset(rgb))


def preprocess(**fields):
    return Preprocess(**{"resize": (64, 64), "crop": (64, 64), **STATISTICS, **fields})


def test_without_resize_and_crop_the_image_is_returned_as_a_copy():
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    found = crop(image, preprocess(resize=None, crop=None))
    assert np.array_equal(found, image)
    assert not np.shares_memory(found, image)


def test_a_small_image_is_padded_with_the_fill_on_the_far_sides_first():
    found = crop(np.full((1, 2, 3), 9, np.uint8), preprocess(resize=None, crop=(2, 5), fill=(1, 2, 3)))
    assert found[:, :, 0].tolist() == [[1, 9, 9, 1, 1], [1, 1, 1, 1, 1]]
    assert found[1, 4].tolist() == [1, 2, 3]


def test_a_sliver_that_would_grow_beyond_all_bounds_is_refused():
    sliver = np.zeros((1, 10_000, 3), np.uint8)
    assert MAX_PIXELS < 256 * 10_000 * 256
    with pytest.raises(ImageError, match="resized to 2560000x256"):
        crop(sliver, preprocess(resize=(256, 256)))


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, (64, 64)),
        ({"crop": None}, None),
        ({"crop": None, "resize_mode": "exact", "resize": (10, 20)}, (10, 20)),
        ({"crop": None, "resize": None, "resize_mode": "exact"}, None),
        ({"resize": None, "crop": (3, 4)}, (3, 4)),
    ],
)
def test_crop_size_is_known_beforehand_or_none(fields, size):
    assert crop_size(preprocess(**fields)) == size


def test_load_images_stacks_crops():
    found = featreg.load_images([str(FILES[0]), FILES[1]], preprocess())
    assert found.shape == (2, 3, 64, 64)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    with Image.open(FILES[1]) as photo:
        expected = crop(np.asarray(photo.convert("RGB")), preprocess())
    assert np.array_equal(found[1].transpose(1, 2, 0), expected)


def test_load_images_takes_one_path():
    assert load_images(FILES[0], preprocess()).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_load_images_names_the_file_that_fails(tmp_path, content):
    path = tmp_path / "bad.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        load_images([FILES[0], path], preprocess())
    assert str(path) in caught.value.problem


def test_load_images_refuses_crops_of_several_sizes():
    with pytest.raises(RequestError, match="different sizes") as caught:
        load_images([FILES[0], FILES[1]], preprocess(crop=None))
    assert FILES[1].name in caught.value.got


def test_load_images_refuses_nothing():
    with pytest.raises(RequestError, match="no image"):
        load_images([], preprocess())


@pytest.mark.parametrize(
    "paths", [None, 5, [5], [None], [Image.new("RGB", (2, 2))], Image.new("RGB", (2, 2)), [io.BytesIO()], [b"x.jpg"]]
)
def test_load_images_takes_nothing_but_paths(paths):
    with pytest.raises(SpecError, match="from paths") as caught:
        load_images(paths, preprocess())
    [given] = paths if isinstance(paths, list) else [paths]
    assert caught.value.got == type(given).__name__
    assert "strings" in caught.value.expected


def test_load_images_names_a_path_that_no_file_can_have():
    with pytest.raises(ImageError, match=r"a\\x00b.*cannot be read"):
        load_images("a\0b.jpg", preprocess())


def test_load_images_asks_for_the_preprocessing_of_an_extractor():
    with featreg.create_extractor("numpy:tinynet", "C5") as extractor:
        for given in (extractor, {"crop": (2, 2)}, None):
            with pytest.raises(SpecError, match="preprocess") as caught:
                load_images(FILES[0], given)
            assert caught.value.remedy == "pass extractor.preprocess"
            assert caught.value.got == type(given).__name__


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


@pytest.mark.parametrize("model", MODELS)
def test_what_a_backend_declares_crops_as_its_library_does(model):
    assert len(FILES) == 12
    transform, mean, std = MODELS[model](model.partition(":")[2])
    preprocess = featreg.describe(model).preprocess
    assert np.allclose(preprocess.mean, mean, rtol=0, atol=0)
    assert np.allclose(preprocess.std, std, rtol=0, atol=0)
    for path in FILES:
        with Image.open(path) as image:
            expected = np.asarray(transform(image.convert("RGB")))
            assert np.array_equal(crop(np.asarray(image.convert("RGB")), preprocess), expected), path.name
