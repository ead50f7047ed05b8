"""Weights that torchvision publishes: what a network must be for them, and how their files are read.

torchvision's builders do both at once, and read with a full unpickler, which runs whatever a file says.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import GoogLeNet, Inception3
from torchvision.ops import FrozenBatchNorm2d

from featreg.plugin import errors

__all__ = ["adjust", "changes", "fit_names", "input_options", "read_state"]

_FROZEN = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": (),
    "fasterrcnn_mobilenet_v3_large_fpn": (),
    "fasterrcnn_resnet50_fpn": ("COCO_V1",),
    "fcos_resnet50_fpn": (),
    "keypointrcnn_resnet50_fpn": ("COCO_V1",),
    "maskrcnn_resnet50_fpn": ("COCO_V1",),
    "retinanet_resnet50_fpn": ("COCO_V1",),
}
"""The detectors whose BatchNorm is frozen in training, each with the weights that were trained without its epsilon."""

_COUNTER = ".num_batches_tracked"
_OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


def input_options(kind: type) -> dict[str, Any]:
    """The arguments of a class of networks whose weights come from another library, normalised otherwise."""
    return {"transform_input": True} if issubclass(kind, (GoogLeNet, Inception3)) else {}


def adjust(network: nn.Module, model: str, tag: str) -> None:
    """Make of a network what the published weights of a tag were trained as: detectors have frozen BatchNorm."""
    if model in _FROZEN:
        _freeze_norms(network, {"eps": 0.0} if tag in _FROZEN[model] else {})


def changes(network: nn.Module, model: str) -> str:
    """In words what sets a network for published weights apart; empty where nothing does."""
    if getattr(network, "transform_input", False):
        return "images are renormalised inside (transform_input)"
    return "BatchNorm is frozen, with the epsilon of its training" if model in _FROZEN else ""


def read_state(weights: Any) -> dict[str, torch.Tensor]:
    """The tensors of published weights by name.

    Raises WeightsError for a file of anything else, and whatever the download raises.
    """
    try:
        state: dict[str, torch.Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except pickle.UnpicklingError as error:
        path = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
        raise errors.WeightsError(
            f"the file that the cache has for the weights {weights.name} is none of torchvision's",
            "tensors by name: other pickled objects are not loaded",
            str(error).partition("\n")[0],
            remedy=f"delete {path}, and open the model while online",
        ) from error
    return state


def fit_names(state: Mapping[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
    """Published weights under the names of a network: DenseNet's are older, and frozen BatchNorm counts no batches."""
    frozen = {name for name, module in network.named_modules() if isinstance(module, FrozenBatchNorm2d)}
    names = {name: _OLD_NAME.sub(r"\1\2", name) for name in state if name.removesuffix(_COUNTER) not in frozen}
    fitting = OrderedDict((new, state[name]) for name, new in names.items())
    vars(fitting).update(getattr(state, "__dict__", {}))  # the versions by which some modules read their tensors
    return fitting


def _freeze_norms(module: nn.Module, options: Mapping[str, float]) -> None:
    for name, part in module.named_children():
        if isinstance(part, nn.BatchNorm2d):
            module.add_module(name, FrozenBatchNorm2d(part.num_features, **options))
        else:
            _freeze_norms(part, options)
