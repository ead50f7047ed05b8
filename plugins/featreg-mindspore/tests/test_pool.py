"""Pooling of MindSpore tensors, alone and behind a network, against NumPy written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import featreg
from featreg_mindspore.libraries import mindspore

MAPS = np.random.default_rng(5).standard_normal((2, 3, 4, 6)).astype(np.float32)
BLOCKS = MAPS.reshape(2, 3, 2, 2, 3, 2)
WANTED = {
    "avg": MAPS.sum((2, 3)) / 24,
    "max": MAPS.max((2, 3)),
    "gem=2": np.sqrt((np.clip(MAPS, 1e-6, None) ** 2).sum((2, 3)) / 24),
    "avgpool=2,2,0": BLOCKS.sum((3, 5)) / 4,
    "maxpool=2,2,0": BLOCKS.max((3, 5)),
    "adaptive_avgpool=2,3": BLOCKS.sum((3, 5)) / 4,
}


@pytest.mark.parametrize("text", WANTED)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tensors_are_pooled_to_tensors_of_their_type(text: str, dtype: str) -> None:
    tensor = mindspore.Tensor(MAPS).astype(getattr(mindspore, dtype))
    features = featreg.FeatureSet({"C2": tensor}, {"C2": featreg.FeatureInfo("x", 3, 4, "map")})
    pooled = features.pool(text)["C2"]
    assert isinstance(pooled, mindspore.Tensor)
    assert pooled.dtype == tensor.dtype
    found = pooled.astype(mindspore.float32).asnumpy()
    np.testing.assert_allclose(found, WANTED[text], atol=1e-5 if dtype == "float32" else 0.02)


@pytest.mark.parametrize("array", ["native", "numpy"])
def test_an_extractor_pools_and_flattens(array: Any) -> None:
    images = np.random.default_rng(5).standard_normal((1, 3, 64, 70)).astype(np.float32)
    with featreg.create_extractor("mindspore:resnet18", ["C3", "C4"]) as extractor:
        raw = extractor(images)
    pool = {"C3": "avgpool=2,2,0", "C4": "gem"}
    with featreg.create_extractor(
        "mindspore:resnet18", ["C3", "C4"], pool=pool, array=array, flatten=True
    ) as extractor:
        found = extractor(images)
        assert {key: tuple(value.shape) for key, value in found.items()} == extractor.output_shapes((1, 3, 64, 70))
    assert all(isinstance(value, mindspore.Tensor if array == "native" else np.ndarray) for value in found.values())
    blocks = raw["C3"].reshape(1, 128, 4, 2, 9)[..., :8].reshape(1, 128, 4, 2, 4, 2)
    np.testing.assert_allclose(found.numpy()["C3"], blocks.mean((3, 5)).reshape(1, -1), rtol=1e-4, atol=1e-5)
    means = np.cbrt((np.clip(raw["C4"], 1e-6, None) ** 3).mean((2, 3)))
    np.testing.assert_allclose(found.numpy()["C4"], means, rtol=1e-4, atol=1e-5)
