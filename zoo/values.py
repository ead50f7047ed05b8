"""Real tensors: an extractor's values against raw forward hooks, with the same random weights and images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zoo.arrange import Frame, arrange
from zoo.oracles import Oracle
from zoo.records import Task, ValueCheck

__all__ = ["compare"]

_PARAMETERS = {"open_clip": 160_000_000}
_PARAMETERS_ELSE = 50_000_000
"""Larger networks are not given real weights: a few copies must fit into a worker's memory. CLIP has no small ones."""
_TEXT = "text_embedding"
_TOLERANCE = 1e-4


def compare(task: Task, info: Any, oracle: Oracle, open_extractor: Callable[..., Any]) -> ValueCheck:
    """Compare every level and head that images give; the weights go to featreg as a checkpoint file.

    Logits are compared with what the library's own call returns too, whichever layer featreg says makes them.
    """
    if oracle.parameters > _PARAMETERS.get(task.backend, _PARAMETERS_ELSE):
        return ValueCheck("skipped", f"{oracle.parameters / 1e6:.0f} M parameters")
    keys = [key for feature in info.features for key in (feature.level, feature.head) if key not in (None, _TEXT)]
    batch = min(oracle.batch, 2)
    shape = (batch, 3, *info.input_size)
    images = np.random.default_rng(task.seed).standard_normal(shape, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        weights = oracle.checkpoint(Path(folder))
        with open_extractor(task.id, keys, weights=str(weights)) as extractor:
            features = extractor(images)
            named = extractor.feature_info
    raw = oracle.values([feature.name for feature in named.values()], images)
    frame = Frame(batch, info.input_size, oracle.prefix_tokens)
    unlike = []
    for key, feature in named.items():
        ours = features[key]
        theirs = arrange(raw[feature.name], feature.kind, ours.shape, frame)
        if not _agree(ours, theirs, oracle.exact_values):
            unlike.append(f"{key} by {_distance(ours, theirs)}")
    if "logits" in named and not _agree(features["logits"], result := oracle.result(images), oracle.exact_values):
        unlike.append(f"logits by {_distance(features['logits'], result)} from what the network returns")
    if unlike:
        return ValueCheck("different", "; ".join(unlike))
    return ValueCheck("equal", "" if all(np.isfinite(array).all() for array in raw.values()) else "not all finite")


def _agree(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any], exact: bool) -> bool:
    if exact:
        return np.array_equal(ours, theirs, equal_nan=True)
    scale = float(np.nanmax(np.abs(theirs), initial=0.0))
    return ours.shape == theirs.shape and np.allclose(
        ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True
    )


def _distance(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> str:
    if ours.shape != theirs.shape:
        return f"shape {ours.shape} for {theirs.shape}"
    return f"{float(np.nanmax(np.abs(ours - theirs))):.3g} of {float(np.nanmax(np.abs(theirs))):.3g}"
