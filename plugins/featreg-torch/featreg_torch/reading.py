"""Files of weights: what they hold, as it was saved. Tensors and plain values only: no pickled object is ever made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from featreg.plugin import read_npz, reading_weights

__all__ = ["read_file"]

_OF_VISSL = (
    " (of a VISSL checkpoint: {'classy_state_dict': {'base_model': content['classy_state_dict']['base_model']}})"
)


def read_file(path: str) -> Any:
    """What a file of weights holds, on the CPU: names and tensors, wrapped as they may be.

    Raises WeightsError for a missing file, another format, or a pickle of anything but tensors and plain values.
    """
    with reading_weights(path, _OF_VISSL) as file:
        return _read(file)


def _read(file: Path) -> Any:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file, device="cpu")
    if file.suffix == ".npz":
        return {name: torch.from_numpy(array) for name, array in read_npz(file).items()}
    return torch.load(file, map_location="cpu", weights_only=True)
