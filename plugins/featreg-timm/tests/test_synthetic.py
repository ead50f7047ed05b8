"""Synthetic weights: timm's names lead to torchvision's, weight by weight, and what computes otherwise is declared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision

import featreg
from featreg.plugin import canonical_names, draw_weight

TABLES = {
    path.stem: json.loads(path.read_text())["backends"]
    for path in sorted((Path(__file__).parents[3] / "specs" / "architectures").glob("*.json"))
}


def sizes(network: torch.nn.Module) -> dict[str, int]:
    """How many numbers each weight holds: dense layers and 1x1 convolutions are shaped otherwise."""
    statistics = ((name, value) for name, value in network.named_buffers() if "running" in name)
    return {name: value.numel() for name, value in [*network.named_parameters(), *statistics]}


@pytest.mark.parametrize("name", TABLES)
def test_every_weight_has_the_name_and_the_size_of_torchvisions(name: str) -> None:
    theirs = TABLES[name]["torchvision"]["model"]
    with torch.device("cpu" if theirs.startswith("regnet_") else "meta"):  # torchvision's RegNet copies while it builds
        expected = sizes(torchvision.models.get_model(theirs))
    with torch.device("meta"):
        own = sizes(timm.create_model(TABLES[name]["timm"]["model"]))
    names = canonical_names("featreg_timm", TABLES[name]["timm"]["model"]).apply(own)
    assert {canonical: own[name] for name, canonical in names.items()} == expected


def test_a_model_that_torchvision_lacks_keeps_timms_names() -> None:
    assert canonical_names("featreg_timm", "convnext_atto").apply(["stem.0.weight"]) == {
        "stem.0.weight": "stem.0.weight"
    }


def test_the_network_holds_what_is_drawn() -> None:
    with featreg.create_extractor("timm:mobilenetv3_small_050", "logits", weights="synthetic:4") as extractor:
        network = extractor.module.network
        state = {name: value.clone() for name, value in network.state_dict().items()}
    assert len(state) > 100
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            assert value == 0
        else:
            torch.testing.assert_close(
                value, torch.from_numpy(draw_weight(4, name, tuple(value.shape))), rtol=0, atol=0, msg=name
            )


def test_what_a_library_computes_is_left_alone() -> None:
    """Swin's position indices and masks are buffers too."""
    with featreg.create_extractor("timm:swin_tiny_patch4_window7_224", "C5", weights="synthetic:0") as extractor:
        drawn = dict(extractor.module.network.named_buffers())
    plain = dict(timm.create_model("swin_tiny_patch4_window7_224").named_buffers())
    assert {name.rpartition(".")[2] for name in drawn} == {"relative_position_index", "attn_mask"}
    for name, value in drawn.items():
        assert torch.equal(value, plain[name])


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            "mobilenetv3_small_100",
            ("BatchNorm2d adds 1e-05 to the variance, not 0.001 as in torchvision (layers: 34)",),
        ),
        (
            "tf_efficientnetv2_s",
            ("convolutions pad as TensorFlow's SAME does, not evenly as in torchvision (layers: 5)",),
        ),
        ("efficientnet_b0", ()),
        ("resnet18", ()),
    ],
)
def test_deviations(model: str, said: tuple[str, ...]) -> None:
    assert featreg.describe(f"timm:{model}").deviations == said


@pytest.mark.parametrize(
    ("model", "theirs"), [("efficientnet_b4", "efficientnet_b4"), ("efficientnet_b5", "efficientnet_b5")]
)
def test_epsilons_are_torchvisions(model: str, theirs: str) -> None:
    """What is declared of a model is the epsilon that torchvision's has."""
    with torch.device("meta"):
        network: Any = torchvision.models.get_model(theirs)
    epsilons = {layer.eps for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)}
    said = featreg.describe(f"timm:{model}").deviations
    assert [f"not {epsilon:g} as in torchvision" in sentence for epsilon in epsilons for sentence in said] == (
        [] if epsilons == {1e-5} else [True]
    )
