"""Models whose text tower is one of Hugging Face transformers: images need neither it nor the hub's files."""

from __future__ import annotations

import sys
import types

import numpy as np
import open_clip
import pytest
import torch
from torch import nn

import featreg
from featreg import errors

NAMES = [name for name in open_clip.list_models() if open_clip.get_model_config(name)["text_cfg"].get("hf_model_name")]
TEXTS = ["three short words", "one"]


class Encoder(nn.Module):
    """A text encoder that looks into its mask, as transformers' do; so it does not run on the meta device by itself."""

    def __init__(self, config):
        super().__init__()
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layer = nn.ModuleList(nn.Linear(config.hidden_size, config.hidden_size) for _ in range(2))

    def forward(self, input_ids, attention_mask=None):
        hidden = self.embeddings(input_ids)
        for layer in self.layer:
            hidden = layer(hidden)
        if attention_mask is not None and not attention_mask.all():
            hidden = hidden * attention_mask.unsqueeze(-1)
        return types.SimpleNamespace(last_hidden_state=hidden)


class Words:
    """Whole words as tokens, called as a Hugging Face tokenizer is."""

    def __call__(self, texts, return_tensors=None, max_length=None, **_):
        if isinstance(texts, str):
            return types.SimpleNamespace(input_ids=self.ids(texts))
        rows = [(self.ids(text) + [0] * max_length)[:max_length] for text in texts]
        return types.SimpleNamespace(input_ids=torch.tensor(rows))

    def ids(self, text):
        return [1, *(3 + len(word) for word in text.split()), 2]


@pytest.fixture
def hub(monkeypatch):
    """A tiny model with such a text tower, the library that makes it, and the hub's files."""

    def configured(name):
        if name != "somebody/encoder":
            raise OSError(f"We couldn't connect to the hub to load {name}")
        sizes = {"hidden_size": 16, "vocab_size": 30, "max_position_embeddings": 40, "pad_token_id": 0}
        return types.SimpleNamespace(model_type="bert", **sizes)

    library = types.ModuleType("transformers")
    library.AutoConfig = types.SimpleNamespace(from_pretrained=configured)
    library.AutoModel = types.SimpleNamespace(from_config=lambda config, **_: Encoder(config))
    library.AutoTokenizer = types.SimpleNamespace(from_pretrained=lambda *_, **__: Words())
    monkeypatch.setitem(sys.modules, "transformers", library)
    for name in ("transformers", "AutoConfig", "AutoModel"):
        monkeypatch.setattr(open_clip.hf_model, name, getattr(library, name, library), raising=False)
    config = open_clip.get_model_config("tiny-vit")
    text = {"hf_model_name": "somebody/encoder", "hf_tokenizer_name": "somebody/encoder", "context_length": 8}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-hub", {**config, "text_cfg": text})
    return library


def raw_network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.create_model("tiny-hub", pretrained_text=False).eval()


@pytest.mark.parametrize("name", NAMES)
def test_image_tower_is_described_without_library_or_hub(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    config = open_clip.get_model_config(name)
    info = featreg.describe(f"open_clip:{name}")
    assert info.resolve("embedding").channels == info.resolve("text_embedding").channels == config["embed_dim"]
    size = config["vision_cfg"]["image_size"]
    assert info.input_size == (size, size)
    patch = config["vision_cfg"].get("patch_size") or (
        14 if "so400m" in config["vision_cfg"]["timm_model_name"] else 16
    )
    assert info.resolve(-1).shape(1, size, size)[2:] == (size // patch, size // patch)


def test_image_tower_opens_and_needs_nothing_of_the_texts(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    extractor = featreg.create_extractor("open_clip:roberta-ViT-B-32", ["C5", "pooled", "embedding"])
    names = extractor.module.network.state_dict()
    assert names
    assert all(name.startswith("visual.") for name in names)
    features = extractor(np.zeros((1, 3, 224, 224), np.float32))
    assert {key: array.shape for key, array in features.items()} == extractor.output_shapes((1, 3, 224, 224))


@pytest.mark.parametrize("layer", ["text_embedding", "text.transformer.encoder.layer.0"])
def test_text_tower_without_the_library(layer, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(errors.MissingDependencyError, match="text tower of open_clip:roberta-ViT-B-32") as caught:
        featreg.create_extractor("open_clip:roberta-ViT-B-32", layer)
    assert "featreg-open-clip[transformers]" in caught.value.remedy


def test_text_tower_without_the_files_of_the_hub(hub):
    with pytest.raises(errors.WeightsError, match="text tower of open_clip:roberta-ViT-B-32") as caught:
        featreg.create_extractor("open_clip:roberta-ViT-B-32", "text_embedding")
    assert "couldn't connect" in caught.value.got
    assert "HF_HOME" in caught.value.expected
    assert caught.value.remedy


def test_images_are_the_same_as_in_the_whole_network(hub, tmp_path):
    network = raw_network(seed=5)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    extractor = featreg.create_extractor("open_clip:tiny-hub", ["C4", "embedding"], weights=tmp_path / "weights.pt")
    batch = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network.encode_image(batch).numpy()
    np.testing.assert_array_equal(extractor(batch)["embedding"], expected)


def test_images_with_the_weights_of_a_tag(hub, tmp_path, monkeypatch):
    network = raw_network(seed=5)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    entry = {"file": str(tmp_path / "weights.pt"), "resize_mode": "squash"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-hub", {"v1": entry})
    monkeypatch.setitem(sys.modules, "transformers", None)
    extractor = featreg.create_extractor("open_clip:tiny-hub", "embedding", weights="v1")
    batch = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        np.testing.assert_array_equal(extractor(batch)["embedding"], network.encode_image(batch).numpy())
    assert extractor.preprocess.resize_mode == "exact"


def test_texts_are_encoded_as_in_open_clip(hub):
    layers = ["text_embedding", "text.transformer.layer.0", "text.transformer.embeddings"]
    extractor = featreg.create_extractor("open_clip:tiny-hub", layers)
    features, network = extractor(TEXTS), raw_network()
    tokens = open_clip.get_tokenizer("tiny-hub")(TEXTS)
    with torch.no_grad():
        np.testing.assert_array_equal(features["text_embedding"], network.encode_text(tokens).numpy())
        embedded = network.text.transformer.embeddings(tokens)
        np.testing.assert_array_equal(features["text.transformer.embeddings"], embedded.numpy())
        first = network.text.transformer.layer[0](embedded)
        np.testing.assert_array_equal(features["text.transformer.layer.0"], first.numpy())
    info = extractor.feature_info["text.transformer.layer.0"]
    assert (info.kind, info.length, info.channels) == ("tokens", 8, 16)
    with pytest.raises(errors.InputError, match="too long"):
        extractor(["one two three four five six seven"])


def test_logits_need_the_text_tower_while_it_opens_only(hub):
    extractor = featreg.create_extractor("open_clip:tiny-hub", "logits", options={"texts": TEXTS})
    batch = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network = raw_network()
    with torch.no_grad():
        expected = network.get_logits(batch, open_clip.get_tokenizer("tiny-hub")(TEXTS))[0]
    np.testing.assert_array_equal(extractor(batch)["logits"], expected.numpy())
    assert not [name for name in extractor.module.network.state_dict() if name.startswith("text.")]
