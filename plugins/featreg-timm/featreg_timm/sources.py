"""Where features leave timm's networks besides their modules: the steps of a forward pass, and timm's own maps.

timm names a module for each feature level. Where that module gives a list or tokens in an order of its own, or does not
run, the map is the one that the network's ``forward_intermediates`` makes of it. The final map is what
``forward_features`` gives, and the last level's where that is no map: class tokens alone, or several tensors.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from featreg.plugin import Size, errors
from featreg_torch.declared import declared_levels, declared_outlets, has_class_token
from featreg_torch.shapes import Shape, probe
from featreg_torch.taps import Glance, HookTaps, Outlet

__all__ = ["begins_with_class", "count_prefix_tokens", "find_outlets", "native_names", "tap"]

FEATURES = "forward_features"
POOLED = "forward_head(pre_logits=True)"
LOGITS = "forward_head"
_INTERMEDIATES = "forward_intermediates"
_CLASS_TOKEN_OF_SCALE = re.compile(r"cls_token_?\d")
"""The name of the class token's parameter where each scale has its own, as in CoaT and CrossViT."""


def find_outlets(
    network: nn.Module, native: Size, levels: Mapping[int, str] | None = None, channels: int = 3
) -> list[Outlet]:
    """The outlets of a network on the meta device; ``levels`` names those of a dilated one."""
    look = functools.partial(_shapes, network, native=native, channels=channels)
    outlets = declared_outlets(network, FEATURES, levels={})
    shapes = look(outlets)
    outlets = [_as_map(outlet, shapes[outlet.source]) for outlet in outlets]
    shapes |= look([outlet for outlet in outlets if outlet.source not in shapes])
    outlets = [_laid_out(outlet, shapes[outlet.source], network) for outlet in outlets]
    strides = {
        outlet.index: stride
        for outlet in outlets
        if outlet.index is not None and (stride := _stride(outlet, shapes[outlet.source], native, network)) is not None
    }
    found = declared_levels(network, strides) if levels is None else levels
    levelled = [
        outlet
        if outlet.index is None
        else attrs.evolve(outlet, level=found.get(outlet.index), reduction=strides.get(outlet.index, outlet.reduction))
        for outlet in outlets
    ]
    return [*_with_final(levelled, shapes, native, count_prefix_tokens(network)), *_heads(network, look)]


def count_prefix_tokens(network: nn.Module) -> int:
    """How many tokens stand before the patches: as timm says or PiT, else one class token where there is one."""
    for name in ("num_prefix_tokens", "num_tokens"):
        count = getattr(network, name, None)
        if isinstance(count, int):
            return count
    return int(begins_with_class(network))


def begins_with_class(network: nn.Module) -> bool:
    """Whether the first prefix token, if there is any, is a class token."""
    return has_class_token(network) or any(
        _CLASS_TOKEN_OF_SCALE.fullmatch(name) for name, _ in network.named_parameters(recurse=False)
    )


def native_names(network: nn.Module, outlets: Sequence[Outlet]) -> list[str]:
    """Every name of a network's modules, then those of its steps."""
    modules = [name for name, _ in network.named_modules() if name]
    return list(dict.fromkeys([*modules, *(outlet.source for outlet in outlets)]))


def _shapes(network: nn.Module, outlets: Sequence[Outlet], native: Size, channels: int) -> dict[str, Shape | None]:
    sources = list(dict.fromkeys(outlet.source for outlet in outlets))
    if not sources:
        return {}
    taps = tap(network, sources, [Glance() for _ in sources])
    return dict(zip(sources, probe(taps, native, channels), strict=True))


def _as_map(outlet: Outlet, shape: Shape | None) -> Outlet:
    """An indexed outlet as it is where its module gives a map or the tokens of a plain transformer."""
    if outlet.index is None or (shape is not None and (len(shape) == 4 or (len(shape) == 3 and outlet.reduction))):
        return outlet
    return attrs.evolve(outlet, source=_intermediate(outlet.index), reduction=None, prefix_tokens=0, stored="nchw")


def _laid_out(outlet: Outlet, shape: Shape | None, network: nn.Module) -> Outlet:
    """A map with as many channels as rows and columns, whose layout only timm's own word for it tells."""
    if outlet.stored is not None or shape is None or len(shape) != 4 or len(set(shape[1:])) > 1:
        return outlet
    return attrs.evolve(outlet, stored="nhwc" if getattr(network, "output_fmt", "NCHW") == "NHWC" else "nchw")


def _with_final(
    outlets: Sequence[Outlet], shapes: Mapping[str, Shape | None], native: Size, prefix_tokens: int
) -> list[Outlet]:
    """The outlets with the head ``features``, and ``tokens`` where ``forward_features`` gives a sequence of them.

    Such a sequence lies on the grid of the last level. Where there is neither it nor a map, the last level is final.
    """
    final = next(outlet for outlet in outlets if outlet.head == "features")
    last = next((outlet for outlet in reversed(outlets) if outlet.level is not None), None)
    shape = shapes[final.source]
    if last is None or final.reduction is not None or _grid(final, shape) is not None:
        return list(outlets)
    indexed = [outlet for outlet in outlets if outlet.head is None]
    grid = _grid(last, shapes[last.source])
    before = None if grid is None or shape is None or len(shape) != 3 else shape[1] - math.prod(grid)
    if before is None or before not in (0, prefix_tokens):
        return [attrs.evolve(outlet, head="features") if outlet is last else outlet for outlet in indexed]
    stride = last.reduction
    final = attrs.evolve(final, reduction=stride, prefix_tokens=before)
    return [*indexed, final, attrs.evolve(final, head="tokens", kind="tokens")]


def _stride(outlet: Outlet, shape: Shape | None, native: Size, network: nn.Module) -> int | None:
    """The stride of a map: as it is declared where that gives this grid, which it does not in some networks."""
    grid = _grid(outlet, shape)
    if grid is None or outlet.index is None:
        return None
    entries: Any = network.feature_info
    declared: int = entries[outlet.index]["reduction"]
    fits = grid == (-(-native[0] // declared), -(-native[1] // declared))
    return declared if fits else max(1, round(native[0] / grid[0]))


def _grid(outlet: Outlet, shape: Shape | None) -> Size | None:
    """The rows and columns of a map; None where that is none."""
    if shape is None or len(shape) != 4:
        return None
    return (shape[2], shape[3]) if shape[1] == outlet.channels else (shape[1], shape[2])


def _heads(network: nn.Module, look: Callable[[Sequence[Outlet]], dict[str, Shape | None]]) -> list[Outlet]:
    """The heads behind the features: an encoder has none, and a network without classes no logits."""
    if getattr(network, "num_classes", 0) > 0:
        return [Outlet(POOLED, head="pooled", kind="vector"), Outlet(LOGITS, head="logits", kind="vector")]
    return [] if look([Outlet(LOGITS)])[LOGITS] is None else [Outlet(POOLED, head="pooled", kind="vector")]


def _intermediate(index: int) -> str:
    return f"{_INTERMEDIATES}[{index}]"


def _run(network: Any, images: torch.Tensor, wanted: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Two passes where both maps and something else are wanted: not every module runs in ``forward_intermediates``."""
    maps = [index for index in range(len(getattr(network, "feature_info", ()))) if _intermediate(index) in wanted]
    if maps:
        made = network.forward_intermediates(images, indices=maps, stop_early=True, intermediates_only=True)
        yield from zip(map(_intermediate, maps), made, strict=True)
    if len(maps) == len(wanted):
        return
    if maps and network.training:  # batch statistics would be taken twice, and dropout drawn anew
        raise errors.CapabilityError(
            "these maps and these other layers come from two passes, which training cannot take for one",
            "maps alone, or other layers alone",
            ", ".join(sorted(wanted)),
            remedy="open an extractor for each, or evaluate",
        )
    features = network.forward_features(images)
    yield FEATURES, features
    if POOLED in wanted:
        yield POOLED, network.forward_head(features, pre_logits=True)
    try:
        logits = network.forward_head(features)
    except NotImplementedError:  # an encoder
        return
    yield LOGITS, logits


tap = functools.partial(HookTaps, run=_run)
