"""A traced pass told as the core's rule for levels wants it: one step for each cell that ran."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from featreg.plugin import FeatureInfo, Shape, Size, Step, describe_output, errors, stride_of
from featreg_mindspore.libraries import nn
from featreg_mindspore.trace import WHOLE, Event, Source

__all__ = ["Shapes", "as_steps"]

Shapes = Mapping[Size, Mapping[Source, Shape | None]]

_PASSIVE = re.compile(r"Norm|Drop|Identity|Permute|Flatten|Pad(ding)?(\dd)?$")
"""Names of classes, MindSpore's and mindcv's, that normalise, rearrange or pad and compute no features."""


def as_steps(
    events: Sequence[Event], shapes: Shapes, size: Size, period: int | None, *, tokens_as_maps: bool
) -> list[Step]:
    """The cells that ran, where they finished last; the network itself, of which they are the parts, is left out.

    Tokens are counted without prefix tokens. With ``tokens_as_maps`` those of patches have the stride of the map that
    they are: so do hierarchical networks compute that keep a sequence of tokens from stage to stage.
    """
    last = {event.name: event for event in events}
    steps = []
    for event in events:
        if event.name == WHOLE or last[event.name] is not event:
            continue
        found = {at: seen.get(Source(event.name)) for at, seen in shapes.items()}
        feature = _as_map(event.name, found, size, period)
        tokens = len(found[size] or ()) == 3
        steps.append(
            Step(
                event.name,
                None if feature is None or (tokens and not tokens_as_maps) else stride_of(feature, found, size),
                _is_passive(event.cell),
                tuple(event.cell.kernel_size) if isinstance(event.cell, nn.Conv2d) else None,
                event.cell.out_channels if isinstance(event.cell, nn.Conv2d) else None,
                (math.prod(feature.grid(*size)), feature.channels) if feature and tokens else None,
                type(event.cell).__name__,
                id(event.output),
                not _is_passive(event.cell) and any(len(weight.shape) > 1 for weight in event.cell.get_parameters()),
                len(found[size] or ()) == 2,
            )
        )
    return steps


def _as_map(name: str, shapes: Mapping[Size, Shape | None], size: Size, period: int | None) -> FeatureInfo | None:
    """An output as a map, tokens of patches too; None for all else."""
    try:
        feature = describe_output(name, shapes, size, period, as_map=True).feature
    except errors.CapabilityError:
        return None
    return feature if feature.kind == "map" else None


def _is_passive(cell: Any) -> bool:
    """Whether a cell alone is no end of a level: norms without an activation of their own, dropout, layout, padding."""
    if isinstance(cell, nn.Conv2d | nn.Dense) or not _PASSIVE.search(type(cell).__name__):
        return False
    return all(_is_passive(part) for part in cell.cells())
