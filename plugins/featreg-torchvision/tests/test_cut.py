"""Cut graphs: they open for every model, hold no more than their layers need, and give the network's own values."""

import copy
import functools
import gc
import linecache

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import get_model, list_models

import featreg
from featreg.plugin import read_refused
from featreg_torch.backend import Variant
from featreg_torch.shapes import build_on_meta
from featreg_torch.taps import Glance
from featreg_torchvision.backend import TorchvisionBackend
from featreg_torchvision.graph import GraphTaps, Trace
from featreg_torchvision.levels import find_outlets
from featreg_torchvision.networks import imaged_part

BACKEND = TorchvisionBackend()
REFUSED = read_refused("featreg_torchvision")
# the RegNets, which no constructor builds without memory, differ in numbers alone
OPENED = [name for name in list_models() if name not in REFUSED and ("regnet" not in name or name.endswith("_400mf"))]


def on_meta(name):
    return build_on_meta(lambda: BACKEND.build(Variant(name)))


@pytest.mark.parametrize("name", OPENED)
def test_every_model_s_graph_serves_a_second_network(name):
    network = on_meta(name)
    second = copy.deepcopy(network)
    trace = Trace(network, functools.partial(imaged_part, model=name))
    last = list(trace.nodes)[-1]
    module = GraphTaps(trace)(second, [last], [Glance()])
    kept = dict(module.named_parameters())
    assert kept
    assert all(value is second.get_parameter(key) for key, value in kept.items())


def test_constants_that_tracing_computes_are_the_real_network_s():
    images = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    layers = ["blocks.0", "logits"]
    with featreg.create_extractor("torchvision:maxvit_t", layers) as extractor:
        found = extractor(images)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = get_model("maxvit_t", weights=None).eval()
        block = network.blocks[0](network.stem(torch.from_numpy(images)))
        logits = network(torch.from_numpy(images))
    assert np.array_equal(found["blocks.0"], block.numpy())
    assert np.array_equal(found["logits"], logits.numpy())


@pytest.mark.parametrize(
    ("layer", "prefixes"),
    [
        ("conv_proj", ("conv_proj.",)),
        (
            "encoder.layers.encoder_layer_0",
            ("conv_proj.", "class_token", "encoder.pos_embedding", "encoder.layers.encoder_layer_0."),
        ),
    ],
)
def test_a_vision_transformer_stops_behind_its_last_layer(layer, prefixes):
    network = on_meta("vit_b_32")
    module = GraphTaps(Trace(network))(network, [layer], [Glance()])
    expected = {name for name, _ in network.named_parameters() if name.startswith(prefixes)}
    assert {name for name, _ in module.named_parameters()} == expected
    assert list(module.graph.nodes)[-2].target == "take_0"


def test_assertions_on_the_images_stay():
    network = on_meta("vit_b_32")
    module = GraphTaps(Trace(network))(network, ["conv_proj"], [Glance()])
    with pytest.raises(AssertionError, match="height"):
        module(torch.empty(1, 3, 256, 224, device="meta"))


class Sided(nn.Module):
    """A classifier with a second linear layer, which runs last and does or does not make what is returned."""

    def __init__(self, added):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.drop = nn.Dropout()
        self.fc = nn.Linear(8, 5)
        self.side = nn.Linear(5, 5)
        self.added = added

    def forward(self, images):
        pooled = self.stem(images).mean((2, 3))
        logits = self.fc(pooled)
        side = self.side(logits)
        return logits + side if self.added else self.drop(logits)


@pytest.mark.parametrize(("added", "pooled"), [(False, "mean"), (True, None)])
def test_pooled_is_what_the_layer_takes_that_makes_the_output(added, pooled):
    with torch.device("meta"):
        network = Sided(added).eval()
    heads = {outlet.head: outlet.source for outlet in find_outlets(Trace(network), (64, 64)) if outlet.head}
    assert heads["logits"] == ("add" if added else "drop")
    assert heads.get("pooled") == pooled


def kept_programs():
    gc.collect()
    return [key for key in (*linecache.cache, *torch.fx.graph_module._loader.eval_cache) if "eval_with_key" in key]


def test_nothing_of_a_graph_s_program_is_left_when_it_is_gone():
    before = set(kept_programs())
    with featreg.create_extractor("torchvision:squeezenet1_1", ["C1"]) as extractor:
        extractor(np.zeros((1, 3, 64, 64), np.float32))
        assert len(set(kept_programs()) - before) == 1, "the one that runs"
    del extractor
    assert set(kept_programs()) <= before
