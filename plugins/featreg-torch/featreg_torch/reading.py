"""Files of weights: what they hold, as it was saved. Tensors and plain values only: no pickled object is ever made."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featreg.plugin import errors

__all__ = ["SUFFIXES", "is_path", "read_file"]

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".torch")


def is_path(weights: str) -> bool:
    """Whether ``weights`` names a file rather than a tag: it has a separator or a checkpoint's suffix."""
    return Path(weights).suffix in SUFFIXES or "/" in weights or "\\" in weights


def read_file(path: str) -> Any:
    """What a file of weights holds, on the CPU: names and tensors, wrapped as they may be.

    Raises WeightsError for a missing file, another format, or a pickle of anything but tensors and plain values.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise errors.WeightsError(
            f"there is no checkpoint {path!r}", "a file", "a folder" if file.is_dir() else "nothing"
        )
    try:
        return _read(file)
    except pickle.UnpicklingError as error:
        raise errors.WeightsError(
            f"{path!r} holds more than tensors, and pickled objects are not loaded",
            "a state_dict saved by torch.save, or safetensors",
            re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()[0],
            remedy="where you trust the file, convert it: content = torch.load(path, weights_only=False), then "
            "torch.save the state_dict in it alone (of a VISSL checkpoint: {'classy_state_dict': {'base_model': "
            "content['classy_state_dict']['base_model']}})",
        ) from error
    except Exception as error:
        raise errors.WeightsError(
            f"{path!r} cannot be read as a checkpoint",
            f"one of {', '.join(SUFFIXES)}",
            f"{type(error).__name__}: {error}",
        ) from error


def _read(file: Path) -> Any:
    suffixes = (file.suffix, file.resolve().suffix)  # a hub's cache links to files without a suffix, or the other way
    if ".safetensors" in suffixes:
        from safetensors.torch import load_file

        return load_file(file, device="cpu")
    if ".npz" in suffixes:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return torch.load(file, map_location="cpu", weights_only=True)
