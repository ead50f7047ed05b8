"""Where the library's networks compute otherwise than torchvision's, read off their own layers.

torchvision's epsilons and paddings are those of its sources (``torchvision/models/convnext.py``, ``efficientnet.py``,
``mobilenetv2.py``, ``vision_transformer.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

__all__ = ["deviations"]

_EPSILONS = {
    "convnext-*": 1e-6,
    "efficientnet-b0": 1e-5,
    "mobilenet_v2*": 1e-5,
    "resnet-*": 1e-5,
    "swin-*": 1e-5,
    "vit-*": 1e-6,
}
"""The epsilon of all of torchvision's normalising layers, by the library's name of a model (shell patterns)."""

_SAME = "convolutions pad as TensorFlow's SAME does"
_BEHIND = "convolutions pad a pixel more behind than before"
_BACKGROUND = 1001
"""ImageNet's classes and one for the background, which comes first."""


def deviations(network: nn.Module, model: str) -> tuple[str, ...]:
    """A sentence for each way in which a network departs from torchvision's; none where that has no such network."""
    epsilon = next((value for pattern, value in _EPSILONS.items() if fnmatchcase(model, pattern)), None)
    if epsilon is None:
        return ()
    found: Counter[str] = Counter()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.LayerNorm) and layer.eps != epsilon:
            kind = "BatchNorm2d" if isinstance(layer, nn.BatchNorm2d) else "LayerNorm"
            found[f"{kind} adds {layer.eps:g} to the variance, not {epsilon:g} as in torchvision"] += 1
        found.update(f"{padding}, not evenly as in torchvision" for padding in _paddings(layer))
    sentences = [f"{what} (layers: {count})" for what, count in found.items()]
    return (*sentences, *_classes(network))


def _paddings(parent: nn.Module) -> Iterator[str]:
    """How the convolutions with a stride right below a module pad, as far as that is uneven.

    These have no padding of their own: a layer before them pads, or the forward pass does, as TensorFlow's SAME.
    """
    children = list(parent.children())
    for before, layer in zip([None, *children], children, strict=False):
        if not isinstance(layer, nn.Conv2d) or layer.padding not in ("valid", (0, 0)):
            continue
        if layer.kernel_size[0] <= layer.stride[0] or layer.stride[0] == 1:
            continue
        if not isinstance(before, nn.ZeroPad2d):
            yield _SAME
        elif before.padding[0] != before.padding[1]:
            yield _BEHIND


def _classes(network: Any) -> Iterator[str]:
    if isinstance(getattr(network, "classifier", None), nn.Linear) and network.config.num_labels == _BACKGROUND:
        yield "scores 1001 classes, the first of them the background, not 1000 as in torchvision"
