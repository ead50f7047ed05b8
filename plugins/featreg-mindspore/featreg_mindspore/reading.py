"""Files of weights as NumPy arrays by name: MindSpore's own, safetensors, npz, and torch's where torch is installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from featreg.plugin import SUFFIXES, WeightsReport, errors, read_npz, reading_weights, unwrap
from featreg_mindspore.libraries import mindspore

__all__ = ["Checkpoint", "as_array", "read_checkpoint"]

_TORCH = (b"PK\x03\x04", b"\x80\x02")
"""What a file that torch.save wrote begins with, in its two formats."""


@attrs.frozen
class Checkpoint:
    """The weights of a file by name, and how they were found."""

    state: dict[str, np.ndarray[Any, Any]]
    report: WeightsReport


def read_checkpoint(path: str, *, average: bool = True) -> Checkpoint:
    """The weights in a file, taken out of whatever a training tool wrapped them in.

    Of a file with both, ``average`` takes the moving average. Raises WeightsError for a file that is missing, cannot be
    read, is a pickle of anything but tensors, or holds no weights.
    """
    with reading_weights(path) as file:
        content, is_weight = _read(file)
    state, report = unwrap(content, path, is_weight, average=average)
    return Checkpoint({name: as_array(value) for name, value in state.items()}, report)


def _read(file: Path) -> tuple[Any, Any]:
    """What a file holds, and how its weights are told from anything else."""
    if file.suffix == ".npz":
        return read_npz(file), _is_array
    with file.open("rb") as opened:
        head = opened.read(4)
    if file.suffix not in SUFFIXES and not head.startswith(_TORCH):
        raise ValueError(f"neither a suffix that is known nor a file of torch's: {file.name}")
    if file.suffix not in (".ckpt", ".safetensors") or head.startswith(_TORCH):
        torch = _torch(file)
        return torch.load(file, map_location="cpu", weights_only=True), torch.is_tensor
    kind = file.suffix[1:]
    return mindspore.load_checkpoint(str(file), format=kind), _is_parameter


def _torch(file: Path) -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise errors.WeightsError(
            f"{str(file)!r} is a file of torch's, and torch is not installed",
            "torch, to read it",
            remedy="pip install torch, or convert the file to .safetensors where torch is",
        ) from error


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _is_parameter(value: Any) -> bool:
    return isinstance(value, mindspore.Tensor)


def as_array(value: Any) -> np.ndarray[Any, Any]:
    """A weight as NumPy, which has no bfloat16."""
    if _is_array(value):
        return np.asarray(value)
    if isinstance(value, mindspore.Tensor):
        return np.asarray((value.astype(mindspore.float32) if value.dtype == mindspore.bfloat16 else value).asnumpy())
    return np.asarray((value.float() if value.is_floating_point() else value).numpy())
