"""Where a network's levels and heads lie, read off one traced forward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featreg.plugin import Size
from featreg_mindspore.libraries import nn
from featreg_mindspore.shapes import Shape
from featreg_mindspore.trace import INPUT, Event, shape_of

__all__ = ["Entry", "Layout", "find", "total_stride"]

_DEFAULT_STRIDE = 32


@dataclass(frozen=True)
class Entry:
    """One entry of mindcv's ``feature_info``: its position, its cell, and the level that it closes, if any."""

    index: int
    name: str
    level: str | None


@dataclass(frozen=True)
class Layout:
    """The declared entries, and the name of what gives each head that the network has."""

    declared: tuple[Entry, ...]
    taps: Mapping[str, str]


def find(network: Any, events: Sequence[Event]) -> Layout:
    """Find everything from the events of one forward pass."""
    own = list(getattr(network, "feature_info", ()))
    taps: dict[str, str] = {}
    final = _final(events)
    if final is not None:
        names = {entry["name"] for entry in own}
        makers = _makers(events, final.output)
        head = "features" if len(final.output.shape) == 4 else "tokens"
        taps[head] = next((name for name in makers if name in names), makers[-1])
    classifier = _classifier(events)
    if classifier is not None:
        taps["pooled"] = next(iter(_makers(events, classifier.inputs[0])), classifier.name + INPUT)
    if len(shape_of(events[-1].output) or ()) == 2:
        taps["logits"] = _makers(events, events[-1].output)[0]
    return Layout(_declared(own, events, classifier), taps)


def total_stride(layout: Layout, shapes: Mapping[str, Shape | None], size: Size) -> int:
    """The network's total stride, a power of two, from its last map or tokens at a square size."""
    shape = shapes.get(layout.taps.get("features") or layout.taps.get("tokens", ""))
    if shape is None:
        return _DEFAULT_STRIDE
    side = math.isqrt(shape[1]) if len(shape) == 3 else min(shape[1:])
    return int(max(2, 2 ** round(math.log2(size[0] / max(1, side)))))


def _classifier(events: Sequence[Event]) -> Event | None:
    """The dense layer that gives as many numbers per image as the network returns; none where several are averaged."""
    result = shape_of(events[-1].output)
    found = [event for event in events if isinstance(event.cell, nn.Dense) and shape_of(event.output) == result]
    return found[0] if len(found) == 1 and len(result or ()) == 2 else None


def _makers(events: Sequence[Event], array: Any) -> list[str]:
    """The cells whose last output is this very array, the one that computed it first, its outermost container last."""
    last = {event.name: event for event in events}
    return [event.name for event in events if last.get(event.name) is event and event.output is array]


def _final(events: Sequence[Event]) -> Event | None:
    """The last cell to give an unpooled map or tokens: more than one position."""
    for event in reversed(events):
        shape = shape_of(event.output) or ()
        spatial = len(shape) == 4 and shape[2] * shape[3] > 1 and shape[1] * shape[2] > 1
        if (spatial or (len(shape) == 3 and shape[1] > 1)) and _makers(events, event.output):
            return event
    return None


def _declared(own: Sequence[Mapping[str, Any]], events: Sequence[Event], classifier: Event | None) -> tuple[Entry, ...]:
    """The declaration of mindcv with the levels worked out; nothing where it names what is no cell with such a map."""
    outputs = {event.name: shape_of(event.output) or () for event in events}
    for entry in own:
        shape = outputs.get(entry["name"], ())
        if len(shape) != 4 or shape[1] != entry["chs"]:
            return ()
    count = len(own) - _closes_with_projection(own, events, classifier)
    last = {int(entry["reduction"]): position for position, entry in enumerate(own[:count])}
    closing = {position: f"C{reduction.bit_length() - 1}" for reduction, position in last.items()}
    return tuple(Entry(position, entry["name"], closing.get(position)) for position, entry in enumerate(own))


def _closes_with_projection(
    own: Sequence[Mapping[str, Any]], events: Sequence[Event], classifier: Event | None
) -> bool:
    """Whether the last entry is a lone 1x1 convolution that only pooling separates from the classifier.

    EfficientNet's and MobileNetV2's 1280 channels are: they belong to the head ``features``. MobileNetV3's 960 are not,
    since a dense layer of another width follows the pooling.
    """
    if classifier is None or len(own) < 2 or own[-1]["reduction"] != own[-2]["reduction"]:
        return False
    if own[-1]["chs"] != classifier.inputs[0].shape[-1]:
        return False
    finished = {event.name: position for position, event in enumerate(events)}
    between = events[finished[own[-2]["name"]] + 1 : finished[own[-1]["name"]] + 1]
    kernels = [tuple(event.cell.kernel_size) for event in between if isinstance(event.cell, nn.Conv2d)]
    return kernels == [(1, 1)]
