"""One forward pass, watched: which cell gave what, in which order."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from featreg.plugin import Shape, Size, errors
from featreg_mindspore.fake import faking
from featreg_mindspore.libraries import mindspore
from featreg_mindspore.runtime import eager

__all__ = ["BATCH", "WHOLE", "Event", "Source", "cells", "message", "observe", "run", "shape_of", "trace", "watching"]

WHOLE = "output"
"""The name of the network itself, which has none in the library: what it returns, where no cell gives that array."""

BATCH = 2
"""Images in a traced pass: what has another first axis (a table of positions, windows) holds no features of images."""

_LONGEST = 300

Hook: TypeAlias = Callable[[str, tuple[Any, ...], Any], None]


@dataclass(frozen=True)
class Event:
    """A cell has finished for the ``call``-th time (from 0): its name, itself, what it was given and what it gave."""

    name: str
    cell: Any
    call: int
    inputs: tuple[Any, ...]
    output: Any


@dataclass(frozen=True)
class Source:
    """Where an array leaves a network: a cell's output, or the first input of that cell.

    ``call`` is the run of a cell that runs several times, from 0, and -1 its last, as of all others.
    ``element`` is the position in a cell's output that is a list.
    """

    cell: str
    call: int = -1
    takes_input: bool = False
    element: int | None = None

    def pick(self, inputs: Sequence[Any], output: Any) -> Any:
        """The array itself, from what the cell was given and gave; None where there is none."""
        if self.takes_input:
            return inputs[0] if inputs else None
        if self.element is None:
            return output
        return output[self.element] if self.element < len(output) else None


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


def trace(network: Any, size: Size, fake: bool = False) -> list[Event]:
    """Every cell's events for a batch of black images of this size, fake ones if asked; the network comes last.

    Raises InputError where the network does not take the size, with the framework's own error chained.
    """
    named = cells(network)
    counts: Counter[str] = Counter()
    events: list[Event] = []

    def note(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        events.append(Event(name, named[name], counts[name], inputs, output))
        counts[name] += 1

    mode: AbstractContextManager[None] = faking() if fake else eager()
    try:
        with mode, watching(named.items(), note):
            run(network, np.zeros((BATCH, 3, *size), dtype=np.float32), wait=not fake)
        _check_grids(events)
    except Exception as error:
        raise errors.InputError(
            "the network does not run on images of this size",
            got=f"{size[0]}x{size[1]}: {message(error)}",
            remedy="resize or crop the images (extractor.preprocess says how the weights were trained)",
        ) from error
    return events


def run(network: Any, batch: np.ndarray[Any, Any], wait: bool = True) -> Any:
    """A forward pass that has finished when this returns: MindSpore computes, and raises, with a delay."""
    with eager():
        output = network(mindspore.Tensor(batch))
        for array in (output if isinstance(output, tuple | list) else (output,)) if wait else ():
            array.asnumpy()
    return output


def _check_grids(events: Sequence[Event]) -> None:
    """Raise ValueError where nothing is left of an image, which fake tensors do not mind."""
    for event in events:
        if isinstance(event.output, mindspore.Tensor) and 0 in event.output.shape:
            raise ValueError(f"the output of {event.name!r} is empty: {tuple(event.output.shape)}")


def observe(events: Sequence[Event]) -> dict[Source, Shape | None]:
    """The shape of everything that can be tapped, for one image."""
    seen: dict[Source, Shape | None] = {}
    repeated = {event.name for event in events if event.call > 0}
    for event in events:
        for call in (event.call, -1) if event.name in repeated else (-1,):
            seen[Source(event.name, call)] = shape_of(event.output)
            seen[Source(event.name, call, takes_input=True)] = shape_of(event.inputs[0]) if event.inputs else None
    for element, array in enumerate(_elements(events[-1].output)):
        seen[Source(WHOLE, element=element)] = shape_of(array)
    return seen


def _elements(output: Any) -> Sequence[Any]:
    return output if isinstance(output, tuple | list) else ()


def shape_of(array: Any) -> Shape | None:
    """A tensor's shape for one image; None of anything else, of what is empty or has no image on its first axis."""
    if not isinstance(array, mindspore.Tensor) or 0 in array.shape or array.shape[:1] != (BATCH,):
        return None
    return (1, *(int(side) for side in array.shape[1:]))


def message(error: BaseException) -> str:
    """What a framework's exception says, in one line and without its C++ call stack."""
    lines = str(error).partition("- C++ Call Stack")[0].splitlines()
    words = " ".join(line for line in lines if not line.startswith("----")).split()
    return textwrap.shorten(f"{type(error).__name__}: {' '.join(words)}", _LONGEST, placeholder=" ...")
