"""Leaving the process as it was found: random numbers, default dtype and default device."""

from __future__ import annotations

import contextlib
import random
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["SEED", "factory_defaults", "lock_of", "seeded"]

SEED = 0
"""The seed of random weights: two extractors opened with ``weights=None`` are equal."""

_LOCKS: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()

_LOCK = threading.RLock()  # the generators and the default dtype belong to the process: one borrower at a time


@contextlib.contextmanager
def seeded(seed: int = SEED) -> Iterator[None]:
    """Draw from ``seed`` inside, and put every CPU generator back afterwards (models are built on the CPU)."""
    with _LOCK:
        torch_state = torch.random.get_rng_state()
        python_state = random.getstate()
        numpy_state = np.random.get_state()
        try:
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would seed CUDA too
            random.seed(seed)
            np.random.seed(seed)
            yield
        finally:
            torch.random.set_rng_state(torch_state)
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextlib.contextmanager
def factory_defaults(device: str) -> Iterator[None]:
    """Make new tensors float32 on ``device`` and fit for autograd, whatever defaults and modes the caller has set."""
    with _LOCK:
        dtype = torch.get_default_dtype()
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
        try:
            with torch.device(device), torch.inference_mode(False):
                yield
        finally:
            if dtype != torch.float32:
                torch.set_default_dtype(dtype)


def lock_of(network: nn.Module) -> Any:
    """The lock that every run of a network holds: its hooks and its mode are shared by all who run it."""
    with _LOCK:
        return _LOCKS.setdefault(network, threading.RLock())
