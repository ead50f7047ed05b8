"""Synthetic weights: mindcv's names lead to torchvision's, and back again by the rules for torch's checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import featreg
from featreg.plugin import canonical_names, draw_weight
from featreg_mindspore import networks, weights
from featreg_mindspore.families import family_of

TABLES = [
    table["backends"]["mindspore"]["model"]
    for path in sorted((Path(__file__).parents[3] / "specs" / "architectures").glob("*.json"))
    if "mindspore" in (table := json.loads(path.read_text()))["backends"]
]


def test_some_tables_have_mindspore() -> None:
    assert len(TABLES) >= 10


@pytest.mark.parametrize("model", TABLES)
def test_the_rules_of_checkpoints_lead_back(model: str) -> None:
    """To the very name for most; two names of one kind of layer (``gamma``, ``weight``) count as one."""
    own = weights.torch_names(weights.parameters(networks.build(model, filled=False)))
    canonical = canonical_names("featreg_mindspore", model).apply(own.values())
    family = family_of(model)
    assert family is not None
    (source,) = [source for source in family.sources if "torchvision" in source.library]
    assert source.names is not None
    assert source.names.apply(list(canonical.values())) == {new: (old,) for old, new in canonical.items()}


def test_the_network_holds_what_is_drawn() -> None:
    with featreg.create_extractor("mindspore:resnet18", "logits", weights="synthetic:4") as extractor:
        own = weights.parameters(extractor.module)
        found = {name: own[name].asnumpy() for name in ("conv1.weight", "bn1.gamma", "bn1.moving_variance")}
        assert extractor.weights_identity() == "synthetic:4"
        assert extractor.weights_report is None
    expected = {"conv1.weight": "conv1.weight", "bn1.gamma": "bn1.weight", "bn1.moving_variance": "bn1.running_var"}
    for name, canonical in expected.items():
        np.testing.assert_array_equal(found[name], draw_weight(4, canonical, found[name].shape))


def test_what_mindcv_computes_is_left_alone() -> None:
    """Swin's position indices and masks are parameters that are not learnt."""
    network = networks.build("swin_tiny", filled=False)
    own = weights.parameters(network)
    kept = {name: value.asnumpy().copy() for name, value in own.items() if not value.requires_grad}
    assert kept
    weights.draw_into(own, 0, canonical_names("featreg_mindspore", "swin_tiny"))
    for name, value in kept.items():
        np.testing.assert_array_equal(own[name].asnumpy(), value)
