"""Synthetic weights, by open_clip's own names."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import featreg
from featreg.plugin import draw_weight

MODELS = ["tiny-vit", "tiny-coca", "tiny-rn", "tiny-convnext", "tiny-siglip", "tiny-attention"]
IMAGES = np.random.default_rng(0).standard_normal((1, 3, 160, 160), dtype=np.float32)


def embed(model, weights, layers="embedding"):
    with featreg.create_extractor(f"open_clip:{model}", layers, weights=weights) as extractor:
        height, width = extractor.info.input_size
        return extractor(IMAGES[:, :, :height, :width])


@pytest.mark.parametrize("model", MODELS)
def test_a_seed_gives_finite_features_of_its_own(model):
    one, two, other = (embed(model, weights)["embedding"] for weights in ("synthetic:1", "synthetic:1", "synthetic:2"))
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_both_towers_hold_what_is_drawn():
    layers = {"embedding": "visual.conv1.weight", "text_embedding": "token_embedding.weight"}
    for layer, name in layers.items():
        with featreg.create_extractor("open_clip:tiny-vit", layer, weights="synthetic:4") as extractor:
            found = extractor.module.network.state_dict()[name]
        assert torch.equal(found, torch.from_numpy(draw_weight(4, name, tuple(found.shape))))


def test_prompts_are_encoded_with_them():
    """The similarity of an image with texts, from the two towers by hand."""
    prompts, normalized = ["a cat", "a dog"], {"normalize": True}
    with featreg.create_extractor(
        "open_clip:tiny-vit", "logits", weights="synthetic:4", options={"texts": prompts}
    ) as extractor:
        logits = extractor(IMAGES[:, :, :64, :64])["logits"]
        scale = extractor.module.network.logit_scale.exp().item()
    with featreg.create_extractor(
        "open_clip:tiny-vit", "text_embedding", weights="synthetic:4", options=normalized
    ) as extractor:
        texts = extractor(prompts)["text_embedding"]
    with featreg.create_extractor(
        "open_clip:tiny-vit", "embedding", weights="synthetic:4", options=normalized
    ) as extractor:
        image = extractor(IMAGES[:, :, :64, :64])["embedding"]
    np.testing.assert_allclose(logits, scale * image @ texts.T, rtol=1e-4, atol=1e-5)
