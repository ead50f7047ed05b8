"""Weights that torchvision publishes, by tag and by path, against torchvision's own builders."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import get_model, get_model_builder, get_model_weights, list_models

import featreg
from featreg import errors
from featreg_torch.backend import Variant
from featreg_torchvision.backend import TorchvisionBackend

DETECTORS = [name for name in list_models() if ".detection." in get_model_builder(name).__module__]
RENORMALISED = ["googlenet", "inception_v3", "quantized_googlenet", "quantized_inception_v3"]
NOTE = "options={'published': False}"


def images(side=96):
    return np.random.default_rng(0).standard_normal((1, 3, side, side), dtype=np.float32)


def plain(name):
    """A network as torchvision builds it for training, with statistics of its own."""
    fixed = {"weights_backbone": None} if name in DETECTORS else {}
    fixed |= {"quantize": False} if name.startswith("quantized_") else {}
    fixed |= {"init_weights": False} if name in RENORMALISED else {}
    torch.manual_seed(3)
    model = get_model(name, weights=None, **fixed).eval()
    for key, value in model.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.25, 1)
    return model


def publish(monkeypatch, name, state):
    """Stand in for a download: torchvision's weights of a model are these, whoever asks for them."""
    weights = get_model_weights(name.removeprefix("quantized_")).DEFAULT
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: copy.copy(state))
    return weights


def opened(name, layers, weights, **options):
    return featreg.create_extractor(f"torchvision:{name}", layers, weights=weights, options=options)


# --- reading ----------------------------------------------------------------------------------------------------------


class Evil:
    """What runs code of its own when a full unpickler reads it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def cached(name, content, monkeypatch, tmp_path):
    """Put a file where torch keeps the download of a model's first weights; returns their tag."""
    weights = next(iter(get_model_weights(name)))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / Path(weights.url).name
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    return weights.name


def test_a_file_in_the_cache_runs_nothing(monkeypatch, tmp_path):
    marker = tmp_path / "executed"
    content = {**plain("resnet18").state_dict(), "extra": Evil(marker)}
    tag = cached("resnet18", content, monkeypatch, tmp_path)
    with pytest.raises(errors.WeightsError, match="pickled objects are not loaded") as caught:
        opened("resnet18", ["C5"], tag)
    assert str(tmp_path) in caught.value.remedy
    assert not marker.exists()


def test_a_file_in_the_cache_loads_as_torchvision_loads_it(monkeypatch, tmp_path):
    tag = cached("resnet18", plain("resnet18").state_dict(), monkeypatch, tmp_path)
    with opened("resnet18", ["logits"], tag) as extractor, torch.no_grad():
        found = extractor(images())["logits"]
        expected = get_model("resnet18", weights=tag).eval()(torch.from_numpy(images()))
    assert np.array_equal(found, expected.numpy())


def test_the_versions_in_a_published_file_reach_the_network(monkeypatch):
    """MNASNet reads its tensors by version, and refuses those that have none."""
    state = plain("mnasnet0_5").state_dict()
    publish(monkeypatch, "mnasnet0_5", state)
    with opened("mnasnet0_5", ["C2"], "default") as extractor:
        assert torch.equal(extractor.module.network.state_dict()["layers.0.weight"], state["layers.0.weight"])


# --- a file by path is what it is by tag ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RENORMALISED[:3])
def test_networks_that_renormalise_do_so_by_tag_and_by_path(name, monkeypatch, tmp_path):
    model = plain(name)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    weights = publish(monkeypatch, name, model.state_dict())
    batch = images(128)
    with torch.no_grad():
        reference = get_model(name, weights=weights, **({"quantize": False} if "quantized" in name else {})).eval()
        published, trained = (one(torch.from_numpy(batch)).numpy() for one in (reference, model))
    assert not np.allclose(published, trained, rtol=1e-3)
    with opened(name, ["logits"], weights.name) as by_tag, opened(name, ["logits"], str(tmp_path / "w.pth")) as by_path:
        assert np.array_equal(by_tag(batch)["logits"], published)
        assert np.array_equal(by_path(batch)["logits"], published)
        assert "transform_input" in str(by_path.weights_report)
        assert NOTE in str(by_path.weights_report)
    with opened(name, ["logits"], str(tmp_path / "w.pth"), published=False) as own:
        assert np.array_equal(own(batch)["logits"], trained)
        assert NOTE not in str(own.weights_report)


@pytest.mark.parametrize("name", RENORMALISED[:2])
def test_renormalised_images_are_no_level(name):
    backend = TorchvisionBackend()
    with_weights, without = (
        backend._blueprint(Variant(name, tag)).outlets for tag in (get_model_weights(name).DEFAULT.name, None)
    )
    assert with_weights == without
    assert without[0].level == "C1"


def test_a_detector_gives_the_same_by_tag_and_by_path(monkeypatch, tmp_path):
    name, layer = "fasterrcnn_resnet50_fpn", "backbone.fpn.layer_blocks.0"
    model = plain(name)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    weights = publish(monkeypatch, name, model.state_dict())
    with torch.no_grad():
        expected = get_model(name, weights=weights).eval().backbone(torch.from_numpy(images()))["0"].numpy()
        trained = model.backbone(torch.from_numpy(images()))["0"].numpy()
    assert not np.array_equal(expected, trained)
    for source in (weights.name, str(tmp_path / "w.pth")):
        with opened(name, [layer], source) as extractor:
            assert np.array_equal(extractor(images())[layer], expected)
    with opened(name, [layer], str(tmp_path / "w.pth"), published=False) as extractor:
        assert np.array_equal(extractor(images())[layer], trained)


def makes(network):
    return {name: (type(module), getattr(module, "eps", None)) for name, module in network.named_modules()}


@pytest.mark.parametrize(
    ("name", "tag"), [(name, weights.name) for name in DETECTORS for weights in get_model_weights(name)]
)
def test_every_detector_is_built_as_torchvision_builds_it_for_its_weights(name, tag, monkeypatch):
    with torch.device("meta"):
        publish(monkeypatch, name, get_model(name, weights=None, weights_backbone=None).state_dict())
        expected = get_model(name, weights=get_model_weights(name)[tag])
        found = TorchvisionBackend().build(Variant(name, tag))
    assert makes(found) == makes(expected)


def test_published_files_of_densenet_load_by_path_under_their_old_names(tmp_path):
    model = plain("densenet121")
    state = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "w.pth")
    with opened("densenet121", ["logits"], str(tmp_path / "w.pth")) as extractor, torch.no_grad():
        assert np.array_equal(extractor(images())["logits"], model(torch.from_numpy(images())).numpy())


@pytest.mark.parametrize("published", [True, False])
def test_the_option_without_a_file_is_refused(published):
    for weights in (None, "default"):
        with pytest.raises(errors.CapabilityError, match="there is no file"):
            opened("googlenet", ["C1"], weights, published=published)


def test_the_option_is_a_switch():
    with pytest.raises(errors.SpecError, match="published"):
        opened("googlenet", ["C1"], "w.pth", published="yes")
