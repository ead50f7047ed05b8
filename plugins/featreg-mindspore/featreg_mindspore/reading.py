"""Files of weights as NumPy arrays by name: MindSpore's own, safetensors, npz, and torch's where torch is installed."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from featreg.plugin import WeightsReport, errors, unwrap
from featreg_mindspore.libraries import mindspore
from featreg_mindspore.trace import message

__all__ = ["SUFFIXES", "Checkpoint", "read_checkpoint"]

SUFFIXES = (".ckpt", ".safetensors", ".npz", ".pth", ".pt", ".bin", ".tar", ".torch")

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
    file = Path(path).expanduser()
    if not file.is_file():
        raise errors.WeightsError(
            f"there is no checkpoint {path!r}",
            f"'default', or the path of a file: {', '.join(SUFFIXES)}",
            "a folder" if file.is_dir() else "no such file",
            remedy="weights=None gives random weights from a fixed seed",
        )
    if file.suffix not in SUFFIXES:
        raise errors.WeightsError(f"{path!r} is no checkpoint", f"one of {', '.join(SUFFIXES)}", file.name)
    try:
        content, is_weight = _read(file)
    except errors.FeatregError:
        raise
    except pickle.UnpicklingError as error:
        raise errors.WeightsError(
            f"{path!r} holds more than tensors, and pickled objects are not loaded",
            "a state_dict saved by torch.save, or safetensors",
            message(error),
            remedy="where you trust the file, load it in torch and save the state_dict in it alone",
        ) from error
    except Exception as error:
        raise errors.WeightsError(f"{path!r} cannot be read as a checkpoint", "weights", message(error)) from error
    state, report = unwrap(content, path, is_weight, average=average)
    return Checkpoint({name: _as_array(value) for name, value in state.items()}, report)


def _read(file: Path) -> tuple[Any, Any]:
    """What a file holds, and how its weights are told from anything else."""
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}, _is_array
    with file.open("rb") as opened:
        head = opened.read(4)
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


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    """A weight as NumPy, which has no bfloat16."""
    if _is_array(value):
        return np.asarray(value)
    if isinstance(value, mindspore.Tensor):
        return np.asarray((value.astype(mindspore.float32) if value.dtype == mindspore.bfloat16 else value).asnumpy())
    return np.asarray((value.float() if value.is_floating_point() else value).numpy())
