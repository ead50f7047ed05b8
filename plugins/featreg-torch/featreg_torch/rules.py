"""Which image sizes a network takes, found by trying on the meta device.

A rule is looked for among multiples of a number from a minimum on, and anything else counts as one fixed size: a rule
never allows a size that the network was seen to refuse, nor any other size where it looks up more or fewer rows of a
table at another size, which may have no more of them. Both sides follow the same rule, so the minimum is looked for
along the diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from torch import nn

from featreg.plugin import InputRule, Size
from featreg_torch.lookups import Lookups
from featreg_torch.shapes import Shape, aligned_sizes, probe

__all__ = ["find_input_rule"]

Shapes: TypeAlias = Sequence[Shape | None]

_REFUSALS = (RuntimeError, ValueError, AssertionError, IndexError, TypeError, ZeroDivisionError)
"""What a network raises for a size that it does not take."""


_LIKELY = (1, 2, 31, 32)
"""Sides to try first: most networks take all sizes, or those of one cell of their coarsest map."""


class _Trials:
    """Runs at several sizes; each size runs once."""

    def __init__(self, taps: nn.Module, native: Size, channels: int) -> None:
        self.taps = taps
        self.channels = channels
        self.lookups = Lookups()
        with self.lookups:
            self.seen: dict[Size, Shapes] = {native: probe(taps, native, channels)}
        self.refused: set[Size] = set()

    def takes(self, size: Size) -> bool:
        if size not in self.seen and size not in self.refused:
            try:
                with self.lookups:
                    self.seen[size] = probe(self.taps, size, self.channels)
            except _REFUSALS:
                self.refused.add(size)
        return size in self.seen


def find_input_rule(taps: nn.Module, native: Size, channels: int = 3) -> tuple[InputRule, dict[Size, Shapes]]:
    """Which sizes the network takes, and the shapes at those from which every other shape follows."""
    trials = _Trials(taps, native, channels)
    for multiple in _divisors(math.gcd(*native)):
        sizes = aligned_sizes(multiple)
        if not trials.takes((native[0] + multiple, native[1] + 2 * multiple)):
            continue
        if not all(map(trials.takes, sizes)) or _is_resized([trials.seen[size] for size in (native, *sizes[:2])]):
            break
        minimum = _minimum(trials, multiple, min(sizes[0]))
        rule = InputRule(multiple_of=multiple, minimum=minimum, channels=channels)
        return rule, {size: trials.seen[size] for size in (native, *sizes)}
    return InputRule(fixed=native, channels=channels), {native: trials.seen[native]}


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _minimum(trials: _Trials, multiple: int, known: int) -> Size:
    """The smallest side of a square that the network takes; (1, 1) where every size goes."""
    refused, taken = 0, known // multiple
    likely = [side // multiple for side in _LIKELY if side % multiple == 0]
    while taken - refused > 1:
        middle = next((side for side in likely if refused < side < taken), (refused + taken) // 2)
        if trials.takes((middle * multiple,) * 2):
            taken = middle
        else:
            refused = middle
    return (taken * multiple,) * 2 if taken > 1 else (1, 1)


def _is_resized(shapes: Sequence[Shapes]) -> bool:
    """Whether every map and sequence stays the same for three image sizes: the network scales its input first."""
    grids = [set(same) for same in zip(*shapes, strict=True) if same[0] is not None and math.prod(same[0][2:]) > 1]
    grids = [same for same in grids if all(shape is not None and len(shape) > 2 for shape in same)]
    return bool(grids) and all(len(same) == 1 for same in grids)
