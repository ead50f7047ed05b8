"""What a network says of its own levels: mindcv's ``feature_info``, in the three ways that mindcv's guide has for it.

An entry names a cell: a child of the network, a child of one of its sequential cells (``flatten_sequential``), or,
where the network is rewritten to return its levels (``is_rewritten``), the element of its output at the same position.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from featreg.plugin import FeatureInfo, Size, errors
from featreg_mindspore.layout import Declared, Place
from featreg_mindspore.survey import Survey
from featreg_mindspore.trace import WHOLE, Event, Source, cells

__all__ = ["check", "find_rewritten", "has_class_token", "read"]

_CLASS_TOKENS = re.compile(r"(?:cls_token|class_token|class_embedding)\d*")
"""How mindcv and other libraries name the parameter that becomes the first token; CoaT counts them."""


def read(network: Any) -> list[Declared]:
    """The entries of a network's declaration, empty where it has none.

    Raises SpecError for an entry of another form, or that names no cell.
    """
    own = getattr(network, "feature_info", None) or ()
    rewritten = bool(getattr(network, "is_rewritten", False))
    names = cells(network)
    entries = []
    for index, entry in enumerate(own):
        name, channels, reduction = _parts(index, entry)
        if not rewritten and name not in names:
            near = errors.near_matches(name, names)
            raise errors.SpecError(f"feature_info[{index}] names no cell", "the name of a cell", repr(name), near)
        source = Source(WHOLE, element=index) if rewritten else Source(name)
        entries.append(Declared(index, name, channels, reduction, source))
    return entries


def has_class_token(network: Any) -> bool:
    """Whether the first of a network's prefix tokens, if it has any, is a class token."""
    names = (name.rpartition(".")[2] for name, _ in network.parameters_and_names())
    return any(_CLASS_TOKENS.fullmatch(name) for name in names)


def _parts(index: int, entry: Any) -> tuple[str, int, int]:
    try:
        return str(entry["name"]), int(entry["chs"]), int(entry["reduction"])
    except (KeyError, TypeError, ValueError) as error:
        raise errors.SpecError(
            f"feature_info[{index}] is of another form", "dict(chs=…, reduction=…, name=…)", repr(entry)
        ) from error


def find_rewritten(entries: Sequence[Declared], events: Sequence[Event]) -> list[Declared]:
    """The same entries at the cells that give the elements of a rewritten network's output, as far as cells do.

    The cells are those of the network that it rewrites, where they can be tapped as well. An entry takes the name of
    its cell, but for an earlier run than the last, which is what the name of a cell stands for.
    """
    output = events[-1].output
    makers: Mapping[int, Event] = {id(event.output): event for event in events}  # of containers the outermost
    calls = Counter(event.name for event in events)
    found = []
    for entry in entries:
        maker = makers.get(id(output[entry.index])) if entry.index < len(output) else None
        if maker is not None:
            last = maker.call + 1 == calls[maker.name]
            source = Source(maker.name, -1 if last else maker.call)
            found.append(replace(entry, name=maker.name if last else entry.name, source=source))
    return found


def check(entries: Sequence[Declared], survey: Survey) -> None:
    """Raise SpecError for the first entry whose channels or stride are not those of the array that it names."""
    for entry in entries:
        what = f"feature_info[{entry.index}], {entry.name!r},"
        try:
            feature = survey.describe(Place(entry.name, entry.source, as_map=True)).feature
        except errors.CapabilityError as error:
            raise errors.SpecError(f"{what} is no feature map", error.expected, error.got or error.problem) from error
        if feature.kind != "map" or feature.channels != entry.channels:
            got = f"chs={feature.channels}" if feature.kind == "map" else f"a {feature.kind}"
            raise errors.SpecError(f"{what} declares other channels than run", f"chs={entry.channels}", got)
        if not _agrees(feature, entry.reduction, survey.size):
            got = f"reduction={feature.reduction}"
            raise errors.SpecError(f"{what} declares another stride than runs", f"reduction={entry.reduction}", got)


def _agrees(feature: FeatureInfo, reduction: int, size: Size) -> bool:
    """Whether a map has a stride; where its grid follows no formula, to within the one position that padding makes."""
    if feature.rounding != "measured":
        return feature.reduction == reduction
    return all(abs(side / reduction - count) <= 1 for side, count in zip(size, feature.grid(*size), strict=True))
