"""Reading layers out of a network while it runs, and running no more of it than they need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from featreg.plugin import FeatureInfo, Form, Size
from featreg_mindspore.fake import faking
from featreg_mindspore.libraries import mindspore
from featreg_mindspore.runtime import eager
from featreg_mindspore.trace import BATCH, Source, cells, run, watching

__all__ = ["Tap", "arrange", "collect", "drop", "find_unused"]


@dataclass(frozen=True)
class Tap:
    """Where a feature is taken, and how the network lays it out (see :class:`featreg.plugin.Described`).

    The source's ``call`` is a count from 0: a network runs no further than to the last array that is asked for.
    """

    feature: FeatureInfo
    source: Source
    form: Form
    prefix_tokens: int


class _AllFoundError(Exception):
    """Every tapped array is there: what the network would do next is not needed."""


def collect(
    network: Any, taps: Sequence[Tap], batch: np.ndarray[Any, Any], take: Callable[[Tap, Any], Any]
) -> list[Any]:
    """Run a network until everything is found; ``take`` gets each array the moment that it is there.

    At that moment, since later operations of the network may write into it. Hooks are set for the length of the call.
    """
    found: dict[int, Any] = {}
    calls: Counter[str] = Counter()
    named = cells(network)

    def note(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        for position, tap in enumerate(taps):
            if tap.source.cell == name and tap.source.call == calls[name]:
                found[position] = take(tap, tap.source.pick(inputs, output))
        calls[name] += 1
        if len(found) == len(taps):
            raise _AllFoundError

    watched = {tap.source.cell: named[tap.source.cell] for tap in taps}
    with eager(), watching(watched.items(), note), suppress(_AllFoundError):
        run(network, batch, wait=False)
    return [found[position] for position in range(len(taps))]


def arrange(tap: Tap, array: Any, size: Size) -> Any:
    """A copy as the specification wants it: (N, C, H, W), (N, L, D) or (N, D), contiguous; ``size`` is the images'.

    The copy goes through NumPy: on the CPU that is one copy, waits for the result, and leaves no gradient behind.
    """
    values = array.asnumpy()
    if tap.form == "channels last":
        values = np.moveaxis(values, 3, 1)
    elif tap.form == "one position":
        values = values[:, :, 0, 0]
    elif tap.form == "patches":
        positions = np.moveaxis(values[:, tap.prefix_tokens :], 2, 1)
        values = positions.reshape(*positions.shape[:2], *tap.feature.grid(*size))
    return mindspore.Tensor(np.ascontiguousarray(values))


def find_unused(twin: Any, taps: Sequence[Tap], size: Size, fake: bool) -> frozenset[str]:
    """The cells whose parameters are not read before everything is found, from a run on black images of ``size``.

    They are those that have not started by then. A cell's parent may read its parameters by itself, so the run is
    repeated without them: where that fails, none is given. ``twin`` is built as the network in question, which
    ``fake`` images would spoil.
    """
    started: set[str] = set()
    images = np.zeros((BATCH, 3, *size), dtype=np.float32)
    with faking() if fake else eager():
        with _noting_starts(twin, started):
            collect(twin, taps, images, lambda *_: None)
        unused = frozenset(cells(twin)) - started
        dropped = drop(twin, unused)
        try:
            collect(twin, taps, images, lambda *_: None)
        except Exception:  # noqa: BLE001  (a network may miss its parameters with any exception)
            return frozenset()
        finally:
            for cell, name, parameter in dropped:
                cell.insert_param_to_cell(name, parameter)
    return unused


def drop(network: Any, unused: Collection[str]) -> list[tuple[Any, str, Any]]:
    """Take the parameters of these cells out of a network; returns each cell, the name there and the parameter."""
    found = [(cell, cell._params) for name, cell in cells(network).items() if name in unused]
    dropped = [(cell, name, parameter) for cell, own in found for name, parameter in own.items()]
    for cell, name, _ in dropped:
        delattr(cell, name)
    return dropped


@contextmanager
def _noting_starts(network: Any, started: set[str]) -> Iterator[None]:
    handles: list[Any] = []
    try:
        for name, cell in cells(network).items():

            def note(_: Any, inputs: tuple[Any, ...], name: str = name) -> None:
                started.add(name)

            handles.append(cell.register_forward_pre_hook(note))
        yield
    finally:
        for handle in handles:
            handle.remove()
