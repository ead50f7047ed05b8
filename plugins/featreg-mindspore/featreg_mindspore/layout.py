"""Where a network's levels and heads lie, read off one traced forward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from featreg.plugin import Size, Step, Transformer, find_levels, find_transformer, level_of
from featreg_mindspore.libraries import nn
from featreg_mindspore.steps import Shapes, as_steps
from featreg_mindspore.trace import Event, Source, shape_of

__all__ = ["INPUT", "Declared", "Place", "find", "find_convolution", "total_stride"]

INPUT = ".input"
"""The suffix of a tap on what goes into a cell, where no cell gives that array (a ViT's class token, sliced off)."""

_DEFAULT_STRIDE = 32


@dataclass(frozen=True)
class Declared:
    """One entry of a network's own declaration: its position, name, channels and stride, and where its array is."""

    index: int
    name: str
    channels: int
    reduction: int
    source: Source


@dataclass(frozen=True)
class Place:
    """Something that can be asked for: its name, where it is, and what is made of it.

    With ``as_map`` tokens of patches become a map, with ``as_vector`` a map of one position becomes a vector.
    """

    name: str
    source: Source
    level: str | None = None
    index: int | None = None
    head: str | None = None
    as_map: bool = False
    as_vector: bool = False


def find(
    events: Sequence[Event], shapes: Shapes, size: Size, period: int | None, declared: Sequence[Declared]
) -> list[Place]:
    """Every level, index and head, from the events of one pass at ``size`` and the shapes at that and other sizes.

    Levels are those declared; where nothing is, they follow from the core's rule (``specs/levels.md``).
    """
    classifier = _classifier(events, shapes)
    width = _width(events, classifier)
    steps = as_steps(events, shapes, size, period, tokens_as_maps=True)
    plain = None if declared else _plain(as_steps(events, shapes, size, period, tokens_as_maps=False), size)
    if declared:
        places = _declared(declared, events, classifier)
    elif plain is not None:
        places = _blocks(plain)
    else:
        found = enumerate(find_levels(steps, width))
        places = [Place(level.name, Source(level.name), level.level, index, as_map=True) for index, level in found]
    whole = steps if classifier is not None else _without_scores(steps, width)
    return [*places, *_final(whole, [entry.name for entry in declared]), *_vectors(events, classifier)]


def total_stride(events: Sequence[Event], size: Size) -> int:
    """The network's total stride, a power of two, from its last map or tokens at a square size."""
    for event in reversed(events):
        shape = shape_of(event.output) or ()
        if len(shape) == 4 and shape[2] * shape[3] > 1 and shape[1] * shape[2] > 1:
            side = min(shape[2:]) if shape[2] == shape[3] else min(shape[1:3])
        elif len(shape) == 3 and shape[1] > 1:
            side = math.isqrt(shape[1])
        else:
            continue
        return int(min(64, max(2, 2 ** round(math.log2(size[0] / max(1, side))))))
    return _DEFAULT_STRIDE


def _plain(steps: Sequence[Step], size: Size) -> Transformer | None:
    """A plain transformer; None for one whose blocks go on elsewhere, in another branch or stage (CrossViT)."""
    found = find_transformer(steps, size)
    if found is None:
        return None
    position = next(place for place, step in enumerate(steps) if step.name == found.blocks[-1])
    last = steps[position]
    later = any(step.type == last.type and step.tokens == last.tokens for step in steps[position + 1 :])
    return None if later else found


def _blocks(plain: Transformer) -> list[Place]:
    places = [Place(name, Source(name), index=index, as_map=True) for index, name in enumerate(plain.blocks)]
    return [*places[:-1], replace(places[-1], level=level_of(plain.stride))]


def _without_scores(steps: Sequence[Step], width: int | None) -> Sequence[Step]:
    """The steps up to a convolution that makes the scores of the classes, which are no features."""
    scores = [place for place, step in enumerate(steps) if step.channels == width is not None and step.stride]
    return steps[: scores[-1]] if scores else steps


def _final(steps: Sequence[Step], preferred: Sequence[str]) -> list[Place]:
    """The head ``features``, and ``tokens`` where a network keeps those: of the last cell that gives either.

    A container that hands on what its last part gives is named rather than the part, a declared cell before others.
    """
    last = next((step for step in reversed(steps) if step.stride is not None), None)
    if last is None:
        return []
    makers = [step for step in steps if step.output == last.output]
    active = [step.name for step in makers if not step.passive] or [makers[0].name]  # dropout hands on, too
    name = next((maker.name for maker in makers if maker.name in preferred), active[-1])
    place = Place(name, Source(name), head="features", as_map=True)
    return [place, replace(place, head="tokens", as_map=False)] if last.tokens is not None else [place]


def _vectors(events: Sequence[Event], classifier: Event | None) -> list[Place]:
    places = []
    if classifier is not None:
        maker = next(iter(_makers(events, classifier.inputs[0])), None)
        source = Source(classifier.name, takes_input=True) if maker is None else Source(maker)
        places.append(Place(maker or classifier.name + INPUT, source, head="pooled", as_vector=True))
    if len(shape_of(events[-1].output) or ()) == 2:
        maker = _makers(events, events[-1].output)[0]
        places.append(Place(maker, Source(maker), head="logits"))
    return places


def _width(events: Sequence[Event], classifier: Event | None) -> int | None:
    """What the classifier takes; where it is a 1x1 convolution before the pooling (SqueezeNet), what that gives."""
    if classifier is not None:
        return int(classifier.cell.in_channels)
    result = shape_of(events[-1].output) or ()
    return result[-1] if len(result) == 2 else None


def _classifier(events: Sequence[Event], shapes: Shapes) -> Event | None:
    """The layer that gives as many numbers per image as the network returns; none where several are averaged."""
    result = shape_of(events[-1].output) or ()
    found = [event for event in events if isinstance(event.cell, nn.Dense) and shape_of(event.output) == result]
    if found:
        return found[0] if len(found) == 1 and len(result) == 2 else None
    last = find_convolution(events)
    return last if last is not None and _is_pooled(last, shapes) else None


def find_convolution(events: Sequence[Event]) -> Event | None:
    """The last layer of a network, where it is a convolution that gives the result as a map of one position (BiT)."""
    last = [event for event in events if isinstance(event.cell, nn.Dense | nn.Conv2d)][-1:]
    scores = (*(shape_of(events[-1].output) or ()), 1, 1)
    found = [event for event in last if isinstance(event.cell, nn.Conv2d) and shape_of(event.output) == scores]
    return found[0] if found else None


def _is_pooled(event: Event, shapes: Shapes) -> bool:
    """Whether a cell is given maps of one position, however large the image is."""
    taken = [seen.get(Source(event.name, takes_input=True)) or () for seen in shapes.values()]
    return all(shape[2:] == (1, 1) for shape in taken)


def _makers(events: Sequence[Event], array: Any) -> list[str]:
    """The cells whose last output is this very array, the one that computed it first, its outermost container last."""
    last = {event.name: event for event in events}
    return [event.name for event in events if last.get(event.name) is event and event.output is array]


def _declared(entries: Sequence[Declared], events: Sequence[Event], classifier: Event | None) -> list[Place]:
    """The entries in their own order; of each stride the last closes the level."""
    count = len(entries) - _closes_with_projection(entries, events, classifier)
    last = {entry.reduction: entry.index for entry in entries[:count]}
    closing = {index: level_of(reduction) for reduction, index in last.items()}
    return [Place(entry.name, entry.source, closing.get(entry.index), entry.index, as_map=True) for entry in entries]


def _closes_with_projection(entries: Sequence[Declared], events: Sequence[Event], classifier: Event | None) -> bool:
    """Whether the last entry is a lone 1x1 convolution that only pooling separates from the classifier.

    EfficientNet's and MobileNetV2's 1280 channels are: they belong to the head ``features``. MobileNetV3's 960 are not,
    since a dense layer of another width follows the pooling.
    """
    if classifier is None or len(entries) < 2 or entries[-1].reduction != entries[-2].reduction:
        return False
    if entries[-1].channels != classifier.cell.in_channels:
        return False
    finished = {event.name: position for position, event in enumerate(events)}
    if not {entries[-1].name, entries[-2].name} <= set(finished):
        return False
    between = events[finished[entries[-2].name] + 1 : finished[entries[-1].name] + 1]
    kernels = [tuple(event.cell.kernel_size) for event in between if isinstance(event.cell, nn.Conv2d)]
    return kernels == [(1, 1)]
