"""What can be learnt of a network without its weights: the sizes it takes, what each cell gives, what can be asked."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import attrs

from featreg.plugin import Described, FeatureInfo, InputRule, NodeInfo, Shape, Size, describe_output, errors
from featreg_mindspore.layout import Place, find_convolution, total_stride
from featreg_mindspore.trace import Event, Source, observe

__all__ = ["Prober", "Survey", "survey"]

_ROOMY = 4
"""Positions a side of the deepest grid that show whether branches fit together: a single one is added to any grid."""

Prober = Callable[[Size], list[Event]]
"""Runs a network on black images of a size: see :func:`featreg_mindspore.trace.trace`."""


@dataclass
class Survey:
    """A network's outputs at the sizes seen so far.

    ``size`` is the network's own, ``period`` as in :func:`featreg.plugin.describe_output`. ``types`` holds the class of
    every cell that runs, by name, in the order in which they finish, and ``calls`` how often each does.
    ``class_token`` says that the first of its prefix tokens, if it has any, is a class token.
    """

    size: Size
    rule: InputRule
    period: int | None
    types: dict[str, str]
    calls: dict[str, int]
    places: list[Place] = field(default_factory=list)
    shapes: dict[Size, dict[Source, Shape | None]] = field(default_factory=dict)
    class_token: bool = False

    def add(self, size: Size, events: Sequence[Event]) -> None:
        """Take in the shapes of one more trace."""
        self.shapes = {**self.shapes, size: observe(events)}  # not in place: another thread may be reading

    def describe(self, place: Place, size: Size | None = None) -> Described:
        """One output as it is at ``size`` where that was seen, else at the network's own size.

        Raises CapabilityError for what is no feature.
        """
        if place.source not in self.shapes[self.size]:
            raise errors.CapabilityError(
                f"the cell {place.name!r} is not run on its own in evaluation mode",
                "a cell that is called",
                remedy="choose another layer: its parent, or one of its parts",
            )
        shapes = {at: seen.get(place.source) for at, seen in self.shapes.items()}
        keys: dict[str, Any] = {"level": place.level, "index": place.index, "head": place.head}
        at = size if size in shapes else self.size
        keys["as_vector"] = place.as_vector
        found = describe_output(place.name, shapes, at, self.period, as_map=place.as_map, **keys)
        first = self.class_token and found.feature.prefix_tokens > 0
        return replace(found, feature=attrs.evolve(found.feature, class_token=first))

    def call(self, source: Source) -> int:
        """Which run of its cell a source is of, counted from 0."""
        return source.call if source.call >= 0 else self.calls[source.cell] - 1

    def features(self, size: Size | None = None) -> dict[FeatureInfo, Place]:
        """Every level and index, then the heads, those left out whose output is no feature."""
        found = {}
        for place in self.places:
            with contextlib.suppress(errors.CapabilityError):
                found[self.describe(place, size).feature] = place
        return found

    def natives(self, size: Size | None = None) -> tuple[FeatureInfo, ...]:
        """What the cells of the features give by themselves, where a map is made of it: the tokens of blocks."""
        made = [
            feature.name for feature, place in self.features(size).items() if feature.kind == "map" and place.as_map
        ]
        asked = [Place(name, Source(name)) for name in dict.fromkeys(made) if name in self.types]
        given = [self.describe(place, size).feature for place in asked]
        return tuple(feature for feature in given if feature.kind != "map")

    def nodes(self, size: Size | None = None) -> tuple[NodeInfo, ...]:
        """Every cell that runs, in the order in which they finish, with the shape that asking for it gives."""
        size = size or self.size
        return tuple(NodeInfo(name, kind, self._node_shape(name, size)) for name, kind in self.types.items())

    def _node_shape(self, name: str, size: Size) -> Shape | None:
        try:
            return self.describe(Place(name, Source(name)), size).feature.shape(1, *size)[1:]
        except errors.FeatregError:
            return None

    def follows_formula(self, size: Size) -> bool:
        """Whether everything declared is known at a size without running the network."""
        return size in self.shapes or all(info.rounding != "measured" for info in self.features())


def survey(size: Size, events: Sequence[Event], probe: Prober) -> Survey:
    """Learn a network from its events at its own size, and from probes on small images; places are yet to come."""
    types = {event.name: type(event.cell).__name__ for event in _finishes(events)}
    calls = Counter(event.name for event in events)
    result = Survey(size, InputRule(fixed=size), None, types, calls)
    result.add(size, events)
    _find_rule(result, total_stride(events, size), probe)
    if result.period is not None and find_convolution(events) is not None:
        _try(probe, result, (2 * size[0], 2 * size[1]))  # a pooling window of one size then leaves more positions
    return result


def _finishes(events: Sequence[Event]) -> list[Event]:
    last = {event.name: event for event in events}
    return [event for event in events if last[event.name] is event]


def _find_rule(result: Survey, period: int, probe: Prober) -> None:
    """Find out which sizes the network takes, and see it at those that decide how each grid is rounded."""
    bases = dict.fromkeys([period, result.size[0] // period * period])
    base = next((base for base in bases if _try(probe, result, (base, base + period))), None)
    if base is None:
        return
    if _is_resized(*result.shapes.values()):  # the network takes one size, whatever it is given
        result.shapes = {result.size: result.shapes[result.size]}
        return
    steps = [2**power for power in range(period.bit_length()) if 2**power < period]
    sides = dict.fromkeys([base, max(base, _ROOMY * period)])
    multiple = next(
        (step for step in steps if all(_try(probe, result, (at + step, at + period - step)) for at in sides)), period
    )
    least = _least(probe, result, multiple, base)
    result.period = period
    result.rule = InputRule(multiple_of=multiple, minimum=(least, least))


def _is_resized(own: Mapping[Source, Shape | None], other: Mapping[Source, Shape | None]) -> bool:
    """Whether images of another size leave no trace: the network first resizes them to its own.

    What resizes them, once for each branch that needs it, may run more or less often.
    """
    return all(
        other.get(source) == shape
        for source, shape in own.items()
        if not source.takes_input and (Source(source.cell, 0) in own) == (Source(source.cell, 0) in other)
    )


def _least(probe: Prober, result: Survey, multiple: int, working: int) -> int:
    """The smallest side that works, between one step and a side that does, by bisection."""
    low, high = 0, working // multiple
    trial = 1
    while high - low > 1:
        if _try(probe, result, (trial * multiple, trial * multiple)):
            high = trial
        else:
            low = trial
        trial = (low + high) // 2
    return high * multiple


def _try(probe: Prober, result: Survey, size: Size) -> bool:
    try:
        result.add(size, probe(size))
    except errors.InputError:
        return False
    return True
