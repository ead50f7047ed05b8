"""Texts: embeddings against open_clip's own, and what is refused before anything is cut off."""

from __future__ import annotations

import functools
import sys
import types

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer

import featreg
from featreg import errors
from featreg_open_clip.texts import Tokenizer

TEXTS = ["a photo of a cat", "", "a diagram!"]
END = 49407


def open_text(name, **fields):
    return featreg.create_extractor(f"open_clip:{name}", "text_embedding", **fields)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-eva", "tiny-coca"])
def test_embedding_is_that_of_open_clip_and_not_normalised(name, raw_model):
    extractor = open_text(name)
    embedding = extractor(TEXTS)["text_embedding"]
    network, tokens = raw_model(extractor), open_clip.get_tokenizer(name)(TEXTS)
    with torch.no_grad():
        expected = network.encode_text(tokens, normalize=False)
    np.testing.assert_array_equal(embedding, expected.numpy(), strict=True)
    assert embedding.shape == (3, 24) == extractor.feature_info["text_embedding"].shape(3, 64, 64)
    assert np.abs(np.linalg.norm(embedding, axis=1) - 1).min() > 0.01


def test_native_name_is_the_same_head(raw_model):
    extractor = featreg.create_extractor("open_clip:tiny-vit", ["encode_text"])
    np.testing.assert_array_equal(extractor(TEXTS)["encode_text"], open_text("tiny-vit")(TEXTS)["text_embedding"])


def test_text_that_is_too_long_is_refused_not_cut():
    extractor = open_text("tiny-vit")
    fits = " ".join(["cat"] * 10)  # and the start and end tokens
    assert extractor([fits])["text_embedding"].shape == (1, 24)
    with pytest.raises(errors.InputError) as caught:
        extractor(["a cat", fits + " cat"])
    assert "cat cat" in caught.value.problem
    assert "number 1" in caught.value.problem
    assert "12 tokens" in caught.value.expected
    assert caught.value.got == "13 tokens"
    assert "truncate" in caught.value.remedy


def test_truncation_is_open_clips_own_where_it_is_asked_for(raw_model):
    long = " ".join(["dog", *["cat"] * 40])
    extractor = open_text("tiny-vit", options={"truncate": True})
    tokens = open_clip.get_tokenizer("tiny-vit")([long])
    assert tokens[0, -1] == END
    with torch.no_grad():
        expected = raw_model(extractor).encode_text(tokens)
    np.testing.assert_array_equal(extractor([long])["text_embedding"], expected.numpy(), strict=True)
    with pytest.raises(errors.InputError):
        open_text("tiny-vit", options={"truncate": False})([long])


@functools.cache
def tokenizer():
    return Tokenizer("tiny-vit")


@functools.cache
def roomy_tokenizer():
    """open_clip's default tokenizer with room for any text here."""
    return open_clip.SimpleTokenizer(context_length=1000)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_counted_tokens_are_those_of_open_clip(text):
    tokens = roomy_tokenizer()([text])[0]
    assert tokenizer().count(text) == int((tokens == END).int().argmax()) + 1


@pytest.mark.parametrize(
    ("options", "kind", "problem"),
    [
        ({"trunkate": True}, errors.CapabilityError, "trunkate"),
        ({"normalize": "yes"}, errors.SpecError, "normalize"),
        ({"texts": "a cat"}, errors.SpecError, "texts"),
        ({"texts": []}, errors.SpecError, "texts"),
        ({"texts": ["a cat", 1]}, errors.SpecError, "texts"),
        ({"texts": ["a cat"]}, errors.CapabilityError, "texts"),
        ({"truncate": "yes"}, errors.SpecError, "truncate"),
        ({"truncate": 1}, errors.SpecError, "truncate"),
    ],
)
def test_options_are_checked(options, kind, problem):
    with pytest.raises(kind, match=problem):
        open_text("tiny-vit", options=options)
    with pytest.raises(kind, match=problem):
        featreg.create_extractor("open_clip:tiny-vit", "embedding", options=options)


def test_near_option_is_named():
    with pytest.raises(errors.CapabilityError) as caught:
        open_text("tiny-vit", options={"trunkate": True})
    assert caught.value.matches == ("truncate",)


def test_towers_are_not_mixed():
    with pytest.raises(errors.RequestError, match="text"):
        featreg.create_extractor("open_clip:tiny-vit", ["text_embedding", "embedding"])


@pytest.mark.parametrize("inputs", ["a cat", [], [b"cat"], np.zeros((1, 3, 64, 64), np.float32)])
def test_only_lists_of_texts_are_taken(inputs):
    with pytest.raises(errors.InputError):
        open_text("tiny-vit")(inputs)


def test_images_take_no_texts():
    with pytest.raises(errors.InputError):
        featreg.create_extractor("open_clip:tiny-vit", "embedding")(["a cat"])


def _transformers(tokenizer):
    """A module that stands for Hugging Face transformers, with one tokenizer behind ``from_pretrained``."""
    module = types.ModuleType("transformers")
    module.AutoTokenizer = types.SimpleNamespace(from_pretrained=tokenizer)
    return module


@pytest.fixture
def hub_model(monkeypatch):
    """A tiny model whose tokenizer lies on the Hugging Face hub."""
    config = open_clip.get_model_config("tiny-vit")
    config["text_cfg"]["hf_tokenizer_name"] = "somebody/tokenizer"
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-hub", config)
    return "tiny-hub"


def test_tokenizer_that_is_not_here(monkeypatch, hub_model):
    def offline(name, **_):
        raise OSError(f"We couldn't connect to the hub to load {name}")

    monkeypatch.setitem(sys.modules, "transformers", _transformers(offline))
    with pytest.raises(errors.WeightsError, match=f"tokenizer of open_clip:{hub_model}") as caught:
        open_text(hub_model)
    assert "couldn't connect" in caught.value.got
    assert caught.value.remedy
    featreg.create_extractor(f"open_clip:{hub_model}", "embedding")  # images need no tokenizer


def test_tokenizer_without_its_library(monkeypatch, hub_model):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(errors.MissingDependencyError, match="transformers") as caught:
        open_text(hub_model)
    assert "pip install" in caught.value.remedy


def test_text_tower_without_its_library(monkeypatch):
    config = open_clip.get_model_config("tiny-vit")
    config["text_cfg"]["hf_model_name"] = "somebody/encoder"
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-hub-tower", config)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(errors.MissingDependencyError, match="text tower of open_clip:tiny-hub-tower"):
        open_text("tiny-hub-tower")


class WordTokenizer:
    """Whole words as tokens, called as a Hugging Face tokenizer is."""

    bos_token_id, eos_token_id, cls_token_id, pad_token_id = 1, 2, 3, 0

    def __call__(self, texts, add_special_tokens=True, **_):
        single = isinstance(texts, str)
        ends = ([1], [2]) if add_special_tokens else ([], [])
        ids = [[*ends[0], *(10 for _ in text.split()), *ends[1]] for text in ([texts] if single else texts)]
        return types.SimpleNamespace(input_ids=ids[0]) if single else {"input_ids": ids}


@pytest.mark.parametrize(("mode", "added"), [(None, 2), ("clips", 3)])
def test_hugging_face_tokenizers_are_measured_too(monkeypatch, hub_model, mode, added):
    monkeypatch.setitem(sys.modules, "transformers", _transformers(lambda *_, **__: WordTokenizer()))
    open_clip.factory._MODEL_CONFIGS[hub_model]["text_cfg"]["tokenizer_mode"] = mode
    words = Tokenizer(hub_model)
    assert words.count("three short words") == 3 + added
    if mode == "clips":  # open_clip puts these tokens together itself: as many as are not padding
        raw = open_clip.get_tokenizer(hub_model)
        assert isinstance(raw, HFTokenizer)
        assert int((raw(["three short words"]) != 0).sum()) == 3 + added
    with pytest.raises(errors.InputError, match="too long"):
        words([" ".join(["word"] * (13 - added))])


def test_unknown_kind_of_tokenizer_needs_leave_to_cut(monkeypatch):
    class Other:
        context_length = 5

        def __call__(self, texts):
            return torch.zeros(len(texts), 5, dtype=torch.long)

    monkeypatch.setattr(open_clip, "get_tokenizer", lambda model: Other())
    with pytest.raises(errors.CapabilityError, match="Other"):
        Tokenizer("tiny-vit")
    assert Tokenizer("tiny-vit", truncate=True)(["any"]).shape == (1, 5)
