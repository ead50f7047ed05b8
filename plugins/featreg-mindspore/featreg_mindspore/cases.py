"""The cases of the conformance kit: the lightest of mindcv's networks of each kind that the backend tells apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from featreg.plugin import Case, Size
from featreg_mindspore.oracle import CELLS, oracle

__all__ = ["cases"]

SHAPES = ("shapes.described", "shapes.outside", "shapes.predicted", "values.oracle")
OWN = ("layout.levels", "layout.local", *SHAPES)
"""The checks of what the networks differ in; the others are one path for all of them."""

TOKENS = ("layout.pooled", "layout.prefix", "shapes.crop", "shapes.outside", "shapes.predicted", "values.oracle")
"""What a transformer adds, which runs at 224x224 alone and takes a second for an image."""

SIZES = ((64, 64), (96, 64), (64, 96), (65, 67), (32, 32))
FEW = ((64, 64), (65, 67))


def cases() -> Iterator[Case]:
    """One network whole; the others in what is their own."""
    yield _case("squeezenet1_1", SIZES)  # declares nothing, and most of its grids follow no formula
    declared = (
        *OWN,
        "arrays.storage",
        "values.aliases",
    )  # its closing convolution is an index and a head, and no level
    yield _case("mobilenet_v2_035_96", SIZES, declared)
    yield _case("resnet18", ((65, 97), (64, 64)), OWN)  # its pooling pads as SAME does
    yield _case("convnextv2_atto", FEW, OWN)  # pads as SAME does, and holds maps with the channels last
    yield _case("densenet121", (*FEW, (29, 29)), SHAPES)  # mixes ceil and floor, and takes no smaller image
    yield _case("convit_tiny", ((224, 224),), TOKENS)  # tokens behind a class token


def _case(model: str, sizes: Sequence[Size], checks: Sequence[str] = ()) -> Case:
    return Case(model, [*CELLS[model]], sizes[0], sizes, oracle=oracle, checks=checks)
