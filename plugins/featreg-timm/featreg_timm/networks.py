"""timm's networks as a request wants them: dilated, of another image size, of other classes."""

from __future__ import annotations

from typing import Any

import attrs
import timm
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

from featreg_timm.options import Build
from featreg_torch.state import factory_defaults, seeded
from featreg_torch.weights import Checkpoint

__all__ = ["create_network", "resample"]


def create_network(name: str, output_stride: int | None, build: Build, *, pretrained: bool) -> nn.Module:
    """``timm.create_model``, dilated wherever timm dilates; raises whatever timm does, or ValueError."""
    arguments = {"pretrained": pretrained, **dict(build)}
    if output_stride is None:
        network: nn.Module = timm.create_model(name, **arguments)
        return network
    try:
        network = timm.create_model(name, output_stride=output_stride, **arguments)
    except TypeError:
        network = timm.create_model(name, **arguments)
        if not isinstance(network, MobileNetV3):
            raise
        _dilate_blocks(network, name, output_stride)
    declared: Any = network.feature_info
    reached = declared[-1]["reduction"]
    if reached != output_stride:  # many take any number
        raise ValueError(f"the stride is {reached} then")
    return network


def _dilate_blocks(network: Any, name: str, output_stride: int) -> None:
    """Give a MobileNetV3 the blocks of its ``features_only`` twin, which alone takes an output stride in timm.

    The head pools whatever grid it gets, as in timm's EfficientNet, whose classifier does take one.
    """
    twin: Any = timm.create_model(name, features_only=True, output_stride=output_stride)
    twin.blocks.load_state_dict(network.blocks.state_dict())
    network.blocks = twin.blocks
    network.feature_info = twin.feature_info.info


def resample(checkpoint: Checkpoint, network: nn.Module, name: str, build: Build) -> Checkpoint:
    """A checkpoint with what depends on the images, such as positional embeddings, as timm itself resamples it.

    What timm cannot bring into shape is left for the loading to report.
    """
    own, given = network.state_dict(), checkpoint.state
    misfits = {key for key in own.keys() & given.keys() if own[key].shape != given[key].shape}
    other_classes = {key for key in misfits if key.startswith(_classifiers(network))}
    sized = misfits - other_classes
    if not sized:
        return checkpoint
    state = own | {key: given[key] for key in own.keys() & given.keys() - other_classes}
    overlay = {"state_dict": state, "num_classes": getattr(network, "num_classes", 0)}
    try:
        with seeded(), factory_defaults("cpu"):
            twin = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **dict(build))
    except Exception:  # noqa: BLE001  (the report of what does not fit says more than whatever this is)
        return checkpoint
    resampled = twin.state_dict()
    note = f"resampled by timm to the images asked for: {', '.join(sorted(sized))}"
    return attrs.evolve(
        checkpoint,
        state={**given, **{key: resampled[key] for key in sized}},
        report=attrs.evolve(checkpoint.report, notes=(*checkpoint.report.notes, note)),
    )


def _classifiers(network: Any) -> tuple[str, ...]:
    """The prefixes of the weights of a network's classifiers; some have two."""
    named = network.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ((named,) if isinstance(named, str) else named))
