"""Checkpoints of VISSL: where the trunk and the heads lie, and what their names are.

``BaseSSLMultiInputOutputModel.get_classy_state`` saves ``classy_state_dict > base_model > model > trunk | heads``. The
trunk of ``vissl/models/trunks/resnext.py`` keeps torchvision's own parts in ``_feature_blocks``; a trunk that was set
up for feature extraction holds it as ``base_model``. The heads are a list of ``vissl/models/heads/mlp.py``, each a
``clf``. https://github.com/facebookresearch/vissl
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["find_vissl"]

_PATH = ("classy_state_dict", "base_model", "model")
_PREFIXES = ("base_model.", "_feature_blocks.")


def find_vissl(content: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor], tuple[str, ...]] | None:
    """The trunk under torchvision's names, the heads under VISSL's, and the keys that led there; None elsewhere."""
    for key in _PATH:
        content = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(content, Mapping) or not isinstance(content.get("trunk"), Mapping):
        return None
    trunk = dict(content["trunk"])
    for prefix in _PREFIXES:
        if trunk and all(name.startswith(prefix) for name in trunk):
            trunk = {name.removeprefix(prefix): value for name, value in trunk.items()}
    heads = content.get("heads")
    if isinstance(heads, list | tuple):  # one dictionary a head, where they were trained in shards
        heads = {f"{k}.{name}": value for k, head in enumerate(heads) for name, value in head.items()}
    found = heads if isinstance(heads, Mapping) else {}
    return trunk, {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}, (*_PATH, "trunk")
