"""The cases of the conformance kit: a small network of each make that open_clip has, in a folder of its own.

open_clip's own configurations take seconds to build. These are read as ``local-dir:FOLDER``, in any process; they have
the layers of the larger ones, fewer and narrower.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featreg.plugin import Case, Layer, Size
from featreg_open_clip import oracle

__all__ = ["cases"]

FOLDER = Path(__file__).parent / "tiny"

OWN = ("layout.*", "order.*", "shapes.*", "text.*", "values.*")
"""The checks of what the makes differ in; the rest is one path for all of them."""

SCALE = 1 / 0.07
"""The factor of the cosines before training (open_clip.model.CLIP)."""

BLOCKS: list[Layer] = [0, 1, "C4", "features", "tokens", "pooled", "embedding"]
STAGES: list[Layer] = ["C2", "C3", "C4", "C5"]
TEXTS: list[Layer] = ["text_embedding", "text.transformer.resblocks.0"]


def cases() -> Iterator[Case]:
    """A vision transformer, OpenAI's ResNet and a timm tower whole; CoCa and SigLIP in what is their own."""
    yield _case("vit", BLOCKS, [(64, 64)], logit_scale=(SCALE, 0.0))
    yield _case("resnet", ["C1", *STAGES, "features", "embedding"], [(64, 64)])
    yield _case("convnext", [*STAGES, "pooled", "embedding"], [(64, 64), (96, 64), (64, 96), (65, 67), (32, 32)])
    yield _case("coca", BLOCKS, [(64, 64)], checks=OWN, text_layers=TEXTS)
    siglip: list[Layer] = ["C4", "tokens", "pooled", "embedding"]
    yield _case("siglip", siglip, [(160, 160)], checks=OWN, text_layers=TEXTS, logit_scale=(SCALE, -10.0))


def _case(name: str, layers: list[Layer], sizes: list[Size], **fields: Any) -> Case:
    oracles: dict[str, Any] = {"oracle": oracle.images, "text_oracle": oracle.texts}
    return Case(f"local-dir:{FOLDER / name}", layers, sizes[0], sizes, name=f"tiny-{name}", **oracles, **fields)
