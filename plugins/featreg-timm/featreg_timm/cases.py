"""The models that the conformance kit tries on timm: its own for tests, and two for what these lack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from featreg.plugin import Case, Layer, Size

__all__ = ["conformance_cases"]

READING = ("values.oracle", "values.aliases", "shapes.predicted", "shapes.described", "layout.*", "order.keys")
"""What tells one family's layers from another's."""

LEVELS = ("C1", "C2", "C3", "C4", "C5")
HEADS = ("features", "pooled", "logits")


def conformance_cases() -> Iterator[Case]:
    """The cases, the lightest first."""
    yield _case("test_resnet", [*LEVELS, *HEADS], hooked={"bn1": "bn1", "layer2.0.bn1": "layer2.0.bn1"})
    # a class token, blocks of one shape, multiples of the patch
    yield _case("test_vit", [0, 3, "C4", "features", "tokens", "pooled", "logits"], hooked={"blocks.1": "blocks.1"})
    # no prefix token, and one size alone
    yield _case(
        "test_vit_relpos",
        [1, "C4", "tokens", *HEADS],
        (160, 160),
        checks=(*READING, "shapes.outside", "shapes.batch", "values.batch"),
    )
    # channels last inside
    yield _case("test_mambaout", [*LEVELS[1:], *HEADS], checks=(*READING, "grad.input", "shapes.drawn"))
    # grids that round down from a least size on, which can be dilated
    yield _case("test_convnext", [*LEVELS[1:], *HEADS], checks=(*READING, "capabilities.*", "shapes.outside"))
    # windows that let multiples of 160 in
    yield _case("test_maxvit", [*LEVELS, *HEADS], (160, 160), checks=("values.oracle", "shapes.outside"))
    # levels that are maps of a list, which no module gives
    yield _case("hrnet_w18_small", [*LEVELS, *HEADS], checks=(*READING, "values.alone"))
    # a class token and four registers, rotary positions, no logits
    yield _case("vit_tiny_patch16_dinov3_qkvb", [5, "C4", "features", "tokens", "pooled"], checks=READING)


def _case(
    model: str,
    layers: Sequence[Layer],
    size: Size = (64, 64),
    *,
    hooked: Mapping[Layer, str] | None = None,
    checks: tuple[str, ...] = (),
) -> Case:
    """A case with layers by which timm itself gives them, and those of the modules of some names."""
    named = hooked or {}

    def oracle(model: str, module: Any) -> Any:
        from featreg_timm.oracle import read_layers

        truth = read_layers(model, module.network, named)
        wanted = {*layers, *named}
        return lambda images: {layer: array for layer, array in truth(images).items() if layer in wanted}

    return Case(model, [*layers, *named], size, oracle=oracle, checks=checks)
