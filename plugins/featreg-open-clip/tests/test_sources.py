"""Weights that bring their configuration: folders and repositories of the Hugging Face hub."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

import featreg
from featreg import errors
from featreg_open_clip import hubs

PREPROCESS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "resize_mode": "squash"}


@pytest.fixture
def raw():
    """A network of open_clip's own that is not the seeded one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return open_clip.create_model("tiny-vit", force_quick_gelu=True).eval()


@pytest.fixture
def folder(tmp_path, raw):
    """A folder as open_clip saves its models: configuration, with QuickGELU, and weights."""
    config = {"model_cfg": {**open_clip.get_model_config("tiny-vit"), "quick_gelu": True}, "preprocess_cfg": PREPROCESS}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(raw.state_dict(), tmp_path / "open_clip_model.safetensors")
    return tmp_path


@pytest.fixture
def hub(folder, monkeypatch):
    """The hub as a function that records what it is asked for and has the folder's files for one repository."""
    asked = []

    def download(repo_id, filename, **_):
        asked.append((repo_id, filename))
        found = folder / filename
        if repo_id != "somebody/tiny" or not found.exists():
            raise OSError(f"no {filename} of {repo_id} here")
        return str(found)

    monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", download)
    return asked


def embed(network, batch):
    with torch.no_grad():
        return network.encode_image(batch).numpy()


BATCH = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def open_model(model, weights=None, layers="embedding"):
    return featreg.create_extractor(f"open_clip:{model}", layers, weights=weights)


@pytest.mark.parametrize("model", ["tiny-vit", "local-dir:{folder}"])
def test_folder_as_weights_and_as_model(model, folder, raw):
    model = model.format(folder=folder)
    weights = f"local-dir:{folder}" if model == "tiny-vit" else "default"
    extractor = open_model(model, weights)
    np.testing.assert_array_equal(extractor(BATCH)["embedding"], embed(raw, BATCH))
    assert extractor.preprocess.mean == (0.1, 0.2, 0.3)
    assert (extractor.preprocess.resize_mode, extractor.preprocess.interpolation) == ("exact", "bilinear")


@pytest.mark.parametrize("model", ["tiny-vit", "local-dir:{folder}"])
def test_folder_is_identified_by_what_it_holds(model, folder, raw):
    model = model.format(folder=folder)
    weights = f"local-dir:{folder}" if model == "tiny-vit" else "default"
    first, again = open_model(model, weights), open_model(model, weights)
    assert first.weights_identity() == again.weights_identity()
    before = first.weights_identity()
    save_file({name: value + 1 for name, value in raw.state_dict().items()}, folder / "open_clip_model.safetensors")
    assert open_model(model, weights).weights_identity() != before


def test_file_in_the_model_of_a_folder_is_identified_by_both(folder, raw):
    torch.save(raw.state_dict(), folder / ".w.pt")
    extractor = open_model(f"local-dir:{folder}", str(folder / ".w.pt"))
    by_folder, by_file = extractor.weights_identity().split("; ")
    assert by_folder == open_model(f"local-dir:{folder}", "default").weights_identity()
    assert by_file == open_model("tiny-vit", str(folder / ".w.pt")).weights_identity()


def test_folder_is_what_create_model_makes_of_it(folder):
    network = open_clip.create_model(f"local-dir:{folder}").eval()
    extractor = open_model("tiny-vit", f"local-dir:{folder}")
    np.testing.assert_array_equal(extractor(BATCH)["embedding"], embed(network, BATCH))
    ours = open_model("tiny-vit", f"local-dir:{folder}", "text_embedding")(["a cat"])["text_embedding"]
    with torch.no_grad():
        theirs = network.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(["a cat"]))
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_folder_is_described_without_its_weights(folder):
    (folder / "open_clip_model.safetensors").unlink()
    info = featreg.describe(f"open_clip:local-dir:{folder}")
    assert (info.resolve("embedding").channels, info.input_size) == (24, (64, 64))
    assert info.preprocess.std == (0.4, 0.5, 0.6)


def test_raw_library_runs_a_folder_without_weights_on_random_ones(folder):
    (folder / "open_clip_model.safetensors").unlink()
    open_clip.create_model(f"local-dir:{folder}")  # it logs a warning, no more
    with pytest.raises(errors.WeightsError, match="cannot be had") as caught:
        open_model("tiny-vit", f"local-dir:{folder}")
    assert str(folder) in caught.value.expected


def test_pickle_in_a_folder_is_refused(folder, raw):
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": raw.state_dict(), "trainer": object}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(errors.WeightsError, match="pickled"):
        open_model("tiny-vit", f"local-dir:{folder}")
    torch.save({"state_dict": raw.state_dict()}, folder / "open_clip_pytorch_model.bin")
    extractor = open_model("tiny-vit", f"local-dir:{folder}")
    np.testing.assert_array_equal(extractor(BATCH)["embedding"], embed(raw, BATCH))


def test_folder_of_another_architecture(folder):
    with pytest.raises(errors.WeightsError, match="another architecture") as caught:
        open_model("tiny-rn", f"local-dir:{folder}")
    assert "vision_cfg.layers=[1, 2, 1, 1]" in caught.value.expected
    assert "vision_cfg.layers=3" in caught.value.got
    assert f"open_clip:local-dir:{folder}" in caught.value.remedy


@pytest.mark.parametrize("content", [None, "{", "{}", '{"model_cfg": {"embed_dim": 3}}', "[]"])
def test_folder_without_a_usable_configuration(content, tmp_path):
    if content is not None:
        (tmp_path / "open_clip_config.json").write_text(content)
    for action in (
        lambda: featreg.describe(f"open_clip:local-dir:{tmp_path}"),
        lambda: open_model("tiny-vit", f"local-dir:{tmp_path}"),
    ):
        with pytest.raises(errors.WeightsError, match="open_clip") as caught:
            action()
        assert str(tmp_path) in caught.value.problem


def test_repository(hub, raw):
    extractor = open_model("tiny-vit", "hf-hub:somebody/tiny")
    np.testing.assert_array_equal(extractor(BATCH)["embedding"], embed(raw, BATCH))
    same = open_model("hf-hub:somebody/tiny", "default")
    np.testing.assert_array_equal(same(BATCH)["embedding"], embed(raw, BATCH))


def test_repository_is_described_by_its_configuration_alone(hub):
    info = featreg.describe("open_clip:hf-hub:somebody/tiny")
    assert info.resolve("embedding").channels == 24
    assert {filename for _, filename in hub} == {"open_clip_config.json"}


def test_repository_that_cannot_be_had(hub):
    for action in (
        lambda: open_model("tiny-vit", "hf-hub:somebody/else"),
        lambda: featreg.describe("open_clip:hf-hub:somebody/else"),
    ):
        with pytest.raises(errors.WeightsError, match="hf-hub:somebody/else") as caught:
            action()
        assert "somebody/else" in caught.value.expected
        assert hubs.HF_HUB_CACHE in caught.value.expected
        assert "local-dir" in caught.value.remedy
        assert caught.value.__cause__ is not None


# --- files of other programs ------------------------------------------------------------------------------------------


@pytest.fixture
def openai_state(raw):
    """A state_dict as OpenAI's archives hold it: half precision, and three numbers beside the tensors."""
    state = {name: tensor.half() for name, tensor in raw.state_dict().items()}
    numbers = {"input_resolution": 64, "context_length": 12, "vocab_size": 49408}
    return {**state, **{name: torch.tensor(number) for name, number in numbers.items()}}


def test_openais_state_dict(openai_state, tmp_path, monkeypatch):
    torch.save(openai_state, tmp_path / "clip.pt")
    with pytest.raises(errors.WeightsError, match="QuickGELU"):
        open_model("tiny-vit", str(tmp_path / "clip.pt"))
    config = {**open_clip.get_model_config("tiny-vit"), "quick_gelu": True}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-vit-quickgelu", config)
    with pytest.raises(errors.WeightsError, match="QuickGELU") as caught:
        open_model("tiny-vit", str(tmp_path / "clip.pt"))
    assert caught.value.matches == ("tiny-vit-quickgelu",)
    network = open_clip.create_model("tiny-vit", force_quick_gelu=True).eval()
    network.load_state_dict({name: openai_state[name].float() for name in network.state_dict()})
    extractor = open_model("tiny-vit-quickgelu", str(tmp_path / "clip.pt"))
    np.testing.assert_array_equal(extractor(BATCH)["embedding"], embed(network, BATCH))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # OpenAI's files are of this kind all the same
def test_torchscript_archive_is_explained_and_not_run(tmp_path):
    path = str(tmp_path / "ViT-B-32.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(errors.WeightsError, match="TorchScript") as caught:
        open_model("tiny-vit", path)
    assert "torch.jit.load" in caught.value.remedy


def test_text_tower_that_has_since_moved(tmp_path, raw_model):
    """Old checkpoints have it at the top where the model now keeps it in ``text``."""
    network = raw_model(open_model("tiny-bias"))
    old = {name.removeprefix("text."): tensor for name, tensor in network.state_dict().items()}
    old["logit_scale"] = old["logit_scale"].reshape(1)
    torch.save(old, tmp_path / "old.pt")
    extractor = open_model("tiny-bias", str(tmp_path / "old.pt"), "text_embedding")
    with torch.no_grad():
        expected = network.encode_text(open_clip.get_tokenizer("tiny-bias")(["a cat"]))
    np.testing.assert_array_equal(extractor(["a cat"])["text_embedding"], expected.numpy())
