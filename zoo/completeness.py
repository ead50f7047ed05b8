"""What a description must hold: levels where the raw network has stages, and the heads of a classifier.

The truth is a survey of the raw network (:mod:`zoo.survey`) and the library's own declaration. Nothing of featreg runs
here: a description is read field by field.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from zoo.records import Finding
from zoo.stages import Stage
from zoo.survey import Shape, Survey, level_number

__all__ = ["Entry", "check_classifier", "check_declaration", "check_embeddings", "check_stages", "stride_of"]


@attrs.frozen
class Entry:
    """One level as a library declares it: its module, then other names of what that gives; its stride and channels."""

    names: tuple[str, ...]
    reduction: int
    channels: int | None = None


def stride_of(entry: Entry, shape: Shape, survey: Survey) -> int | None:
    """The stride of what one of an entry's names gave; a patch that is no power of two keeps the size declared."""
    number = level_number(shape, survey.size, survey.batch, survey.prefix)
    if number is None:
        return None
    return entry.reduction if round(math.log2(entry.reduction)) == number else 2**number


def check_declaration(
    features: Sequence[Any], entries: Sequence[Entry], strides: Sequence[int | None]
) -> Iterator[Finding]:
    """Where the library declares its levels: of each stride its last entry is the level.

    ``strides`` are those that the entries have in the raw network, None where one gives no map or grid of tokens.
    """
    expected = {round(math.log2(stride)): entry for entry, stride in zip(entries, strides, strict=True) if stride}
    levels = _by_number(features)
    for number, entry in expected.items():
        if number not in levels:
            yield Finding(f"level of stride {2**number}", f"{entry.names[0]}, as the library declares", "none")
        elif levels[number].name not in entry.names:
            what = f"name of {levels[number].level}"
            yield Finding(what, f"{entry.names[0]}, as the library declares", levels[number].name)


def check_stages(features: Sequence[Any], stages: Sequence[Stage], survey: Survey, dilated: bool) -> Iterator[Finding]:
    """Where the library declares nothing: each stride of a whole stage has a level, and that is the last such stage.

    A level is none of the modules inside a stage. Where a network is dilated, several levels lie at one stride, of
    which the deepest is the last stage; no level between two others may be left out.
    """
    order = list(survey.outputs)
    last = {stage.number: stage for stage in stages}
    levels = _by_number(features)
    for number, stage in last.items():
        if not stage.whole:
            continue
        level = levels.get(number)
        if level is None:
            yield Finding(f"level of stride {2**number}", stage.name, "none")
        elif level.name in order and order.index(level.name) < order.index(stage.name):
            yield Finding(f"name of {level.level}", f"{stage.name}, the last stage of its stride", level.name)
    for feature in _levels(features):
        tokens = len(survey.outputs.get(feature.name, ())) == 3  # a block's, even where its stage gives several tensors
        around = (stage.name for stage in stages if stage.whole or not tokens)
        holder = next((name for name in around if feature.name.startswith(f"{name}.")), None)
        if holder is not None:
            yield Finding(f"name of {feature.level}", "a whole stage", f"{feature.name}, inside {holder}")
    numbers = [int(feature.level[1:]) for feature in _levels(features)]
    if dilated and numbers and numbers != list(range(numbers[0], numbers[-1] + 1)):
        yield Finding("levels", "no gap where the network is dilated", ", ".join(f"C{number}" for number in numbers))


def check_classifier(features: Sequence[Any], survey: Survey) -> Iterator[Finding]:
    """A network with classes has ``logits`` of their number, ``pooled`` and ``features``; another has no ``logits``.

    How wide they are is what the raw network returns, and what its last linear layer takes.
    """
    heads = {feature.head: feature for feature in features if feature.head is not None}
    if survey.classes is None:
        if "logits" in heads:
            yield Finding("logits", "none: the network has no classes", heads["logits"].name)
        return
    width = survey.result[1] if survey.result is not None and len(survey.result) > 1 else None
    yield from _check_width("logits", heads, width or survey.classes)
    if len(survey.pooled_widths) == 1 or "pooled" in heads:
        yield from _check_width("pooled", heads, *survey.pooled_widths)
    if "features" not in heads and _ends_in_map(survey):
        yield Finding("features", "the final map", "none")


def check_embeddings(features: Sequence[Any], survey: Survey) -> Iterator[Finding]:
    """A network of images and texts has an embedding of each, as wide as the raw one of images, and no ``logits``."""
    heads = {feature.head: feature for feature in features if feature.head is not None}
    for name in ("embedding", "text_embedding"):
        yield from _check_width(name, heads, *(survey.result or ())[-1:])
    if "features" not in heads:
        yield Finding("features", "the final map", "none")
    if "logits" in heads:
        yield Finding("logits", "none: the network has no classes", heads["logits"].name)


def _ends_in_map(survey: Survey) -> bool:
    """Whether the last grid is a map, or all tokens lie on one grid, as in a plain transformer.

    Of maps only those of the network's own children count: a matrix of attention inside a block looks like one.
    """
    last = [name for name in survey.outputs if "." not in name and survey.grid(name)][-1:]
    grids = {survey.grid(name) for name, shape in survey.outputs.items() if len(shape) == 3} - {()}
    return bool(last) and (len(survey.outputs[last[0]]) == 4 or len(grids) == 1)


def _check_width(head: str, heads: Any, *widths: int) -> Iterator[Finding]:
    """A head is there, and has one of the widths if any are given."""
    allowed = " or ".join(map(str, widths))
    if head not in heads:
        yield Finding(head, f"{allowed} channels" if widths else "a vector", "none")
    elif widths and heads[head].channels not in widths:
        yield Finding(f"channels of {head}", f"{allowed}, as the raw network", str(heads[head].channels))


def _by_number(features: Sequence[Any]) -> dict[int, Any]:
    """The levels by the k of the stride 2^k that they have, of several the last."""
    return {round(math.log2(feature.reduction)): feature for feature in _levels(features) if feature.reduction}


def _levels(features: Sequence[Any]) -> list[Any]:
    return [feature for feature in features if feature.level is not None]
