"""Synthetic weights: mindcv's names lead to torchvision's, and back again by the rules for torch's checkpoints."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

import featreg
from featreg.plugin import ExtractionRequest, canonical_names, draw_weight
from featreg_mindspore import networks, weights
from featreg_mindspore.backend import MindsporeBackend
from featreg_mindspore.families import family_of
from featreg_mindspore.libraries import nn

TABLES = [
    table["backends"]["mindspore"]["model"]
    for path in sorted((Path(__file__).parents[3] / "specs" / "architectures").glob("*.json"))
    if "mindspore" in (table := json.loads(path.read_text()))["backends"]
]
PART = re.compile(r"\[[123]/3\]")


def test_some_tables_have_mindspore() -> None:
    assert len(TABLES) >= 14


@pytest.mark.parametrize("model", TABLES)
def test_the_rules_of_checkpoints_lead_back(model: str) -> None:
    """To the very name, or to all parts of a weight in their order (Swin's query, key and value)."""
    own = weights.torch_names(weights.parameters(networks.build(model, filled=False)))
    canonical = canonical_names("featreg_mindspore", model).apply(own.values())
    family = family_of(model)
    assert family is not None
    (source,) = [source for source in family.sources if "torchvision" in source.library]
    assert source.names is not None
    wholes: dict[str, list[str]] = {}
    for new, old in sorted((new, old) for old, new in canonical.items()):
        wholes.setdefault(PART.sub("", new), []).append(old)
    assert source.names.apply(list(wholes)) == {whole: tuple(parts) for whole, parts in wholes.items()}


def test_the_network_holds_what_is_drawn() -> None:
    with featreg.create_extractor("mindspore:resnet18", "logits", weights="synthetic:4") as extractor:
        own = weights.parameters(extractor.module)
        found = {name: own[name].asnumpy() for name in ("conv1.weight", "bn1.gamma", "bn1.moving_variance")}
        assert extractor.weights_identity() == "synthetic:4"
        assert extractor.weights_report is None
    expected = {"conv1.weight": "conv1.weight", "bn1.gamma": "bn1.weight", "bn1.moving_variance": "bn1.running_var"}
    for name, canonical in expected.items():
        np.testing.assert_array_equal(found[name], draw_weight(4, canonical, found[name].shape))


def test_every_weight_has_a_place_in_torchvisions_network() -> None:
    """DenseNet's and ViT's names by those of torchvision's own network, and the sizes of what they name."""
    for model, theirs in (("densenet121", "densenet121"), ("vit_b_16_224", "vit_b_16"), ("swin_tiny", "swin_t")):
        with torch.device("meta"):
            state = torchvision.models.get_model(theirs).state_dict()
        own = weights.parameters(networks.build(model, filled=False))
        torchs = weights.torch_names(own)
        canonical = canonical_names("featreg_mindspore", model).apply(torchs.values())
        found: dict[str, int] = {}
        for name, value in own.items():
            if value.requires_grad or "moving" in name:
                whole = PART.sub("", canonical[torchs[name]])
                found[whole] = found.get(whole, 0) + value.size
        assert found == {name: value.numel() for name, value in state.items() if value.is_floating_point()}, model


class Vgg(nn.Cell):  # type: ignore[misc]
    """A small VGG as mindcv builds them: no biases in the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.SequentialCell([nn.Conv2d(3, 4, 3, pad_mode="pad", padding=1), nn.ReLU()])
        self.classifier = nn.SequentialCell([nn.Dense(4, 6)])

    def construct(self, x: Any) -> Any:
        return self.classifier(self.features(x).mean((2, 3)))


def test_torchs_biases_are_drawn_where_a_vgg_is_to_compute_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "build", lambda model, filled=True: Vgg().set_train(False))
    backend = MindsporeBackend()
    plain = backend.open(ExtractionRequest("vgg16", ["features.1"], weights="synthetic:0"))
    assert any("no bias" in sentence for sentence in plain.info.deviations)
    assert "features.0.bias" not in weights.parameters(plain.module)
    alike = backend.open(
        ExtractionRequest("vgg16", ["features.1"], weights="synthetic:0", options={"padding": "torch"})
    )
    assert alike.info.deviations == ()
    bias, expected = weights.parameters(alike.module)["features.0.bias"], draw_weight(0, "features.0.bias", (4,))
    np.testing.assert_array_equal(bias.asnumpy(), expected)


def test_what_mindcv_computes_is_left_alone() -> None:
    """Swin's position indices and masks are parameters that are not learnt."""
    network = networks.build("swin_tiny", filled=False)
    own = weights.parameters(network)
    kept = {name: value.asnumpy().copy() for name, value in own.items() if not value.requires_grad}
    assert kept
    weights.draw_into(own, 0, canonical_names("featreg_mindspore", "swin_tiny"))
    for name, value in kept.items():
        np.testing.assert_array_equal(own[name].asnumpy(), value)
