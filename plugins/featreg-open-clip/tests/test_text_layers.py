"""Inner layers of text towers by their native names, against hooks on open_clip's own network, bit for bit."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch

import featreg
from featreg import errors

TEXTS = ["a photo of a cat", "", "a diagram!"]
PREFIX = {"tiny-vit": "", "tiny-bias": "text.", "tiny-coca": "text."}
LENGTH = {"tiny-vit": 12, "tiny-bias": 12, "tiny-coca": 12}  # CoCa: 11 tokens and its class token, which comes last


def hooked_texts(network, names, tokens):
    found, handles = {}, []
    for name in names:
        keep = lambda _, __, output, name=name: found.__setitem__(name, output.clone())  # noqa: E731
        handles.append(network.get_submodule(name).register_forward_hook(keep))
    with torch.no_grad():
        network.encode_text(tokens)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", PREFIX)
def test_blocks_are_sequences_of_the_text(name, raw_model):
    layers = [f"{PREFIX[name]}transformer.resblocks.{index}" for index in (1, 0)]
    layers += [f"{PREFIX[name]}transformer", "text_embedding"]
    extractor = featreg.create_extractor(f"open_clip:{name}", layers)
    features = extractor(TEXTS)
    tokens = open_clip.get_tokenizer(name)(TEXTS)
    raw = hooked_texts(raw_model(extractor), layers[:3], tokens)
    assert list(features) == layers
    for layer in layers[:3]:
        np.testing.assert_array_equal(features[layer], raw[layer].numpy(), strict=True)
        info = extractor.feature_info[layer]
        assert (info.kind, info.length, info.channels, info.reduction) == ("tokens", LENGTH[name], 16, None)
        assert info.shape(3, 1, 1) == features[layer].shape == (3, LENGTH[name], 16)


def test_final_norm_and_embedding_of_the_tokens(raw_model):
    layers = ["token_embedding", "ln_final"]
    extractor = featreg.create_extractor("open_clip:tiny-vit", layers)
    raw = hooked_texts(raw_model(extractor), layers, open_clip.get_tokenizer("tiny-vit")(TEXTS))
    for layer, array in extractor(TEXTS).items():
        np.testing.assert_array_equal(array, raw[layer].numpy())


def test_an_early_block_does_without_the_later_ones_and_the_image_tower():
    extractor = featreg.create_extractor("open_clip:tiny-vit", "transformer.resblocks.0")
    names = set(extractor.module.network.state_dict())
    assert names
    assert not {name for name in names if name.startswith(("visual.", "transformer.resblocks.1", "ln_final"))}


def test_texts_of_a_model_whose_images_have_rotary_embeddings(monkeypatch):
    """timm's modules of these look at their buffers when they are moved, also where nothing needs them."""
    vision = {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": None, "image_size": 224}
    config = {**open_clip.get_model_config("tiny-bias"), "vision_cfg": vision}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-rope", config)
    extractor = featreg.create_extractor("open_clip:tiny-rope", "text_embedding")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = open_clip.create_model("tiny-rope").eval()
    with torch.no_grad():
        expected = network.encode_text(open_clip.get_tokenizer("tiny-rope")(TEXTS))
    np.testing.assert_array_equal(extractor(TEXTS)["text_embedding"], expected.numpy())
    assert not [name for name in extractor.module.network.state_dict() if name.startswith("visual.")]


def test_pooling_and_native_arrays():
    pooled = featreg.create_extractor("open_clip:tiny-vit", "transformer.resblocks.1", pool="avg")(TEXTS)
    whole = featreg.create_extractor("open_clip:tiny-vit", "transformer.resblocks.1", array="native")(TEXTS)
    np.testing.assert_allclose(*(next(iter(one.values())) for one in (pooled, whole.pool("avg"))), rtol=1e-6)


def test_layers_of_both_towers_are_not_mixed():
    for layers in (["transformer.resblocks.0", "embedding"], ["C4", "text_embedding"], ["encode_text", 0]):
        with pytest.raises(errors.LayerError, match="together") as caught:
            featreg.create_extractor("open_clip:tiny-vit", layers)
        assert "two extractors" in caught.value.remedy


def test_a_decoder_that_does_not_run_is_no_layer():
    with pytest.raises(errors.CapabilityError, match="does not run"):
        featreg.create_extractor("open_clip:tiny-coca", "text_decoder.resblocks.0")
    with pytest.raises(errors.LayerError) as caught:
        featreg.create_extractor("open_clip:tiny-coca", "text.transformer.resblocks.7")
    assert "text.transformer.resblocks.0" in caught.value.matches


def test_nodes_list_the_text_tower_with_its_shapes():
    nodes = {node.name: node.shape for node in featreg.list_nodes("open_clip:tiny-vit")}
    assert nodes["transformer.resblocks.1"] == (12, 16)
    assert nodes["encode_text"] == (24,)
    assert nodes["visual.transformer.resblocks.1"] == (17, 32)


def test_images_are_no_texts():
    extractor = featreg.create_extractor("open_clip:tiny-vit", "transformer.resblocks.0")
    with pytest.raises(errors.InputError):
        extractor(np.zeros((1, 3, 64, 64), np.float32))


def test_text_that_is_too_long_is_refused_here_too():
    extractor = featreg.create_extractor("open_clip:tiny-vit", "transformer.resblocks.0")
    with pytest.raises(errors.InputError, match="too long"):
        extractor([" ".join(["cat"] * 40)])
