"""One forward pass, watched: which cell gave what, in which order."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from featreg.plugin import Size, errors
from featreg_mindspore.libraries import mindspore
from featreg_mindspore.runtime import eager
from featreg_mindspore.shapes import Shape

__all__ = ["INPUT", "WHOLE", "Event", "cells", "message", "run", "shape_of", "trace", "watching"]

INPUT = ".input"
"""The suffix of a tap on what goes into a cell, where no cell gives that array (a ViT's class token, sliced off)."""

WHOLE = "output"
"""The name of the network itself, which has none in the library: what it returns, where no cell gives that array."""

_LONGEST = 300

Hook: TypeAlias = Callable[[str, tuple[Any, ...], Any], None]


@dataclass(frozen=True)
class Event:
    """A cell has finished: its name, itself, what it was given and what it gave."""

    name: str
    cell: Any
    inputs: tuple[Any, ...]
    output: Any


def cells(network: Any) -> dict[str, Any]:
    """Every cell of a network by the library's own name, the network itself as ``WHOLE``."""
    named = {name: cell for name, cell in network.cells_and_names() if name}
    return {WHOLE: network, **named}


@contextmanager
def watching(named: Iterable[tuple[str, Any]], hook: Hook) -> Iterator[None]:
    """Call ``hook(name, inputs, output)`` whenever one of these cells finishes; no hook is left behind."""
    handles: list[Any] = []
    try:
        for name, cell in named:
            handles.append(cell.register_forward_hook(_bound(hook, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bound(hook: Hook, name: str) -> Callable[[Any, tuple[Any, ...], Any], None]:
    def call(_: Any, inputs: tuple[Any, ...], output: Any) -> None:
        hook(name, inputs, output)

    return call


def trace(network: Any, size: Size) -> list[Event]:
    """Every cell's events for one black image of this size; the network itself comes last.

    MindSpore has no fake tensors, and compiling a network for its shapes takes longer than running it on small images.
    Raises InputError where the network does not take the size, with the framework's own error chained.
    """
    named = cells(network)
    events: list[Event] = []

    def note(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        events.append(Event(name, named[name], inputs, output))

    with eager(), watching(named.items(), note):
        try:
            run(network, np.zeros((1, 3, *size), dtype=np.float32))
        except Exception as error:
            raise errors.InputError(
                "the network does not run on images of this size",
                got=f"{size[0]}x{size[1]}: {message(error)}",
                remedy="resize or crop the images (extractor.preprocess says how the weights were trained)",
            ) from error
    return events


def run(network: Any, batch: np.ndarray[Any, Any]) -> Any:
    """A forward pass that has finished when this returns: MindSpore computes, and raises, with a delay."""
    with eager():
        output = network(mindspore.Tensor(batch))
        for array in output if isinstance(output, tuple | list) else (output,):
            array.asnumpy()
    return output


def shape_of(array: Any) -> Shape | None:
    """The shape of a tensor; None of anything else, of an empty one too."""
    if not isinstance(array, mindspore.Tensor) or 0 in array.shape:
        return None
    return tuple(int(side) for side in array.shape)


def message(error: BaseException) -> str:
    """What a framework's exception says, in one line and without its C++ call stack."""
    words = str(error).partition("\n----")[0].split()
    return textwrap.shorten(f"{type(error).__name__}: {' '.join(words)}", _LONGEST, placeholder=" ...")
