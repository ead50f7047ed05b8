"""Names of models: open_clip's and OpenAI's, with the activation that the weights were trained with."""

from __future__ import annotations

import warnings

import attrs
import numpy as np
import open_clip
import pytest
import torch
from click.testing import CliRunner
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from open_clip.transformer import QuickGELU
from torchvision.transforms import CenterCrop, InterpolationMode, Normalize, Resize

import featreg
from featreg import errors
from featreg.cli.main import cli
from featreg_open_clip.architectures import ClipVariant, quick_gelu
from featreg_open_clip.backend import OpenClipBackend
from featreg_open_clip.networks import build_network

OPENAI = {
    "RN50": "RN50",
    "RN101": "RN101",
    "RN50x4": "RN50x4",
    "RN50x16": "RN50x16",
    "RN50x64": "RN50x64",
    "ViT-B/32": "ViT-B-32",
    "ViT-B/16": "ViT-B-16",
    "ViT-L/14": "ViT-L-14",
    "ViT-L/14@336px": "ViT-L-14-336",
}
PAIRS = open_clip.list_pretrained()


def has_quick_gelu(network):
    return any(isinstance(module, QuickGELU) for module in network.modules())


def build(model, tag=None):
    variant = attrs.evolve(OpenClipBackend().variant(model), tag=tag)
    with torch.device("meta"):
        return build_network(variant)


@pytest.mark.parametrize(("name", "own"), OPENAI.items())
def test_openais_names_are_open_clips_architectures_with_quick_gelu(name, own):
    network = build(name, "openai")
    assert has_quick_gelu(network)
    with torch.device("meta"):
        raw = open_clip.create_model(own, device="meta")
    shapes, expected = ({key: value.shape for key, value in one.state_dict().items()} for one in (network, raw))
    assert shapes == expected


@pytest.mark.parametrize("name", [name for name in OPENAI if "/" in name])
def test_default_weights_of_openais_names_are_openais(name):
    backend = OpenClipBackend()
    assert backend.has(name)
    assert backend.default_tag(backend.variant(name)) == "openai"
    assert has_quick_gelu(build(name))  # also without weights, or with those of a file


def test_names_with_a_slash_work_everywhere():
    info = featreg.describe("open_clip:ViT-B/32")
    assert (info.id, info.resolve("C5").channels, info.input_size) == ("open_clip:ViT-B/32", 768, (224, 224))
    assert featreg.describe("ViT-B/32") == info  # the bare name, too
    result = CliRunner().invoke(cli, ["describe", "open_clip:ViT-B/32"], prog_name="featreg")
    assert result.exit_code == 0, result.output
    assert "visual.transformer.resblocks.11" in result.output


@pytest.mark.parametrize("model", sorted({model for model, tag in PAIRS if "quickgelu" not in model}))
def test_activation_is_that_of_the_tag(model):
    configured = open_clip.get_model_config(model).get("quick_gelu", False)
    for tag in open_clip.list_pretrained_tags_by_model(model):
        trained = open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", configured)
        assert quick_gelu(ClipVariant(model, tag)) == trained
    assert quick_gelu(ClipVariant(model)) == configured


def test_raw_library_runs_openais_weights_with_the_wrong_activation(tmp_path, monkeypatch):
    """It only warns; here the tag's own entry decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        state = open_clip.create_model("tiny-vit").state_dict()
    torch.save(state, tmp_path / "weights.pt")
    entry = {"file": str(tmp_path / "weights.pt"), "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", {"openai": entry})
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def raw(**arguments):
        network = open_clip.create_model("tiny-vit", pretrained="openai", **arguments).eval()
        with torch.no_grad():
            return network.encode_image(images).numpy()

    with pytest.warns(UserWarning, match="QuickGELU mismatch"):
        wrong = raw()
    right = raw(force_quick_gelu=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extractor = featreg.create_extractor("open_clip:tiny-vit", "embedding", weights="openai")
    embedding = extractor(images)["embedding"]
    np.testing.assert_array_equal(embedding, right)
    assert not np.allclose(embedding, wrong, rtol=1e-3)
    only = featreg.create_extractor("open_clip:tiny-vit", "embedding", weights="default")  # it is the only tag
    np.testing.assert_array_equal(only(images)["embedding"], right)


def test_default_weights_must_be_named_where_there_are_several():
    with pytest.raises(errors.WeightsError, match="no default weights") as caught:
        featreg.create_extractor("open_clip:ViT-B-32", "embedding", weights="default")
    assert all(tag in caught.value.expected for tag in ("openai", "laion2b_s34b_b79k"))


@pytest.mark.parametrize("model", sorted({model for model, _ in PAIRS}))
def test_preprocessing_of_every_tag_is_open_clips_own_transform(model):
    backend = OpenClipBackend()
    image_size = open_clip.get_model_config(model)["vision_cfg"].get("image_size", 224)
    for tag in open_clip.list_pretrained_tags_by_model(model):
        config = merge_preprocess_dict(PreprocessCfg(size=image_size), open_clip.get_pretrained_cfg(model, tag))
        resize, *crop, _, _, normalize = image_transform_v2(PreprocessCfg(**config), is_train=False).transforms
        ours = backend.preprocess(attrs.evolve(backend.variant(model), tag=tag))
        assert isinstance(resize, Resize)  # no tag wants the longest side, or a size that is not square
        assert isinstance(normalize, Normalize)
        assert (ours.mean, ours.std) == (tuple(normalize.mean), tuple(normalize.std))
        assert InterpolationMode(ours.interpolation) == resize.interpolation
        assert ours.resize_mode == ("shortest" if isinstance(resize.size, int) else "exact")
        assert ours.resize == ((resize.size,) * 2 if isinstance(resize.size, int) else tuple(resize.size))
        assert ours.crop == ours.resize
        assert [tuple(step.size) for step in crop if isinstance(step, CenterCrop)] in ([], [ours.crop])
        assert ours.color == "RGB"


def test_every_tag_is_known():
    backend = OpenClipBackend()
    known = {(model, tag) for model in open_clip.list_models() for tag in backend.tags(backend.variant(model))}
    assert known == set(PAIRS)
