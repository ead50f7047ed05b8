"""Arrays of any framework."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

__all__ = ["Array", "to_numpy"]

Array: TypeAlias = Any
"""A NumPy array or a framework's own tensor."""


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """Any framework's array as NumPy on the CPU; bfloat16, which NumPy lacks, widens to float32 without loss."""
    if isinstance(array, np.ndarray):
        return array
    if str(array.dtype).endswith(("bfloat16", "BFloat16")):
        array = array.float()
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    elif hasattr(array, "asnumpy"):
        array = array.asnumpy()
    return np.asarray(array)
