"""Where timm's networks compute otherwise than torchvision's, read off timm's own layers.

torchvision's epsilons and paddings are those of its sources (``torchvision/models/mobilenetv3.py``,
``efficientnet.py``).
"""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase

from timm.layers import Conv2dSame
from torch import nn

__all__ = ["deviations"]

_EPSILONS = {
    "mobilenetv3_*_100": 1e-3,
    "efficientnet_b[0-4]": 1e-5,
    "efficientnet_b[5-7]": 1e-3,
    "tf_efficientnetv2_[sml]": 1e-3,
}
"""The epsilon of torchvision's batch normalisation, by timm's name of a model (shell patterns)."""


def deviations(network: nn.Module, model: str) -> tuple[str, ...]:
    """A sentence for each way in which a network departs from torchvision's; none where that has no such network."""
    epsilon = next((value for pattern, value in _EPSILONS.items() if fnmatchcase(model, pattern)), None)
    if epsilon is None:
        return ()
    found: Counter[str] = Counter()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.eps != epsilon:
            found[f"BatchNorm2d adds {layer.eps:g} to the variance, not {epsilon:g} as in torchvision"] += 1
        elif isinstance(layer, Conv2dSame):
            found["convolutions pad as TensorFlow's SAME does, not evenly as in torchvision"] += 1
    return tuple(f"{what} (layers: {count})" for what, count in found.items())
