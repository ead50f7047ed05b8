"""MindSpore and mindcv, typed as Any: the annotations of the one are partial, the other has none."""

from __future__ import annotations

import importlib
from typing import Any

import mindcv as _mindcv
import mindspore as _mindspore

__all__ = ["kernel_seeds", "mindcv", "mindspore", "nn"]

mindcv: Any = _mindcv
mindspore: Any = _mindspore
nn: Any = _mindspore.nn


def kernel_seeds() -> dict[Any, Any]:
    """The counters behind ``mindspore.set_seed``, which have no public reader; empty where a version keeps none."""
    seeds: dict[Any, Any] = getattr(importlib.import_module("mindspore.common.seed"), "_KERNEL_SEED", {})
    return seeds
