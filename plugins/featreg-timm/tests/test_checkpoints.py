"""Checkpoints in timm's networks: VISSL's trunk and head, the moving average, and a tag without a network."""

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from torch import nn

import featreg
from featreg.errors import CapabilityError, WeightsError

MODEL = "timm:resnet18"


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return timm.create_model("resnet18").eval()


@pytest.fixture(scope="module")
def batch():
    return np.random.default_rng(4).standard_normal((2, 3, 64, 64)).astype(np.float32)


def test_a_vissl_checkpoint_gives_trunk_layers_and_head(network, batch, tmp_path):
    """As ``vissl/models/base_ssl_model.py`` (``get_classy_state``) saves it, with torchvision's names for the trunk."""
    head = nn.Sequential(nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 8))
    trunk = {f"_feature_blocks.{n}": value for n, value in network.state_dict().items() if not n.startswith("fc.")}
    model = {"trunk": trunk, "heads": {f"0.clf.{n}": value for n, value in head.state_dict().items()}}
    torch.save({"classy_state_dict": {"base_model": {"model": model}}}, tmp_path / "v.torch")
    with torch.no_grad():
        features = network.forward_features(torch.from_numpy(batch))
        pooled = network.forward_head(features, pre_logits=True)
        expected = {"C5": features, "pooled": pooled, "head": head(pooled)}
    with featreg.create_extractor(MODEL, list(expected), weights=tmp_path / "v.torch") as extractor:
        found = extractor(batch)
    for layer, tensor in expected.items():
        np.testing.assert_allclose(found[layer], tensor.numpy(), rtol=1e-5, atol=1e-6)


def test_a_layer_that_is_called_head_stays_the_models_own():
    """timm's transformers have a module of that name: their classifier."""
    with featreg.create_extractor("timm:vit_tiny_patch16_224", "head") as extractor:
        assert extractor.feature_info["head"].channels == 1000


MLP = {"mlp": [192, 64]}


@pytest.mark.parametrize(
    ("model", "layers", "options"),
    [
        ("vit_tiny_patch16_224", ["head"], {"head": MLP}),  # its classifier is called so
        ("vit_tiny_patch16_224", ["pooled"], {"head": MLP}),
        ("resnet18", ["pooled"], {"head": MLP}),  # no layer is the projection
        ("resnet18", ["C2"], {"names": "order"}),  # no file
        ("resnet18", ["C2"], {"ema": False}),
    ],
)
def test_options_without_effect_are_refused(model, layers, options):
    with pytest.raises(CapabilityError, match=f"the option {next(iter(options))!r}"):
        featreg.create_extractor(f"timm:{model}", layers, options=options)


def test_names_in_order_leave_out_a_classifier_of_other_classes(network, batch, tmp_path):
    with torch.random.fork_rng():
        other = timm.create_model("resnet18", num_classes=7)
    other.load_state_dict({**other.state_dict(), **{n: v for n, v in network.state_dict().items() if "fc." not in n}})
    renamed = {f"their{k}.{n.rpartition('.')[2]}": other.state_dict()[n] for k, n in _numbered(other)}
    torch.save(renamed, tmp_path / "w.pth")
    fields = {"weights": tmp_path / "w.pth", "options": {"names": "order"}}
    with featreg.create_extractor(MODEL, "C5", **fields) as extractor, torch.no_grad():
        expected = network.forward_features(torch.from_numpy(batch)).numpy()
        np.testing.assert_allclose(extractor(batch)["C5"], expected, rtol=1e-4, atol=1e-5)
        assert extractor.weights_report.misshaped == ("fc.bias", "fc.weight")
    with pytest.raises(WeightsError, match="paired in order"):
        featreg.create_extractor(MODEL, "logits", **fields)


def _numbered(network):
    """The names of a network's weights, each with the number of its layer."""
    names = list(network.state_dict())
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    return [(layers.index(name.rpartition(".")[0]), name) for name in names]


def test_the_moving_average_of_timms_training_is_taken(network, batch, tmp_path):
    """As ``timm.utils.CheckpointSaver`` writes it."""
    halved = {name: value / 2 if value.is_floating_point() else value for name, value in network.state_dict().items()}
    content = {
        "epoch": 3,
        "arch": "resnet18",
        "state_dict": halved,
        "state_dict_ema": network.state_dict(),
        "metric": 0.5,
    }
    torch.save(content, tmp_path / "last.pth.tar")
    logits = {}
    for average in (True, False):
        options = {} if average else {"ema": False}
        with featreg.create_extractor(MODEL, "logits", weights=tmp_path / "last.pth.tar", options=options) as extractor:
            logits[average] = extractor(batch)["logits"]
            assert extractor.weights_report.averaged == average
    with torch.no_grad():
        np.testing.assert_array_equal(logits[True], network(torch.from_numpy(batch)).numpy())
    assert not np.allclose(logits[False], logits[True])


def test_a_tag_without_a_network_names_itself_the_cache_and_the_way_out(monkeypatch):
    def fail(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", fail)
    for weights in ("default", "a1_in1k"):
        with pytest.raises(WeightsError) as caught:
            featreg.create_extractor(MODEL, "C2", weights=weights)
        assert "'a1_in1k' of timm:resnet18" in caught.value.problem
        assert HF_HUB_CACHE in caught.value.expected
        assert "weights='/path/to/file.safetensors'" in caught.value.remedy
