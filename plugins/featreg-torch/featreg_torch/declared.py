"""Outlets of networks that declare their levels as timm's do, in ``feature_info``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from torch import nn

from featreg.plugin import level_of
from featreg_torch.taps import Outlet

__all__ = ["declared_levels", "declared_outlets", "has_class_token", "level_of"]

_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
"""How timm and most others, torchvision, and open_clip name the parameter that becomes the first token."""


def declared_levels(network: nn.Module, strides: Mapping[int, int] | None = None) -> dict[int, str]:
    """The level of each index that has one: the last declared entry of each level.

    ``strides`` are those that maps turned out to have, by index, where they may differ from what is declared.
    """
    strides = strides or {}
    declared = enumerate(_declared(network))
    last = {level_of(strides.get(index, entry["reduction"])): index for index, entry in declared}
    return {index: level for level, index in last.items()}


def declared_outlets(
    network: nn.Module, features: str, *, prefix: str = "", levels: Mapping[int, str] | None = None
) -> list[Outlet]:
    """Every declared index, with its level, then the heads ``features`` and, of a plain transformer, ``tokens``.

    ``features`` is the source of the final unpooled features, ``prefix`` stands before the names of the network's
    modules, and ``levels`` replaces :func:`declared_levels`, where the network is dilated. Tokens become maps in plain
    transformers alone, whose tokens lie in rows and columns: others may order them as they like.
    """
    declared = _declared(network)
    part, owner = _owner(network)
    levels = declared_levels(network) if levels is None else levels
    plain = _is_plain_transformer(owner, declared)
    prefix_tokens = int(getattr(owner, "num_prefix_tokens", 0))
    taps = [
        Outlet(
            prefix + part + entry["module"],
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


def has_class_token(network: nn.Module) -> bool:
    """Whether the first of a network's prefix tokens, if it has any, is a class token: its parameter is named so."""
    return any(name.rpartition(".")[2] in _CLASS_TOKENS for name, _ in network.named_parameters())


def _declared(network: nn.Module) -> Sequence[Mapping[str, Any]]:
    return list(getattr(network, "feature_info", ()))


def _owner(network: nn.Module) -> tuple[str, nn.Module]:
    """Whose modules the declaration names: a part's, under a prefix, where the network hands its declaration on."""
    declared = getattr(network, "feature_info", None)
    for name, part in network.named_children():
        if declared is not None and getattr(part, "feature_info", None) is declared:
            return f"{name}.", part
    return "", network


def _is_plain_transformer(network: nn.Module, declared: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the declared levels are blocks of one stride, whose outputs are sequences of tokens."""
    strides = {entry["reduction"] for entry in declared}
    return len(strides) == 1 and hasattr(network, "num_prefix_tokens") and hasattr(network, "patch_embed")
