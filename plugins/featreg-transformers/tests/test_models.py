"""Models by name, what they declare, and the options of the backend, held against the library itself."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import featreg
from featreg import errors
from featreg.plugin import read_refused
from featreg.preprocess import crop
from featreg.registry import default_registry
from featreg_transformers.catalogue import model_types, published
from featreg_transformers.processors import to_preprocess

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)


def whole(extractor):
    """The library's network with an extractor's weights; what the extractor has dropped is random."""
    own = extractor.module.network
    network = type(own)(own.config).eval()
    network.load_state_dict(own.state_dict(), strict=False)
    return network


def test_every_refused_model_is_one_of_the_library_s_and_raises_its_reason():
    refused = read_refused("featreg_transformers")
    assert set(refused) <= set(model_types())
    for model, why in refused.items():
        with pytest.raises(errors.CapabilityError, match=why[:20]):
            featreg.describe(f"transformers:{model}")


@pytest.mark.parametrize("name", sorted(published()))
def test_a_known_configuration_is_one_of_the_library_s(name):
    """A misspelt entry would become an attribute of the configuration, and change nothing."""
    entry = published()[name]
    kind = transformers.models.auto.configuration_auto.CONFIG_MAPPING[entry.type]
    assert set(entry.config) - {"num_labels"} <= set(kind().to_dict())
    assert hasattr(transformers, entry.architecture)


def test_the_owner_may_stand_before_a_known_name():
    one, two = (featreg.describe(f"transformers:{name}") for name in ("dinov2-small", "facebook/dinov2-small"))
    assert one.features == two.features
    with pytest.raises(errors.UnknownModelError, match="dinov2-small") as caught:
        featreg.describe("transformers:google/dinov2-smal")
    assert "hf-hub:google/dinov2-smal" in str(caught.value)


def test_tokens_count_the_class_token_and_the_registers():
    tokens = featreg.describe("transformers:dinov2-with-registers-small").resolve("tokens")
    assert (tokens.prefix_tokens, tokens.class_token) == (5, True)
    assert featreg.describe("transformers:siglip-base-patch16-224").resolve("tokens").prefix_tokens == 0
    assert featreg.describe("transformers:deit-tiny-distilled-patch16-224").resolve("tokens").prefix_tokens == 2


def test_patches_that_leave_a_rest_of_the_image_are_counted_as_they_are():
    """SigLIP's 384 pixels hold 27 patches of 14, and 6 pixels more."""
    info = featreg.describe("transformers:siglip-so400m-patch14-384")
    assert info.input_rule.fixed == (384, 384)
    assert info.resolve("C4").shape(1, 384, 384) == (1, 1152, 27, 27)
    assert info.resolve("tokens").prefix_tokens == 0


def test_sizes_that_leave_a_rest_are_refused():
    """The library cuts a row of patches off."""
    for model, size in (("dinov2-small", (225, 224)), ("vit-base-patch16-224", (224, 240))):
        with pytest.raises(errors.InputError):
            featreg.describe(f"transformers:{model}", size)


def test_levels_are_those_of_the_table():
    shapes = {"C1": (64, 112), "C2": (256, 56), "C3": (512, 28), "C4": (1024, 14), "C5": (2048, 7)}
    info = featreg.describe("transformers:resnet-50", (224, 224))
    for level, (channels, side) in shapes.items():
        assert info.resolve(level).shape(1, 224, 224) == (1, channels, side, side)
    mobile = featreg.describe("transformers:mobilenet_v2", (224, 224))
    assert [mobile.resolve(f"C{k}").channels for k in range(1, 6)] == [16, 24, 32, 96, 320]
    assert mobile.resolve("features").channels == 1280


def test_a_swin_sees_no_image_before():
    """The library's layers shrink their windows to a small image, and leave them so for all later ones."""
    config = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "image_size": 64}
    large, small = (np.random.default_rng(1).standard_normal((1, 3, side, side), dtype=np.float32) for side in (96, 32))
    with featreg.create_extractor("transformers:swin", ["C3"], options={"config": config}) as extractor:
        first = extractor(large)["C3"]
        extractor(small)
        assert np.array_equal(extractor(large)["C3"], first)
        with torch.no_grad():
            wanted = whole(extractor)(
                pixel_values=torch.from_numpy(large), output_hidden_states=True
            ).reshaped_hidden_states[2]
        assert np.allclose(first, wanted, atol=1e-5)


def test_a_configuration_is_overridden():
    options = {"config": {**SMALL, "patch_size": 8}}
    with featreg.create_extractor("transformers:dinov2", [-1, "pooled"], options=options) as extractor:
        features = extractor(IMAGES)
        with torch.no_grad():
            output = whole(extractor)(pixel_values=torch.from_numpy(IMAGES), output_hidden_states=True)
    block = output.hidden_states[-1][:, 1:].transpose(1, 2).reshape(2, 32, 4, 4)
    assert np.allclose(features[-1], block, atol=1e-6)
    assert np.allclose(features["pooled"], output.pooler_output, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"config": {"hiden_size": 32}}, "hidden_size"),
        ({"config": {"hidden_size": "wide"}}, "hidden_size"),
        ({"config": {"return_dict": False}}, "return_dict"),
        ({"config": 3}, "entries of a configuration"),
        ({"interpolate_pos_encoding": "yes"}, "true or false"),
        ({"architecture": 3}, "name of a class"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(errors.SpecError, match=words):
        featreg.create_extractor("transformers:vit", ["C4"], options=options)


def test_another_class_of_the_type_may_be_asked_for():
    config = {**SMALL, "patch_size": 8, "num_labels": 7}
    options = {"config": config, "architecture": "Dinov2ForImageClassification"}
    with featreg.create_extractor("transformers:dinov2", ["logits"], options=options) as extractor:
        assert extractor(IMAGES)["logits"].shape == (2, 7)
    options = {"config": config, "architecture": "Dinov2Backbone"}
    with featreg.create_extractor("transformers:dinov2", [0, "C3"], options=options) as extractor:
        features = extractor(IMAGES)
        with torch.no_grad():
            maps = whole(extractor)(pixel_values=torch.from_numpy(IMAGES)).feature_maps
    assert np.allclose(features[0], maps[0], atol=1e-6)
    assert np.allclose(features["C3"], maps[-1], atol=1e-6)
    with pytest.raises(errors.CapabilityError, match="BertModel"):
        featreg.create_extractor("transformers:dinov2", ["C4"], options={"architecture": "BertModel"})


def test_positions_are_interpolated_where_that_is_asked_for():
    options = {"config": {**SMALL, "patch_size": 8}, "interpolate_pos_encoding": True}
    images = np.random.default_rng(0).standard_normal((1, 3, 40, 24), dtype=np.float32)
    with featreg.create_extractor("transformers:vit", ["tokens"], options=options) as extractor:
        tokens = extractor(images)["tokens"]
        assert tokens.shape == extractor.output_shapes((1, 3, 40, 24))["tokens"] == (1, 16, 32)
        with torch.no_grad():
            raw = whole(extractor)(pixel_values=torch.from_numpy(images), interpolate_pos_encoding=True)
        assert np.allclose(tokens, raw.last_hidden_state, atol=1e-6)
        with pytest.raises(errors.InputError):
            extractor(images[..., :-1])
    with pytest.raises(errors.CapabilityError, match="interpolate_pos_encoding"):
        featreg.create_extractor("transformers:resnet", ["C5"], options={"interpolate_pos_encoding": True})


@pytest.mark.parametrize("processor", ["ViT", "Bit", "ConvNext", "CLIP", "DeiT", "EfficientNet", "MobileNetV2"])
def test_a_processor_s_crop_is_its_own(processor):
    """Among them odd differences of image and crop, of which the library rounds the half down, and others to even.

    EfficientNet's takes the nearest pixels, for which Pillow's number is 0, and divides by the deviation twice.
    """
    values = {"ConvNext": {"size": {"shortest_edge": 224}}, "EfficientNet": published()["efficientnet-b0"].processor}
    own = getattr(transformers, f"{processor}ImageProcessorPil")(**values.get(processor, {}))
    picture = np.random.default_rng(0).integers(0, 256, (300, 360, 3), dtype=np.uint8)
    preprocess = to_preprocess(json.loads(own.to_json_string()) | {"resample": int(own.resample)})
    wanted = np.asarray(own(Image.fromarray(picture), return_tensors="np")["pixel_values"][0])
    mean, std = (np.asarray(values).reshape(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    got = (crop(picture, preprocess).transpose(2, 0, 1) / 255 - mean) / std
    assert got.shape == wanted.shape
    assert np.allclose(got, wanted, atol=1e-5)


def test_features_are_the_same_in_half_precision_but_for_rounding():
    options = {"config": {**SMALL, "patch_size": 8}}
    with featreg.create_extractor("transformers:dinov2", ["pooled"], dtype="bfloat16", options=options) as extractor:
        half = extractor(IMAGES)["pooled"]
    with featreg.create_extractor("transformers:dinov2", ["pooled"], options=options) as extractor:
        assert np.allclose(half, extractor(IMAGES)["pooled"], atol=0.1)


def test_the_registry_lists_both_kinds_of_names():
    names = default_registry().models("transformers")
    assert {"dinov2", "dinov2-small", "resnet-50", "swin"} <= set(names)
    assert "bert" not in names
