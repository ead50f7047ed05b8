"""Small files that tests open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from featreg_onnx.nets import make_resnet, make_vit

Save = Callable[..., str]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a model, and gives the model id."""

    def write(model: onnx.ModelProto, name: str = "net.onnx") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(model.SerializeToString())
        return f"onnx:{path}"

    return write


@pytest.fixture
def resnet() -> onnx.ModelProto:
    return make_resnet()


@pytest.fixture
def vit() -> onnx.ModelProto:
    return make_vit()


@pytest.fixture
def images() -> np.ndarray:
    """Two images of 48x48."""
    return np.random.default_rng(0).standard_normal((2, 3, 48, 48), dtype=np.float32)
