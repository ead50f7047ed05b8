"""Weights from folders as save_pretrained writes them, from the hub's cache, and from files of them."""

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import featreg
from featreg import errors

CONFIG = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)


def network(kind, seed=5, **config):
    torch.manual_seed(seed)
    config = {**CONFIG, "image_size": 32, "patch_size": 8, **config}
    return getattr(transformers, kind)(getattr(transformers, kind).config_class(**config)).eval()


def save(model, folder):
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier():
    return network("ViTForImageClassification", num_labels=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, classifier):
    place = save(classifier, tmp_path_factory.mktemp("vit"))
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(
        place
    )
    return place


def raw(model, images=IMAGES, **options):
    with torch.no_grad():
        return model(pixel_values=torch.from_numpy(images), output_hidden_states=True, **options)


@pytest.mark.parametrize("form", ["local-dir:{}", "{}"])
def test_a_folder_gives_the_weights_the_classes_and_the_preprocessing(folder, classifier, form):
    with featreg.create_extractor("transformers:vit", ["C3", "logits"], weights=form.format(folder)) as extractor:
        features, preprocess = extractor(IMAGES), extractor.preprocess
        assert extractor.weights_report.loaded == len(classifier.state_dict())
    assert np.allclose(features["logits"], raw(classifier).logits, atol=1e-6)
    assert features["logits"].shape == (2, 7)
    assert (preprocess.resize, preprocess.resize_mode, preprocess.mean) == ((32, 32), "exact", (0.1, 0.2, 0.3))


def test_a_folder_is_a_model_too(folder, classifier):
    model = f"transformers:local-dir:{folder}"
    assert featreg.describe(model).input_rule.fixed == (32, 32)
    with (
        featreg.create_extractor(model, ["tokens"], weights="default") as trained,
        featreg.create_extractor(model, ["tokens"]) as random,
    ):
        assert np.allclose(trained(IMAGES)["tokens"], raw(classifier.vit).last_hidden_state, atol=1e-6)
        assert not np.allclose(random(IMAGES)["tokens"], trained(IMAGES)["tokens"])
        assert trained.weights_identity() is not None


def test_a_missing_pooler_matters_only_where_it_is_asked_for(tmp_path):
    model = transformers.ViTModel(network("ViTModel").config, add_pooling_layer=False).eval()
    place = f"local-dir:{save(model, tmp_path)}"
    with featreg.create_extractor("transformers:vit", ["tokens"], weights=place) as extractor:
        assert np.allclose(extractor(IMAGES)["tokens"], raw(model).last_hidden_state, atol=1e-6)
    with pytest.raises(errors.WeightsError, match=r"pooler\.dense\.weight, pooler\.dense\.bias"):
        featreg.create_extractor("transformers:vit", ["pooled"], weights=place)


def test_keys_that_do_not_fit_are_listed(tmp_path):
    state = dict(load_file(save(network("ViTModel"), tmp_path) / "model.safetensors"))
    state["layers.0.bogus"] = state.pop("layernorm.weight")
    state["layernorm.bias"] = torch.zeros(5)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(errors.WeightsError) as caught:
        featreg.create_extractor("transformers:vit", ["tokens"], weights=str(tmp_path))
    for name in ("layers.0.bogus", "layernorm.weight", "layernorm.bias"):
        assert name in str(caught.value)


def test_a_file_may_have_the_names_of_older_releases(tmp_path, folder, classifier):
    """save_pretrained writes ``encoder.layer.0.attention.attention.query`` for this release's ``layers.0…q_proj``."""
    file = folder / "model.safetensors"
    assert any("encoder.layer.0" in name for name in load_file(file))
    options = {"config": {**CONFIG, "image_size": 32, "patch_size": 8, "num_labels": 7}}
    options["architecture"] = "ViTForImageClassification"
    with featreg.create_extractor("transformers:vit", ["logits"], weights=str(file), options=options) as extractor:
        assert np.allclose(extractor(IMAGES)["logits"], raw(classifier).logits, atol=1e-6)
    torch.save(classifier.state_dict(), tmp_path / "own.pt")
    with featreg.create_extractor(
        "transformers:vit", [0], weights=str(tmp_path / "own.pt"), options=options
    ) as extractor:
        block = raw(classifier).hidden_states[1][:, 1:].transpose(1, 2).reshape(2, 32, 4, 4)
        assert np.allclose(extractor(IMAGES)[0], block, atol=1e-6)


def test_of_two_towers_the_image_tower_is_taken(tmp_path):
    tower = {**CONFIG, "image_size": 32, "patch_size": 8}
    texts = {**CONFIG, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    model = transformers.SiglipModel(transformers.SiglipConfig(vision_config=tower, text_config=texts)).eval()
    with featreg.create_extractor(
        f"transformers:local-dir:{save(model, tmp_path)}", ["embedding"], weights="default"
    ) as e:
        with torch.no_grad():
            wanted = model.get_image_features(pixel_values=torch.from_numpy(IMAGES)).pooler_output
        assert np.allclose(e(IMAGES)["embedding"], wanted, atol=1e-6)
        assert any("text_model" in note for note in e.weights_report.notes)


def test_weights_of_another_type_are_refused(tmp_path, folder):
    with pytest.raises(errors.WeightsError, match="another model type"):
        featreg.create_extractor("transformers:dinov2", ["C4"], weights=str(folder))


def test_a_repository_that_cannot_be_reached_says_what_to_do():
    for weights in ("default", "facebook/dinov2-small", "hf-hub:facebook/dinov2-small"):
        with pytest.raises(errors.WeightsError, match="once while online") as caught:
            featreg.create_extractor("transformers:dinov2-small", ["C4"], weights=weights)
        assert caught.value.__cause__ is not None
    with pytest.raises(errors.WeightsError, match="model type"):
        featreg.create_extractor("transformers:dinov2", ["C4"], weights="default")


def test_code_in_a_folder_is_never_run(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}')
    (tmp_path / "own.py").write_text("raise SystemExit('was run')")
    with pytest.raises(errors.WeightsError):
        featreg.describe(f"transformers:local-dir:{tmp_path}")


def test_a_folder_of_the_cache_serves_a_repository(monkeypatch, tmp_path, folder, classifier):
    """The layout of the hub's cache: blobs by revision, and where ``main`` points."""
    revision = "0" * 40
    snapshot = tmp_path / "models--some--vit" / "snapshots" / revision
    snapshot.parent.mkdir(parents=True)
    (tmp_path / "models--some--vit" / "refs").mkdir()
    (tmp_path / "models--some--vit" / "refs" / "main").write_text(revision)
    snapshot.symlink_to(folder, target_is_directory=True)
    for module in ("huggingface_hub.constants", "huggingface_hub.file_download.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with featreg.create_extractor("transformers:vit", ["logits"], weights="some/vit") as extractor:
        assert np.allclose(extractor(IMAGES)["logits"], raw(classifier).logits, atol=1e-6)
