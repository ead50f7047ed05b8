"""What open_clip does unasked, shown on the library itself, and what this backend does instead."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import timm
import torch

import featreg
from featreg import errors

END = 49407
LONG = " ".join(["dog", *["cat"] * 40])


def open_model(name, layers, **fields):
    return featreg.create_extractor(f"open_clip:{name}", layers, **fields)


def test_stop_early_of_the_resnet_is_inverted(raw_model, images, hooked):
    extractor = open_model("tiny-rn", [1, "embedding"])
    batch, network = images(extractor), raw_model(extractor)
    with torch.no_grad():
        with pytest.raises(
            RuntimeError
        ):  # the attention pool gets the first stage, since the others have been left out
            network.forward_intermediates(image=batch, image_indices=[1])
        whole = network.visual(batch)
    features = extractor(batch)
    stage = hooked(network, ["visual.layer1"], batch)["visual.layer1"]
    np.testing.assert_array_equal(features[1], stage.numpy())
    np.testing.assert_array_equal(features["embedding"], whole.numpy())


def test_index_0_of_the_resnet_is_not_timms():
    """The same network: open_clip's first intermediate is after the stem's pooling, timm's before."""
    theirs = timm.create_model("resnet50_clip", features_only=True).feature_info
    assert theirs.reduction() == [2, 4, 8, 16, 32]
    info = featreg.describe("open_clip:RN50")
    assert [info.resolve(index).reduction for index in range(5)] == [4, 4, 8, 16, 32]
    assert [info.resolve(level).reduction for level in ("C1", "C2", "C3", "C4", "C5")] == theirs.reduction()
    assert [info.resolve(level).channels for level in ("C1", "C2", "C3", "C4", "C5")] == theirs.channels()


@pytest.mark.parametrize(("layer", "encode"), [("embedding", "encode_image"), ("text_embedding", "encode_text")])
def test_coca_normalises_both_embeddings_by_default(layer, encode, raw_model, images):
    extractor = open_model("tiny-coca", layer)
    texts = ["a cat", "a dog"]
    batch = images(extractor) if layer == "embedding" else texts
    inputs = batch if layer == "embedding" else open_clip.get_tokenizer("tiny-coca")(texts)
    network = raw_model(extractor)
    with torch.no_grad():
        default, plain = (getattr(network, encode)(inputs, **named) for named in ({}, {"normalize": False}))
    np.testing.assert_allclose(np.linalg.norm(default.numpy(), axis=1), 1, rtol=1e-5)
    ours = extractor(batch)[layer]
    np.testing.assert_array_equal(ours, plain.numpy())
    assert not np.allclose(ours, default.numpy(), atol=1e-3)


def test_tokenizer_of_no_model_is_a_default_one():
    assert open_clip.get_tokenizer("nope")(["a cat"]).shape == (1, 77)
    with pytest.raises(errors.UnknownModelError):
        open_model("nope", "text_embedding")


def test_tokenizer_of_openais_name_is_a_default_one():
    """It fits OpenAI's own models only because their context is the default's."""
    assert open_clip.get_tokenizer("ViT-B/32").context_length == 77
    assert open_clip.get_tokenizer("tiny/vit").context_length == 77
    with pytest.raises(errors.UnknownModelError):
        open_model("tiny/vit", "text_embedding")


def test_long_texts_are_cut_silently():
    tokens = open_clip.get_tokenizer("tiny-vit")([LONG])
    assert tokens.shape == (1, 12)
    assert tokens[0, -1] == END
    with pytest.raises(errors.InputError, match="too long"):
        open_model("tiny-vit", "text_embedding")([LONG])


def test_models_come_in_training_mode():
    network, _, _ = open_clip.create_model_and_transforms("tiny-vit")
    assert network.training
    extractor = open_model("tiny-vit", "embedding")
    assert not any(module.training for module in extractor.module.modules())


def test_images_of_another_size_are_cropped_silently(raw_model):
    """A patch embedding leaves out the pixels of an incomplete patch: the last row and column here do not count."""
    extractor = open_model("tiny-vit", "embedding")
    network = raw_model(extractor)
    images = torch.randn(1, 3, 65, 65, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        np.testing.assert_array_equal(network.encode_image(images), network.encode_image(images[..., :64, :64]))
    with pytest.raises(errors.InputError, match="size"):
        extractor(images)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
def test_values_depend_on_the_batch_by_rounding_alone(name, images):
    extractor = open_model(name, "embedding")
    batch = images(extractor, batch=5)
    whole = extractor(batch)["embedding"]
    for rows in (slice(0, 1), slice(1, 4), slice(4, 5)):
        np.testing.assert_allclose(extractor(batch[rows])["embedding"], whole[rows], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(extractor(batch)["embedding"], whole)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-3), ("bfloat16", 4e-2)])
@pytest.mark.parametrize("layer", ["embedding", "text_embedding"])
def test_half_precision_runs_on_the_cpu_too(layer, dtype, tolerance, images):
    exact, half = (open_model("tiny-vit", layer, dtype=one) for one in ("float32", dtype))
    batch = images(exact) if layer == "embedding" else ["a cat", "a dog"]
    expected, found = exact(batch)[layer], half(batch)[layer].astype(np.float32)
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max() * 2
    assert not np.array_equal(found, expected)
