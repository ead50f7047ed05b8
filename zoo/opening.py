"""One layer of a model opened and run on one image, as users do: with real memory, and nothing of featreg replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.oracles.base import explain
from zoo.records import Finding, Task
from zoo.selection import chance

__all__ = ["check_opening", "is_to_open"]

ALWAYS = 50_000_000
"""Parameters up to which every model is opened."""
_NEVER = 500_000_000
_SHARE = 0.06
"""The part of the larger ones that is opened, drawn by the seed; of the largest a copy does not fit into a worker."""


def is_to_open(task: Task, parameters: int) -> bool:
    """Whether a model of so many parameters is opened in this sweep."""
    if parameters <= ALWAYS:
        return True
    return parameters <= _NEVER and chance(task.id, "open", task.seed) < _SHARE


def check_opening(task: Task, info: Any, open_extractor: Callable[..., Any]) -> list[Finding]:
    """Open the deepest level, or a head or index where there is none, run it, and look at its shape.

    Any error is a finding: the model was described, so that it must open.
    """
    key = _deepest(info)
    if key is None:
        return [Finding("layers", "a level, head or index", "none")]
    try:
        expected = info.resolve(key).shape(1, *info.input_size)
        with open_extractor(task.id, [key], weights=None) as extractor:
            features = extractor(np.zeros((1, 3, *info.input_size), dtype=np.float32))
        got = tuple(features[key].shape)
    except Exception as error:  # noqa: BLE001  (whatever is raised, a caller would meet it)
        return [Finding(f"opening {key}", "an extractor that runs", explain(error))]
    return [] if got == expected else [Finding(f"opening {key}", str(expected), str(got))]


def _deepest(info: Any) -> Any:
    levels = [feature.level for feature in info.features if feature.level is not None]
    heads = [feature.head for feature in info.features if feature.head not in (None, "text_embedding")]
    indices = [feature.index for feature in info.features if feature.index is not None]
    return next((keys[-1] for keys in (levels, heads, indices) if keys), None)
