"""Devices and number formats by name."""

from __future__ import annotations

import torch

from featreg.plugin import errors

__all__ = ["DTYPES", "find_device"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def find_device(name: str) -> torch.device:
    """The device of a name such as ``"cpu"`` or ``"cuda:1"``; DeviceError where there is none."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise errors.DeviceError(f"no such device: {name!r}", "'cpu', 'cuda' or 'cuda:N'", repr(name)) from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise errors.DeviceError(f"the device {name!r} is not supported", "'cpu', 'cuda' or 'cuda:N'", repr(name))
    if not torch.cuda.is_available():
        raise errors.DeviceError(
            f"the device {name!r} was asked for, but torch {torch.__version__} finds no CUDA device",
            "a CUDA device and a torch build with CUDA",
            "the CPU only",
            remedy="pass device='cpu', or check nvidia-smi and torch.cuda.is_available()",
        )
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise errors.DeviceError(f"no device {name!r}", f"cuda:0 to cuda:{count - 1}", repr(name))
    return device
