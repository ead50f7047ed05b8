"""MindSpore's process-wide state, borrowed and given back: execution mode, random generators, the exit."""

from __future__ import annotations

import atexit
import functools
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from featreg.plugin import errors
from featreg_mindspore.libraries import kernel_seeds, mindspore, nn

__all__ = ["TURN", "check_device", "eager", "evaluating", "quieten_exit", "seeded"]

TURN = threading.RLock()
"""Held by whoever opens, describes or runs a network: mode, device and generators belong to the process."""


@contextmanager
def eager() -> Iterator[None]:
    """PYNATIVE mode, in which alone forward hooks run; the caller's mode comes back afterwards, whatever happens."""
    with TURN:
        mode = mindspore.get_context("mode")
        if mode != mindspore.PYNATIVE_MODE:
            mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
        try:
            yield
        finally:
            if mode != mindspore.PYNATIVE_MODE:
                mindspore.set_context(mode=mode)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every generator that building a network draws from, seeded; afterwards each is as it was.

    MindSpore's initialisers draw from NumPy's global generator, its random operators from its own, and each Dropout
    that is built moves the counters behind ``mindspore.set_seed``.
    """
    counters = kernel_seeds()
    with TURN:
        saved = (np.random.get_state(), random.getstate(), mindspore.get_rng_state().asnumpy().copy(), dict(counters))
        np.random.seed(seed)
        random.seed(seed)
        mindspore.manual_seed(seed)
        try:
            yield
        finally:
            np.random.set_state(saved[0])
            random.setstate(saved[1])
            mindspore.set_rng_state(mindspore.Tensor(saved[2]))
            counters.clear()
            counters.update(saved[3])


@contextmanager
def evaluating(network: Any) -> Iterator[None]:
    """Evaluation mode for a network and all its cells; afterwards each has its own mode again."""
    with TURN:
        trained = [cell for _, cell in network.cells_and_names() if cell.training]
        network.set_train(False) if trained else None
        try:
            yield
        finally:
            for cell in trained:
                cell.add_flags(training=True)


def check_device(device: str) -> None:
    """Raise DeviceError unless the device is the CPU and MindSpore computes there."""
    with TURN:  # while another thread infers shapes, the device is none that computes
        target = mindspore.get_context("device_target")
    if device != "cpu" or target != "CPU":
        got = device if device != "cpu" else f"'cpu', while MindSpore's device_target is {target}"
        raise errors.DeviceError("the backend 'mindspore' runs on the CPU alone", "device='cpu'", got)


@functools.cache
def quieten_exit() -> None:
    """Keep networks that live until the interpreter exits from printing a traceback each; once per process.

    ``Cell.__del__`` uses globals of its module, which are None by the time the last cells go. Only at exit, and only
    what it would print as "Exception ignored" is dropped: the method still runs.
    """
    atexit.register(_quieten, nn.Cell)


def _quieten(cell: Any) -> None:
    original = cell.__del__

    def finalize(self: Any) -> None:
        try:
            original(self)
        except (AttributeError, TypeError):  # a global of a module that is gone
            return

    cell.__del__ = finalize
