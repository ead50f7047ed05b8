"""One oracle per library: the raw network, raw hooks on it, and nothing of featreg."""

from __future__ import annotations

import importlib

from zoo.oracles.base import Oracle, RawRefusal

__all__ = ["ORACLES", "Oracle", "RawRefusal", "library_models", "open_oracle"]

ORACLES = {
    "mindspore": "zoo.oracles.mindspore:MindsporeOracle",
    "open_clip": "zoo.oracles.open_clip:OpenClipOracle",
    "timm": "zoo.oracles.timm:TimmOracle",
    "torchvision": "zoo.oracles.torchvision:TorchvisionOracle",
}
"""The oracle of each backend; importing one imports its framework."""


def open_oracle(backend: str, model: str) -> Oracle:
    """The oracle of one model; its raw network is built when it is first looked at."""
    return _oracle(backend)(model)


def library_models(backend: str) -> tuple[str, ...]:
    """Every model that the library itself lists, sorted."""
    return tuple(sorted(_oracle(backend).models()))


def _oracle(backend: str) -> type[Oracle]:
    module, _, name = ORACLES[backend].partition(":")
    oracle: type[Oracle] = getattr(importlib.import_module(module), name)
    return oracle
