"""What one raw forward pass shows of a whole network: each module that ran, and what came out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import attrs

__all__ = ["Module", "Survey", "level_number"]

Shape = tuple[int, ...]
Size = tuple[int, int]
_PASSIVE = re.compile(
    r"Norm|Drop|Identity|QuantStub|Permute|Flatten|Transpose|Adaptive|Global|Upsample|Interpolate|Pad(ding)?(\dd)?$"
)
_ACTIVE = re.compile(r"Act\w*\d?d?$")
_DEEPEST = 7
_SLACK = 0.4
"""How far a stride may be from its power of two, in octaves: a patch of 14 pixels, and borders without padding."""
_LEAST = 4
"""Cells a side that tell a stage's stride: SSD300 goes from 5 to 3 and 1 by convolutions of stride 1."""


@attrs.frozen
class Module:
    """A module as the library built it. ``takes`` and ``width`` are the channels of a convolution or a linear layer.

    ``kernel`` is that of a convolution, (1, 1) of a linear layer, and None of all else.
    """

    name: str
    type: str
    kernel: tuple[int, ...] | None = None
    takes: int | None = None
    width: int | None = None

    @property
    def parent(self) -> str:
        """The name of the module that holds it."""
        return self.name.rpartition(".")[0]

    @property
    def is_passive(self) -> bool:
        """Whether it only normalises, drops out, pools to a fixed grid or changes the layout, by its class's name."""
        return self.kernel is None and bool(_PASSIVE.search(self.type)) and not _ACTIVE.search(self.type)


@attrs.frozen
class Survey:
    """A raw forward pass of ``batch`` images of ``size``.

    ``outputs`` are the shapes of what modules gave, in the order in which they last finished, () where that is no
    single tensor; ``inputs`` of what linear layers and convolutions took. ``result`` is the shape of what the
    network itself returned, None where that is no single tensor. ``classes`` is the number of classes that the library
    says the network has, None for none, and ``pooled`` the shape of what the library itself gives for the features
    before its classifier, where it has a call for them.
    """

    size: Size
    batch: int
    modules: Mapping[str, Module]
    outputs: Mapping[str, Shape]
    inputs: Mapping[str, Shape]
    result: Shape | None
    prefix: int = 0
    classes: int | None = None
    pooled: Shape | None = None

    def level(self, name: str) -> int | None:
        """The k of the stride 2^k at which a module's output lies; None where that is no map or grid of tokens."""
        return level_number(self.outputs.get(name, ()), self.size, self.batch, self.prefix, least=_LEAST)

    def grid(self, name: str) -> tuple[int, ...]:
        """The rows and columns of a module's output; none where that is no map or grid of tokens."""
        return _grid_of(self.outputs.get(name, ()), self.size, self.batch, self.prefix, _LEAST)

    @property
    def pooled_widths(self) -> tuple[int, ...]:
        """How wide the vector before the classes may be: as the library says, else what the layers that make them take.

        There is none where no vector goes into these. They are linear layers, or convolutions of a single cell. Where
        there are several, each may have a vector of its own (CrossViT, whose vectors lie side by side), or the last
        one's stands for all (DeiT with distillation).
        """
        if self.pooled is not None and len(self.pooled) == 2:
            return self.pooled[1:]
        widths = [module.takes for module in self._classifiers() if module.takes is not None]
        return tuple({widths[-1], sum(widths)}) if widths else ()

    def _classifiers(self) -> list[Module]:
        found = []
        for name in self.outputs:
            taken = self.inputs.get(name, ())
            vector = len(taken) == 2 or (len(taken) == 4 and taken[2:] == (1, 1))
            if vector and self.classes is not None and self.modules[name].width == self.classes:
                found.append(self.modules[name])
        return found


def level_number(shape: Shape, size: Size, batch: int, prefix: int = 0, least: int = 2) -> int | None:
    """The k of a raw output's stride 2^k: of a map, channels first or last, or of tokens, batch first or second.

    A grid of fewer cells a side than ``least`` tells nothing: it may as well be pooled.
    """
    return _nearest(_grid_of(shape, size, batch, prefix, least), size, least)


def _grid_of(shape: Shape, size: Size, batch: int, prefix: int, least: int) -> tuple[int, ...]:
    grids: list[tuple[int, ...]] = []
    if len(shape) == 4 and shape[0] == batch:
        grids = [shape[2:], shape[1:3]]
    elif len(shape) == 3 and batch in shape[:2]:
        length = shape[1] if shape[0] == batch else shape[0]
        grids = [grid for count in {length, length - prefix} if (grid := _grid(count, size))]
    return next((grid for grid in grids if _nearest(grid, size, least) is not None), ())


def _grid(count: int, size: Size) -> tuple[int, ...]:
    """The rows and columns of ``count`` patches of an image; none where they do not fill its rectangle."""
    rows = round(math.sqrt(max(count, 0) * size[0] / size[1]))
    return (rows, count // rows) if rows and count % rows == 0 else ()


def _nearest(grid: tuple[int, ...], size: Size, least: int) -> int | None:
    if not grid or min(grid) < 1 or max(grid) < least:
        return None
    octaves = [math.log2(side / cells) for side, cells in zip(size, grid, strict=True)]
    number = round(octaves[0])
    near = all(
        abs(octave - number) < _SLACK or abs(side / 2**number - cells) <= 2
        for octave, side, cells in zip(octaves, size, grid, strict=True)
    )
    return number if near and 0 <= number <= _DEEPEST and round(octaves[1]) == number else None
