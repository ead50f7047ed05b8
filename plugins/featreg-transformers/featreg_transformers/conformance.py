"""Cases for the conformance kit, and their true values: the library's own network once more, read by plain hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import numpy as np
import torch

from featreg.plugin import Case, Layer

__all__ = ["cases", "oracle"]

_LEVELS = ("C2", "C3", "C4", "C5")
_EVEN = ((96, 64), (64, 96), (65, 67))
_COSTLY = (
    "layout.levels",
    "layout.local",
    "layout.pooled",
    "layout.prefix",
    "shapes.described",
    "shapes.outside",
    "shapes.predicted",
    "values.oracle",
)
"""The checks of models that take long, beside the two whose networks are small."""


@attrs.frozen
class _Place:
    """A module by its name in the library, and for tokens that are a map the side of a cell and the tokens before."""

    module: str
    stride: int | None = None
    prefix: int = 0

    def read(self, value: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        if self.stride is None or value.ndim != 3:
            return value
        grid = [-(-side // self.stride) for side in images.shape[2:]]
        return value[:, self.prefix :].permute(0, 2, 1).reshape(len(value), value.shape[2], *grid)


def _plain(blocks: str, norm: str, stride: int, prefix: int, last: int) -> dict[Layer, _Place]:
    numbers: dict[Layer, int] = {"C4": last, 0: 0, "block.5": 5}
    found = {layer: _Place(f"{blocks}.{number}", stride, prefix) for layer, number in numbers.items()}
    return {
        **found,
        f"{blocks}.3": _Place(f"{blocks}.3"),
        "features": _Place(norm, stride, prefix),
        "tokens": _Place(norm),
    }


_PLACES: Mapping[str, Mapping[Layer, _Place]] = {
    "deit-tiny-patch16-224": _plain("vit.layers", "vit.layernorm", 16, 1, 11),
    "dinov2-with-registers-small": _plain("encoder.layer", "layernorm", 14, 5, 11),
    "convnextv2-atto-1k-224": {
        **{level: _Place(f"convnextv2.encoder.stages.{stage}") for stage, level in enumerate(_LEVELS)},
        "features": _Place("convnextv2.encoder.stages.3"),
    },
    "mit-b0": {
        **{level: _Place(f"segformer.stages.{stage}.layer_norm", 4 << stage) for stage, level in enumerate(_LEVELS)},
        "features": _Place("segformer.stages.3.layer_norm", 32),
    },
    "swin-tiny-patch4-window7-224": {
        **{
            level: _Place(f"swin.encoder.layers.{stage}.blocks.{block}", 4 << stage)
            for stage, (level, block) in enumerate(zip(_LEVELS, (1, 1, 5, 1), strict=True))
        },
        "features": _Place("swin.layernorm", 32),
    },
}
"""Where each layer is by the library's source code."""


def cases() -> list[Case]:
    """A plain transformer of one size, one of many with registers, a convolutional and two hierarchical networks."""
    sizes = {
        "deit-tiny-patch16-224": ((224, 224),),
        "dinov2-with-registers-small": ((56, 56), (84, 56), (70, 98), (14, 14)),
        "convnextv2-atto-1k-224": ((64, 64), *_EVEN, (32, 32)),
        "mit-b0": ((64, 68), (64, 64), *_EVEN, (29, 29)),
        "swin-tiny-patch4-window7-224": ((224, 224), (193, 225)),
    }
    return [
        Case(
            model,
            [*_PLACES[model], "pooled", *([] if "dinov2" in model else ["logits"])],
            several[0],
            several,
            oracle=oracle,
            checks=() if model in ("convnextv2-atto-1k-224", "mit-b0") else _COSTLY,
        )
        for model, several in sizes.items()
    ]


def oracle(model: str, module: Any) -> Callable[[np.ndarray[Any, Any]], Mapping[Layer, np.ndarray[Any, Any]]]:
    """Layers of a network that is built anew for every call, with the weights of ``module``."""
    state, config, kind = module.network.state_dict(), module.network.config, type(module.network)

    def run(images: np.ndarray[Any, Any]) -> dict[Layer, np.ndarray[Any, Any]]:
        network, batch = kind(config).eval(), torch.from_numpy(images)
        network.load_state_dict(state, strict=False)  # what no layer of the case needs is not there
        taken: dict[str, torch.Tensor] = {}
        for name, part in network.named_modules():
            part.register_forward_hook(lambda _, __, output, name=name: taken.update({name: output}))
            part.register_forward_pre_hook(lambda _, inputs, name=name: taken.update({f"into {name}": inputs}))
        with torch.no_grad():
            output = network(pixel_values=batch)
        found = {layer: place.read(_first(taken[place.module]), batch) for layer, place in _PLACES[model].items()}
        if "logits" in output:
            found |= {"pooled": _first(taken["into classifier"]), "logits": output["logits"]}
        else:
            found["pooled"] = output["pooler_output"]
        return {layer: value.numpy() for layer, value in found.items()}

    return run


def _first(output: Any) -> torch.Tensor:
    value: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return value
