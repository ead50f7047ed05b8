"""Checkpoints from files: weights only, every key accounted for."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featreg.plugin import errors

__all__ = ["is_path", "load_into", "read_checkpoint"]

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
_WRAPPERS = ("state_dict", "model")
_PARALLEL = "module."  # what DataParallel puts before every name
_SHOWN = 10


def is_path(weights: str) -> bool:
    """Whether ``weights`` names a file rather than a tag: it has a separator or a checkpoint's suffix."""
    return Path(weights).suffix in _SUFFIXES or "/" in weights or "\\" in weights


def read_checkpoint(path: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, on the CPU; WeightsError for a missing file, another format or a pickled object."""
    file = Path(path)
    if not file.is_file():
        raise errors.WeightsError(
            f"there is no checkpoint {path!r}", "a file", "a folder" if file.is_dir() else "nothing"
        )
    try:
        if ".safetensors" in (file.suffix, file.resolve().suffix):
            from safetensors.torch import load_file

            content: Any = load_file(file, device="cpu")
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise errors.WeightsError(
            f"{path!r} holds more than tensors, and pickled objects are not loaded",
            "a state_dict saved by torch.save, or safetensors",
            re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()[0],
            remedy="load it where you trust it and save model.state_dict() alone",
        ) from error
    except Exception as error:
        raise errors.WeightsError(
            f"{path!r} cannot be read as a checkpoint",
            f"one of {', '.join(_SUFFIXES)}",
            f"{type(error).__name__}: {error}",
        ) from error
    return _state_dict(content, path)


def _state_dict(content: Any, path: str) -> dict[str, torch.Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise errors.WeightsError(f"{path!r} holds no state_dict", "names and tensors", type(content).__name__)
    if content and all(name.startswith(_PARALLEL) for name in content):
        content = {name.removeprefix(_PARALLEL): value for name, value in content.items()}
    return dict(content)


def load_into(module: nn.Module, state: Mapping[str, torch.Tensor], origin: str) -> None:
    """Copy ``state`` into ``module``; a WeightsError lists every missing, unexpected and unfitting key.

    ``num_batches_tracked`` may be missing, as in checkpoints from before torch 0.4.1: evaluation does not read it.
    """
    own = module.state_dict()
    problems = {
        "missing": [name for name in own if name not in state and not name.endswith("num_batches_tracked")],
        "unexpected": [name for name in state if name not in own],
        "mis-shaped": [
            f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
        "of another type": [
            f"{name} {state[name].dtype} for {own[name].dtype}"
            for name in own
            if name in state and state[name].is_floating_point() != own[name].is_floating_point()
        ],
    }
    if any(problems.values()):
        raise errors.WeightsError(
            f"the weights of {origin!r} do not fit the model",
            f"its {len(own)} tensors and no others",
            "; ".join(f"{len(names)} {what}: {_shorten(names)}" for what, names in problems.items() if names),
            remedy="check the architecture and the number of classes of the checkpoint",
        )
    own.update(state)  # keeps the versions of the module's parts, by which some of them read their tensors
    module.load_state_dict(own, strict=True)


def _shorten(names: list[str]) -> str:
    more = f", … ({len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
