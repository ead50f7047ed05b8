"""The models that the conformance kit tries on torchvision, with the modules where their layers are to be found.

Chosen small, and for what differs between them; those that are slow to open are there for some of the checks alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from featreg.plugin import Case, Layer, Size

__all__ = ["conformance_cases"]

READING = ("values.oracle", "shapes.predicted", "layout.levels", "layout.local")
"""What tells one family's layers from another's."""


def conformance_cases() -> Iterator[Case]:
    """The cases, the lightest first."""
    yield _case(
        "squeezenet1_1",  # grids that follow no formula, a least size, ReLUs that write over the convolution before
        {
            "C1": "features.1",
            "C2": "features.4",
            "C3": "features.7",
            "C4": "features.12",
            "features": "features.12",
            "logits": "",
            "features.0": "features.0",
            "features.6.squeeze": "features.6.squeeze",
        },
    )
    yield _case(
        "mobilenet_v3_small",  # can be dilated
        {
            "C1": "features.0",
            "C2": "features.1",
            "C3": "features.3",
            "C4": "features.8",
            "C5": "features.12",
            "features": "features",
            "logits": "",
            "features.4.block.2": "features.4.block.2",
        },
        {"pooled": "classifier.3"},
        checks=(*READING, "arrays.float16", "capabilities.*", "values.repeat"),
    )
    yield _case(
        "resnet18",  # a sum that is written to by the ReLU after it
        {
            "C1": "relu",
            "C2": "layer1",
            "C3": "layer2",
            "C4": "layer3",
            "C5": "layer4",
            "features": "layer4",
            "logits": "fc",
            "bn1": "bn1",
            "layer2.0.bn2": "layer2.0.bn2",
        },
        {"pooled": "fc"},
        checks=(*READING, "grad.*", "order.keys", "shapes.described", "values.alone"),
    )
    yield _case(
        "densenet121",  # ceil and floor by level, an activation that is no module, ReLUs in place
        {
            "C1": "features.relu0",
            "C2": "features.denseblock1",
            "C3": "features.denseblock2",
            "C4": "features.denseblock3",
            "C5": "features",
            "features.norm0": "features.norm0",
        },
        {"pooled": "classifier"},
        checks=(*READING, "shapes.described"),
    )
    yield _case(
        "swin_t",  # channels last inside
        {
            "C2": "features.1",
            "C3": "features.3",
            "C4": "features.5",
            "C5": "features.7",
            "features": "permute",
            "logits": "head",
        },
        {"pooled": "head"},
        checks=(*READING, "shapes.described"),
    )
    yield _case(
        "vit_b_32",  # one size alone, a class token, levels of one shape
        {
            0: "encoder.layers.encoder_layer_0",
            7: "encoder.layers.encoder_layer_7",
            "C5": "encoder.layers.encoder_layer_11",
            "features": "encoder",
            "tokens": "encoder",
            "logits": "heads",
        },
        {"pooled": "heads"},
        (224, 224),
        checks=(*READING, "layout.pooled", "layout.prefix", "shapes.outside", "values.aliases"),
    )
    yield _case(
        "lraspp_mobilenet_v3_large",  # a backbone that is dilated, a map of scores
        {"C1": "1", "C2": "3", "C3": "6", "C4": "12", "C5": "16", "features": "16", "interpolate": None},
        part="backbone",
        checks=READING,
    )
    yield _case(
        "fasterrcnn_mobilenet_v3_large_320_fpn",  # a pyramid on a body
        {
            "C4": "body.12",
            "C5": "body.16",
            "backbone.fpn.layer_blocks.0": "fpn.layer_blocks.0",
            "backbone.fpn.layer_blocks.1": "fpn.layer_blocks.1",
            "backbone.fpn.extra_blocks.max_pool2d": None,
        },
        part="backbone",
        checks=READING,
    )


def _case(
    model: str,
    outputs: Mapping[Layer, str | None],
    inputs: Mapping[Layer, str] | None = None,
    size: Size = (64, 64),
    *,
    part: str = "",
    checks: tuple[str, ...] = (),
) -> Case:
    """A case whose layers are what some modules give (None: no module does) or are given."""
    given = inputs or {}
    named = {layer: name for layer, name in outputs.items() if name is not None}

    def oracle(model: str, module: Any) -> Any:
        from featreg_torchvision.oracle import read_layers

        return read_layers(model, module.network, named, given, part)

    return Case(model, [*outputs, *given], size, oracle=oracle, checks=checks)
