"""Weights as the library loads them: its own names for those of older releases, and what of a checkpoint is of use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from featreg_transformers.hubs import arguments, muted, reading

__all__ = ["library_state"]


def library_state(
    kind: type[Any],
    config: PreTrainedConfig,
    *,
    place: str | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The weights of a repository, a folder, or a file's ``state``, under the names of this release, in float32.

    What the network does not have is left under its own name, to be refused, but for whole parts of other networks (a
    decoder, a text tower): the second value says which were left out. So are weights of another shape. Raises
    WeightsError for a place that cannot be read.
    """
    options = {"config": config, "dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if place is None:
        with muted():
            network, info = kind.from_pretrained(None, state_dict=dict(state or {}), **options)
    else:
        with reading(place, "the weights"):
            network, info = kind.from_pretrained(**arguments(place), **options)
    found: dict[str, torch.Tensor] = {
        name: value for name, value in network.state_dict().items() if name not in info["missing_keys"]
    }
    found |= {name: torch.empty(tuple(shape), device="meta") for name, shape, _ in info["mismatched_keys"]}
    own, others = _sorted_out(network, info["unexpected_keys"])
    found |= {name: torch.empty(0, device="meta") for name in own}
    return found, tuple(f"weights of another network's left out: {part}" for part in others)


def _sorted_out(network: nn.Module, unexpected: Iterable[str]) -> tuple[list[str], list[str]]:
    """The unexpected weights in the network's own parts, and the names of the other parts that the rest belong to."""
    prefix = f"{getattr(network, 'base_model_prefix', '')}."
    inner = getattr(network, prefix[:-1], network)
    parts = {name for one in (network, inner) for name, _ in one.named_children()}
    own, others = [], set()
    for name in sorted(unexpected):
        part = name.removeprefix(prefix).partition(".")[0]
        if part in parts:
            own.append(name)
        else:
            others.add(part)
    return own, sorted(others)
