"""Outlets of networks that declare their levels as timm's do, in ``feature_info``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from torch import nn

from featreg_torch.taps import Outlet

__all__ = ["declared_levels", "declared_outlets", "level_of"]


def level_of(reduction: int) -> str:
    """The canonical level of a stride; the nearest one where it is no power of two (ViT's patches of 14 pixels: C4)."""
    return f"C{round(math.log2(reduction))}"


def declared_levels(network: nn.Module) -> dict[int, str]:
    """The level of each index that has one: the last declared entry of each reduction."""
    last = {entry["reduction"]: index for index, entry in enumerate(_declared(network))}
    return {index: level_of(reduction) for reduction, index in last.items()}


def declared_outlets(
    network: nn.Module, features: str, *, prefix: str = "", levels: Mapping[int, str] | None = None
) -> list[Outlet]:
    """Every declared index, with its level, then the heads ``features`` and, of a plain transformer, ``tokens``.

    ``features`` is the source of the final unpooled features, ``prefix`` stands before the names of the network's
    modules, and ``levels`` replaces :func:`declared_levels`, where the network is dilated. Tokens become maps in plain
    transformers alone, whose tokens lie in rows and columns: others may order them as they like.
    """
    declared = _declared(network)
    levels = declared_levels(network) if levels is None else levels
    plain = _is_plain_transformer(network, declared)
    prefix_tokens = int(getattr(network, "num_prefix_tokens", 0))
    taps = [
        Outlet(
            prefix + entry["module"],
            level=levels.get(index),
            index=index,
            kind="map",
            prefix_tokens=prefix_tokens,
            reduction=entry["reduction"] if plain else None,
            channels=entry["num_chs"],
        )
        for index, entry in enumerate(declared)
    ]
    final = Outlet(
        features,
        head="features",
        kind="map",
        prefix_tokens=prefix_tokens,
        reduction=declared[-1]["reduction"] if plain else None,
        channels=getattr(network, "num_features", None),
    )
    return [*taps, final, *([attrs.evolve(final, head="tokens", kind="tokens")] if plain else [])]


def _declared(network: nn.Module) -> Sequence[Mapping[str, Any]]:
    return list(getattr(network, "feature_info", ()))


def _is_plain_transformer(network: nn.Module, declared: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the declared levels are blocks of one stride, whose outputs are sequences of tokens."""
    strides = {entry["reduction"] for entry in declared}
    return len(strides) == 1 and hasattr(network, "num_prefix_tokens") and hasattr(network, "patch_embed")
