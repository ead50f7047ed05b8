"""Synthetic weights: the library's names lead to torchvision's, and its networks then compute what torchvision's do.

The reference is torchvision's own network, filled here by its own names.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import transformers

import featreg
from featreg.plugin import canonical_names, draw_weight
from featreg_transformers.catalogue import published

TABLES = {
    path.stem: json.loads(path.read_text())["backends"]
    for path in sorted((Path(__file__).parents[3] / "specs" / "architectures").glob("*.json"))
}
LISTED = [name for name, backends in TABLES.items() if "transformers" in backends]
PART = re.compile(r"\[[123]/3\]")


def sizes(network: torch.nn.Module) -> dict[str, int]:
    """How many numbers each weight holds."""
    return {name: value.numel() for name, value in network.state_dict().items() if value.is_floating_point()}


def build(model: str) -> Any:
    """The library's own network, of a known checkpoint or of a model type."""
    entry = published().get(model)
    if entry is None:
        config = transformers.AutoConfig.for_model(model)
        with torch.device("meta"):
            return transformers.AutoModel.from_config(config)
    kind = getattr(transformers, entry.architecture)
    with torch.device("meta"):
        return kind(kind.config_class(**entry.config))


def filled(model: str) -> torch.nn.Module:
    """torchvision's network with synthetic weights."""
    network = torchvision.models.get_model(model).eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.from_numpy(draw_weight(0, name, tuple(value.shape))))
    return network


def test_some_tables_have_transformers() -> None:
    assert len(LISTED) >= 8


@pytest.mark.parametrize("name", LISTED)
def test_every_weight_has_the_name_and_the_size_of_torchvisions(name: str) -> None:
    model = TABLES[name]["transformers"]["model"]
    with torch.device("meta"):
        expected = sizes(torchvision.models.get_model(TABLES[name]["torchvision"]["model"]))
    own = sizes(build(model))
    found: dict[str, int] = {}
    for given, canonical in canonical_names("featreg_transformers", model).apply(own).items():
        whole = PART.sub("", canonical)
        found[whole] = found.get(whole, 0) + own[given]
    if name == "mobilenet_v2":  # the base model
        expected = {key: size for key, size in expected.items() if not key.startswith("classifier")}
    assert found == expected


@pytest.mark.parametrize(
    ("model", "theirs", "config", "size"),
    [
        ("resnet-18", "resnet18", {}, (65, 97)),
        (
            "mobilenet_v2_1.0_224",
            "mobilenet_v2",
            {"layer_norm_eps": 1e-5, "num_labels": 1000, "tf_padding": False},
            (65, 97),
        ),
        ("convnext-tiny-224", "convnext_tiny", {"layer_norm_eps": 1e-6}, (65, 97)),
        ("swin-tiny-patch4-window7-224", "swin_t", {}, (224, 224)),
    ],
)
def test_scores_are_torchvisions(model: str, theirs: str, config: dict[str, Any], size: tuple[int, int]) -> None:
    images = np.random.default_rng(1).standard_normal((1, 3, *size), dtype=np.float32)
    with torch.no_grad():
        expected = filled(theirs)(torch.from_numpy(images)).numpy()
    request: dict[str, Any] = {"weights": "synthetic:0", "options": {"config": config} if config else {}}
    with featreg.create_extractor(f"transformers:{model}", "logits", **request) as extractor:
        assert extractor.info.deviations == ()
        found = extractor(images)["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_efficientnet_departs_from_torchvisions_as_declared_and_not_otherwise() -> None:
    """Its scores are those of torchvision's network with the declared padding and epsilon."""
    reference: Any = filled("efficientnet_b0")
    for layer in reference.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = 1e-3
        elif isinstance(layer, torch.nn.Conv2d) and layer.stride == (2, 2):
            half, layer.padding = layer.kernel_size[0] // 2, (0, 0)
            sides = (half - 1, half, half - 1, half)
            layer.register_forward_pre_hook(lambda _, inputs, s=sides: torch.nn.functional.pad(inputs[0], s))
    images = np.random.default_rng(1).standard_normal((1, 3, 65, 97), dtype=np.float32)
    with torch.no_grad():
        expected = reference(torch.from_numpy(images)).numpy()
    with featreg.create_extractor("transformers:efficientnet-b0", "logits", weights="synthetic:0") as extractor:
        found = extractor(images)["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_what_the_configuration_cannot_mend_is_the_padding_of_a_stem() -> None:
    """EfficientNet's first convolution alone pads behind, whatever ``depthwise_padding`` says of the others."""
    config = {"depthwise_padding": [1, 3, 5, 11], "batch_norm_eps": 1e-5}
    with featreg.create_extractor("transformers:efficientnet-b0", "C1", options={"config": config}) as extractor:
        said = extractor.info.deviations
    assert said == ("convolutions pad a pixel more behind than before, not evenly as in torchvision (layers: 1)",)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("resnet-18", ()),
        ("swin-tiny-patch4-window7-224", ()),
        ("convnextv2-atto-1k-224", ()),  # which torchvision does not have
        ("convnext-tiny-224", ("LayerNorm adds 1e-12 to the variance, not 1e-06 as in torchvision (layers: 1)",)),
        ("vit-base-patch16-224", ("LayerNorm adds 1e-12 to the variance, not 1e-06 as in torchvision (layers: 25)",)),
        (
            "mobilenet_v2_1.0_224",
            (
                "convolutions pad as TensorFlow's SAME does, not evenly as in torchvision (layers: 5)",
                "BatchNorm2d adds 0.001 to the variance, not 1e-05 as in torchvision (layers: 52)",
                "scores 1001 classes, the first of them the background, not 1000 as in torchvision",
            ),
        ),
        (
            "efficientnet-b0",
            (
                "convolutions pad a pixel more behind than before, not evenly as in torchvision (layers: 5)",
                "BatchNorm2d adds 0.001 to the variance, not 1e-05 as in torchvision (layers: 49)",
            ),
        ),
    ],
)
def test_deviations(model: str, said: tuple[str, ...]) -> None:
    assert featreg.describe(f"transformers:{model}").deviations == said
