"""What can be learnt of a model without its weights: the sizes it takes, what each cell gives, where its heads lie."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from featreg.plugin import FeatureInfo, InputRule, Size, errors
from featreg_mindspore.layout import Layout, find, total_stride
from featreg_mindspore.shapes import Described, Shape, describe
from featreg_mindspore.trace import INPUT, Event, cells, shape_of, trace

__all__ = ["Survey", "survey"]

_SIDES = (256, 299, 384, 448, 192, 160)
"""Square sizes tried, after the configured one, for networks that are built for another and do not say so."""


@dataclass
class Survey:
    """A model's outputs at the sizes seen so far.

    ``size`` is the model's own, ``period`` as in :mod:`featreg_mindspore.shapes`.
    """

    size: Size
    rule: InputRule
    period: int | None
    layout: Layout
    names: tuple[str, ...]
    shapes: dict[Size, dict[str, Shape | None]] = field(default_factory=dict)

    def add(self, size: Size, events: Sequence[Event]) -> None:
        """Take in the shapes of one more trace; the last call of a cell counts."""
        seen = {event.name: shape_of(event.output) for event in events}
        for name in self.layout.taps.values():
            cell, takes_input = self.source(name)
            if takes_input:
                seen[name] = next((shape_of(e.inputs[0]) for e in reversed(events) if e.name == cell), None)
        self.shapes = {**self.shapes, size: seen}  # not in place: another thread may be reading

    def source(self, name: str) -> tuple[str, bool]:
        """The cell where a feature is taken, and whether it is what goes in rather than what comes out."""
        return (name, False) if name in self.names else (name.removesuffix(INPUT), True)

    def describe(self, name: str, size: Size | None = None, **keys: Any) -> Described:
        """One output, by its name, measured at ``size`` where that was seen; raises CapabilityError for no feature."""
        if name not in self.shapes[self.size]:
            raise errors.CapabilityError(
                f"the cell {name!r} is not run on its own in evaluation mode",
                "a cell that is called",
                remedy="choose another layer: its parent, or one of its parts",
            )
        shapes = {at: seen.get(name) for at, seen in self.shapes.items()}
        return describe(name, shapes, size if size in shapes else self.size, self.period, **keys)

    def features(self, size: Size | None = None) -> tuple[FeatureInfo, ...]:
        """Every declared level and index, then the heads, those left out whose output is no feature."""
        described = [
            self.describe(entry.name, size, level=entry.level, index=entry.index) for entry in self.layout.declared
        ]
        for head, name in self.layout.taps.items():
            with contextlib.suppress(errors.CapabilityError):
                described.append(self.describe(name, size, head=head))
        return tuple(item.feature for item in described)

    def follows_formula(self, size: Size) -> bool:
        """Whether everything declared is known at a size without running the network."""
        return size in self.shapes or all(info.rounding != "measured" for info in self.features())


def survey(model: str, network: Any, size: Size) -> Survey:
    """Run a network on a few small black images, and on one of its own size.

    Raises CapabilityError where it runs at no size, with MindSpore's own error chained.
    """
    size, events = _first_run(model, network, size)
    layout = find(network, events)
    result = Survey(size, InputRule(fixed=size), None, layout, tuple(cells(network)))
    result.add(size, events)
    _probe(network, result, total_stride(layout, result.shapes[size], size))
    return result


def _first_run(model: str, network: Any, size: Size) -> tuple[Size, list[Event]]:
    failure: errors.InputError | None = None
    for tried in dict.fromkeys([size, *((side, side) for side in _SIDES)]):
        try:
            return tried, trace(network, tried)
        except errors.InputError as error:
            failure = failure or error
    raise errors.CapabilityError(
        f"mindcv's {model!r} does not run on this version of MindSpore",
        got=failure.got if failure else "",
        remedy="choose another model, or another version of mindspore or mindcv",
    ) from failure


def _probe(network: Any, result: Survey, period: int) -> None:
    """Find out which sizes the network takes, and see it at those that decide how each grid is rounded."""
    bases = dict.fromkeys([period, result.size[0] // period * period])
    base = next((base for base in bases if _try(network, result, (base, base + period))), None)
    if base is None:
        return
    own, other = result.shapes.values()
    if own == other:  # the network resizes its images by itself: it takes one size, whatever it is given
        result.shapes = {result.size: own}
        return
    steps = [2**power for power in range(period.bit_length()) if 2**power < period]
    multiple = next((step for step in steps if _try(network, result, (base + step, base + period - step))), period)
    least = _least(network, result, multiple, base)
    result.period = period
    result.rule = InputRule(multiple_of=multiple, minimum=(least, least))


def _least(network: Any, result: Survey, multiple: int, working: int) -> int:
    """The smallest side that works, between one step and a side that does, by bisection."""
    low, high = 0, working // multiple
    trial = 1
    while high - low > 1:
        if _try(network, result, (trial * multiple, trial * multiple)):
            high = trial
        else:
            low = trial
        trial = (low + high) // 2
    return high * multiple


def _try(network: Any, result: Survey, size: Size) -> bool:
    try:
        result.add(size, trace(network, size))
    except errors.InputError:
        return False
    return True
