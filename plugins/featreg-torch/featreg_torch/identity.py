"""What a torch module's weights are, and those of a folder or a hub's repository."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from featreg.plugin import identify_state, watch_path

__all__ = ["identify_module", "watch_hub", "watch_module"]


def watch_hub(weights: str, file: str) -> Callable[[], str | None]:
    """What ``"local-dir:FOLDER"`` holds, or the revision of ``"hf-hub:OWNER/NAME"`` that is in the Hub's cache now.

    ``file`` is one that every such repository has. None where the cache does not tell.
    """
    kind, _, place = weights.partition(":")
    if kind == "local-dir":
        return watch_path(place)
    from huggingface_hub import try_to_load_from_cache  # a requirement of the libraries that have hubs

    name, _, revision = place.partition("@")
    found = try_to_load_from_cache(name, file, revision=revision or None)
    identity = f"hf-hub:{name}@{Path(found).parent.name}" if isinstance(found, str) else None
    return lambda: identity


def watch_module(module: nn.Module, loaded: Callable[[], str | None]) -> Callable[[], str | None]:
    """What ``loaded`` says, as long as the module has the weights that it has now; after that, its state by then.

    A change is known by torch's own count of the operations in place on each tensor, at no cost. That count misses what
    is done to ``parameter.data``, as does autograd.
    """
    before = _marks(module)
    return lambda: loaded() if _marks(module) == before else identify_module(module)


def identify_module(module: nn.Module) -> str:
    """A hash of a module's layers, parameters and buffers as they are now, those that are not saved among them."""
    state = {**dict(module.named_buffers()), **module.state_dict()}
    return identify_state(repr(module), ((name, *_content(value)) for name, value in state.items()))


def _marks(module: nn.Module) -> dict[str, tuple[int, int | None]]:
    """Where each weight lies, and how often it was written to; None where torch does not count."""
    saved = {*module.state_dict()}
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        name: (tensor.data_ptr(), None if tensor.is_inference() else tensor._version)
        for name, tensor in named.items()
        if name in saved
    }


def _content(value: Any) -> tuple[str, np.ndarray[Any, Any]]:
    if not isinstance(value, torch.Tensor):  # what a module saves besides its tensors
        return type(value).__name__, np.frombuffer(repr(value).encode(), np.uint8)
    kind = f"{value.dtype} {tuple(value.shape)}"
    plain = value.dequantize() if value.is_quantized else value.to_dense() if value.layout != torch.strided else value
    return kind, plain.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
