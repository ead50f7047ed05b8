"""Images against texts: normalisation on request, and logits with the model's own scale and bias."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch

import featreg
from featreg import errors
from featreg_open_clip.similarity import image_text_logits

MODELS = ("tiny-vit", "tiny-rn", "tiny-bias", "tiny-coca")
TEXTS = ["a photo of a cat", "a diagram", "a dog"]
NORMALIZE = {"normalize": True}


def open_model(name, layer, **fields):
    return featreg.create_extractor(f"open_clip:{name}", layer, **fields)


def encode(network, batch, texts, name):
    """The unit embeddings of open_clip itself."""
    with torch.no_grad():
        tokens = open_clip.get_tokenizer(name)(texts)
        return network.encode_image(batch, normalize=True), network.encode_text(tokens, normalize=True)


def raw_logits(network, batch, texts, name):
    """open_clip's ``get_logits``; the same by hand for CoCa, which has none."""
    if hasattr(network, "get_logits"):
        with torch.no_grad():
            return network.get_logits(batch, open_clip.get_tokenizer(name)(texts))[0]
    image, text = encode(network, batch, texts, name)
    return (network.logit_scale.exp() * image @ text.T).detach()


@pytest.mark.parametrize("name", MODELS)
def test_normalisation_is_one_option_for_every_model(name, raw_model, images):
    image = open_model(name, "embedding", options=NORMALIZE)
    text = open_model(name, "text_embedding", options=NORMALIZE)
    batch = images(image)
    expected = encode(raw_model(image), batch, TEXTS, name)
    np.testing.assert_array_equal(image(batch)["embedding"], expected[0].numpy(), strict=True)
    np.testing.assert_array_equal(text(TEXTS)["text_embedding"], expected[1].numpy(), strict=True)


@pytest.mark.parametrize("name", MODELS)
def test_off_is_the_default_for_every_model(name, images):
    for layer, inputs in (("embedding", None), ("text_embedding", TEXTS)):
        extractor = open_model(name, layer)
        same = open_model(name, layer, options={"normalize": False})
        batch = images(extractor) if inputs is None else inputs
        features = extractor(batch)[layer]
        assert np.abs(np.linalg.norm(features, axis=1) - 1).min() > 0.01
        np.testing.assert_array_equal(features, same(batch)[layer])


def test_other_layers_stay_as_they_are(images):
    extractor = open_model("tiny-vit", ["C4", "pooled", "embedding"], options=NORMALIZE)
    plain = open_model("tiny-vit", ["C4", "pooled", "embedding"])
    batch = images(extractor)
    for layer in ("C4", "pooled"):
        np.testing.assert_array_equal(extractor(batch)[layer], plain(batch)[layer])


@pytest.mark.parametrize("layers", ["C4", ["pooled", "tokens"], "transformer.resblocks.0"])
def test_normalisation_without_an_embedding_is_refused(layers):
    with pytest.raises(errors.CapabilityError, match="normalize"):
        open_model("tiny-vit", layers, options=NORMALIZE)


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in MODELS), ("tiny-vit", NORMALIZE)])
def test_logits_of_two_extractors_are_those_of_open_clip(name, options, raw_model, images):
    image, text = (open_model(name, layer, options=options) for layer in ("embedding", "text_embedding"))
    batch = images(image, batch=4)
    embeddings = image(batch)["embedding"], text(TEXTS)["text_embedding"]
    expected = raw_logits(raw_model(image), batch, TEXTS, name).numpy()
    for extractor in (image, text):
        logits = image_text_logits(extractor, *embeddings)
        assert (logits.shape, logits.dtype) == ((4, 3), np.float32)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_bias_is_that_of_the_model(raw_model, images):
    image = open_model("tiny-bias", "embedding")
    network = raw_model(image)
    assert network.logit_bias.item() == -10
    zeros = np.zeros((1, 24), np.float32)
    np.testing.assert_array_equal(image_text_logits(image, zeros, zeros), [[-10]])


def test_logits_are_of_the_kind_of_the_embeddings():
    extractor = open_model("tiny-vit", "embedding", array="native")
    logits = image_text_logits(extractor, torch.ones(2, 24), np.ones((5, 24), np.float32))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 5)


@pytest.mark.parametrize("shapes", [((24,), (2, 24)), ((2, 24), (2, 25)), ((2, 3, 4), (2, 3, 4))])
def test_embeddings_that_do_not_fit(shapes):
    extractor = open_model("tiny-vit", "embedding")
    with pytest.raises(errors.InputError, match="do not fit"):
        image_text_logits(extractor, *(np.zeros(shape, np.float32) for shape in shapes))


def test_scale_of_another_backend_or_of_a_closed_extractor_is_refused():
    closed = open_model("tiny-vit", "embedding")
    closed.close()
    other = featreg.create_extractor(f"numpy:{featreg.list_models('numpy')[0]}", -1)
    for extractor in (closed, other):
        with pytest.raises(errors.CapabilityError, match="scale"):
            image_text_logits(extractor, np.zeros((1, 24)), np.zeros((1, 24)))


# --- the layer "logits" -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_layer_logits_is_get_logits(name, raw_model, images):
    extractor = open_model(name, ["logits", "embedding"], options={"texts": TEXTS})
    batch = images(extractor)
    features = extractor(batch)
    network = raw_model(extractor)
    np.testing.assert_array_equal(features["logits"], raw_logits(network, batch, TEXTS, name).numpy(), strict=True)
    with torch.no_grad():
        np.testing.assert_array_equal(features["embedding"], network.encode_image(batch, normalize=False).numpy())
    info = extractor.feature_info["logits"]
    assert (info.kind, info.channels, info.head) == ("vector", 3, "logits")


def test_layer_logits_keeps_no_text_tower(images):
    extractor = open_model("tiny-vit", "logits", options={"texts": TEXTS})
    names = set(extractor.module.network.state_dict())
    assert not {name for name in names if not name.startswith(("visual.", "logit_scale"))}


def test_logits_need_texts():
    with pytest.raises(errors.CapabilityError, match="logits") as caught:
        open_model("tiny-vit", "logits")
    assert "texts" in caught.value.remedy


def test_texts_of_logits_are_not_cut_silently():
    long = " ".join(["cat"] * 40)
    with pytest.raises(errors.InputError, match="too long"):
        open_model("tiny-vit", "logits", options={"texts": [long]})
    cut = open_model("tiny-vit", "logits", options={"texts": [long], "truncate": True})
    assert cut(np.zeros((1, 3, 64, 64), np.float32))["logits"].shape == (1, 1)


def test_module_gives_what_the_extractor_gives(images):
    extractor = open_model("tiny-vit", ["embedding", "logits"], options={**NORMALIZE, "texts": TEXTS})
    batch = images(extractor)
    features, tensors = extractor(batch), extractor.module(batch)
    for layer, array in features.items():
        np.testing.assert_allclose(tensors[layer].detach().numpy(), array, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(features["embedding"], axis=1), 1, rtol=1e-5)
    tensors["logits"].sum().backward()
    assert extractor.module.network.logit_scale.grad is not None
