"""Levels against the tables of specs/architectures, and heads of families that mindcv declares nothing for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from featreg_mindspore.backend import MindsporeBackend

TABLES = Path(__file__).parents[3] / "specs" / "architectures"


@pytest.fixture(scope="module")
def backend() -> MindsporeBackend:
    return MindsporeBackend()


def table(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((TABLES / f"{name}.json").read_text("utf-8"))
    return content


def listed() -> list[str]:
    return sorted(path.stem for path in TABLES.glob("*.json") if "mindspore" in table(path.stem)["backends"])


@pytest.mark.parametrize("architecture", listed())
def test_levels_are_those_of_the_table(architecture: str, backend: MindsporeBackend) -> None:
    content = table(architecture)
    own = content["backends"]["mindspore"]
    features = [feature for feature in backend.info(own["model"], (224, 224)).features if feature.level]
    found = [
        {"level": f.level, "channels": f.channels, "reduction": f.reduction, "shape": list(f.shape(1, 224, 224)[1:])}
        for f in features
    ]
    assert found == content["levels"]
    field, given = ("index", own["indices"]) if "indices" in own else ("name", own["names"])
    assert {feature.level: getattr(feature, field) for feature in features} == given


def test_a_plain_transformer_has_its_blocks_by_index(backend: MindsporeBackend) -> None:
    info = backend.info("vit_b_16_224")
    assert [info.resolve(index).name for index in range(12)] == [f"blocks.{index}" for index in range(12)]
    assert info.resolve(-1).level == "C4"
    assert (info.resolve("features").kind, info.resolve("features").prefix_tokens) == ("map", 0)
    assert (info.resolve("tokens").kind, info.resolve("tokens").prefix_tokens) == ("tokens", 1)
    assert info.resolve("tokens").class_token
    assert info.resolve("tokens").shape(3, 224, 224) == (3, 197, 768)
    assert info.resolve("blocks.5").shape(3, 224, 224) == (3, 197, 768), "what asking for this name gives"
    assert (info.resolve("blocks.5").prefix_tokens, info.resolve("blocks.5").class_token) == (1, True)
    assert info.resolve("block.5").shape(3, 224, 224) == (3, 768, 14, 14)


@pytest.mark.parametrize(
    ("model", "levels", "channels", "prefix"),
    [
        ("pvt_v2_b0", ("C2", "C3", "C4", "C5"), (32, 64, 160, 256), 0),
        ("coat_lite_tiny", ("C2", "C3", "C4", "C5"), (64, 128, 256, 320), 1),
        ("pit_ti", ("C3", "C4", "C5"), (64, 128, 256), 1),
        ("xcit_tiny_12_p16_224", ("C4",), (192,), 1),
        ("edgenext_small", ("C2", "C3", "C4", "C5"), (48, 96, 160, 304), None),
        ("squeezenet1_0", ("C1", "C2", "C3", "C4"), (96, 256, 512, 512), None),  # 1000 channels make the scores
    ],
)
def test_levels_of_what_mindcv_declares_nothing_for(
    model: str, levels: tuple[str, ...], channels: tuple[int, ...], prefix: int | None, backend: MindsporeBackend
) -> None:
    """Widths as in the papers (their tables of architectures)."""
    info = backend.info(model)
    found = {feature.level: feature.channels for feature in info.features if feature.level}
    assert found == dict(zip(levels, channels, strict=True))
    assert all(feature.kind == "map" for feature in info.features if feature.level)
    tokens = [feature.prefix_tokens for feature in info.features if feature.head == "tokens"]
    assert tokens == ([] if prefix is None else [prefix])


def test_a_convolution_that_makes_the_scores_is_no_feature(backend: MindsporeBackend) -> None:
    info = backend.info("squeezenet1_1")
    assert (info.resolve("features").name, info.resolve("features").channels) == ("features", 512)
    assert info.resolve("logits").channels == 1000


@pytest.mark.parametrize(("model", "side", "grid"), [("crossvit_9", 240, 14), ("crossvit_15", 224, 14)])
def test_the_last_of_several_stages_of_blocks_is_the_level(
    model: str, side: int, grid: int, backend: MindsporeBackend
) -> None:
    info = backend.info(model)
    assert (info.resolve("C4").name, info.resolve("C4").reduction) == ("blocks.2.blocks.1", 16)
    assert info.resolve("C4").shape(1, side, side)[2:] == (grid, grid)


def test_hrnet_takes_its_levels_from_the_class_that_mindcv_rewrites_it_in(backend: MindsporeBackend) -> None:
    """Stem and increments, as in ``HRNetFeatures.feature_info``; the stem is the first run of an activation of two."""
    info = backend.info("hrnet_w32")
    found = {feature.level: (feature.name, feature.channels, feature.reduction) for feature in info.features[:5]}
    assert found == {
        "C1": ("stem", 64, 2),
        **{f"C{n + 2}": (f"incre_modules.{n}", 128 * 2**n, 4 * 2**n) for n in range(4)},
    }
    assert info.resolve("features").channels == 2048


def test_bit_pads_before_its_pooling_and_classifies_by_a_convolution(backend: MindsporeBackend) -> None:
    """Cells of ``mindcv/models/bit.py``: ``pad`` gives 114x114, ``pool`` what ``classifier`` takes, (N, 2048, 1, 1)."""
    info = backend.info("BiT_resnet50")
    found = {feature.level: feature.name for feature in info.features if feature.level}
    assert found == {"C1": "conv1", "C2": "layer1", "C3": "layer2", "C4": "layer3", "C5": "relu"}
    assert info.resolve("C1").shape(1, 224, 224) == (1, 64, 112, 112)
    assert (info.resolve("pooled").kind, info.resolve("pooled").shape(3, 193, 257)) == ("vector", (3, 2048))


def test_a_network_that_resizes_its_images_takes_one_size(backend: MindsporeBackend) -> None:
    """Raw crossvit runs on images of any size: it resizes them first and says nothing."""
    info = backend.info("crossvit_9")
    assert info.input_rule.fixed == info.input_size
