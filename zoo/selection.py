"""Which models are judged, and of which the values are compared: seeded, and the same for any order of names."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Mapping, Sequence

import attrs

from zoo.records import Task

__all__ = ["REAL_SHARES", "SLICE", "Selection", "chance", "select"]

REAL_SHARES = {"mindspore": 0.12, "open_clip": 0.2, "timm": 0.06, "torchvision": 0.25}
"""The part of each zoo whose values are compared with real tensors."""
SLICE = {"mindspore": 8, "open_clip": 10, "timm": 26, "torchvision": 20}
"""How many models of each zoo every run of CI judges."""


@attrs.frozen
class Selection:
    """``patterns`` are shell-style, for model ids or bare names; ``sample`` counts models over all backends."""

    patterns: tuple[str, ...] = ()
    sample: int | None = None
    slice: bool = False
    seed: int = 0

    @property
    def whole(self) -> bool:
        """Whether nothing of a zoo is left out."""
        return not self.patterns and self.sample is None and not self.slice


def select(catalogue: Mapping[str, Sequence[str]], selection: Selection) -> list[Task]:
    """The tasks of a sweep, backend by backend; in a slice the values of at least one model of each are compared."""
    tasks: list[Task] = []
    chosen = _sampled(catalogue, selection) if selection.sample is not None else None
    for backend in sorted(catalogue):
        models = [model for model in sorted(catalogue[backend]) if _matches(backend, model, selection.patterns)]
        if chosen is not None:
            models = [model for model in models if f"{backend}:{model}" in chosen]
        if selection.slice:
            models = sorted(_ranked(backend, models, "slice", selection.seed)[: SLICE[backend]])
        first = _ranked(backend, models, "first", selection.seed)[:1] if selection.slice else []
        tasks += [
            Task(backend, model, model in first or _is_real(backend, model, selection.seed), selection.seed)
            for model in models
        ]
    return tasks


def _sampled(catalogue: Mapping[str, Sequence[str]], selection: Selection) -> set[str]:
    ids = [(backend, model) for backend, models in catalogue.items() for model in models]
    matching = [pair for pair in ids if _matches(*pair, selection.patterns)]
    ranked = sorted(matching, key=lambda pair: chance(f"{pair[0]}:{pair[1]}", "sample", selection.seed))
    return {f"{backend}:{model}" for backend, model in ranked[: selection.sample]}


def _matches(backend: str, model: str, patterns: Sequence[str]) -> bool:
    names = (model, f"{backend}:{model}")
    return not patterns or any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _ranked(backend: str, models: Sequence[str], purpose: str, seed: int) -> list[str]:
    return sorted(models, key=lambda model: chance(f"{backend}:{model}", purpose, seed))


def _is_real(backend: str, model: str, seed: int) -> bool:
    return chance(f"{backend}:{model}", "real", seed) < REAL_SHARES[backend]


def chance(name: str, purpose: str, seed: int) -> float:
    """A number in [0, 1) that belongs to a name: it does not change when others come or go."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
