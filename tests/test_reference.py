"""The NumPy backend against a convolution written out in loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featreg
from featreg import errors
from featreg.reference import backend as reference

LEVELS = ("C1", "C2", "C3", "C4", "C5")


def slow_convolution(x: np.ndarray[Any, Any], kernel: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """3x3, stride 2, padding 1, one multiplication at a time in double precision."""
    batch, channels, height, width = x.shape
    out = np.zeros((batch, len(kernel), math.ceil(height / 2), math.ceil(width / 2)))
    for n, k, row, column in np.ndindex(*out.shape):
        total = 0.0
        for c, i, j in np.ndindex(channels, 3, 3):
            y, z = 2 * row + i - 1, 2 * column + j - 1
            if 0 <= y < height and 0 <= z < width:
                total += float(x[n, c, y, z]) * float(kernel[k, c, i, j])
        out[n, k, row, column] = total
    return out


def slow_features(images: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    kernels, matrix = reference.weights()
    x, found = images, {}
    for level, kernel in zip(LEVELS, kernels, strict=True):
        x = found[level] = np.maximum(slow_convolution(x, kernel), 0)
    found["features"] = x
    found["pooled"] = x.sum(axis=(2, 3)) / (x.shape[2] * x.shape[3])
    found["logits"] = np.array([[sum(row * column) for column in matrix.T.astype(float)] for row in found["pooled"]])
    return found


def photos(*shape: int, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_every_layer_against_the_loops() -> None:
    images = photos(2, 3, 11, 9)
    wanted = slow_features((images / 255 - 0.5) / 0.5)
    features = featreg.create_extractor("numpy:tinynet", list(wanted))(images)
    assert list(features) == list(wanted)
    for key, value in wanted.items():
        assert features[key].dtype == np.float32
        assert np.abs(value).max() > 0.01, "a layer of zeros would prove nothing"
        np.testing.assert_allclose(features[key], value, rtol=1e-4, atol=1e-5)


def test_floats_go_in_as_they_are() -> None:
    images = photos(1, 3, 8, 8)
    extractor = featreg.create_extractor("numpy:tinynet", ["C1", "logits"])
    floats = extractor(((images / 255 - 0.5) / 0.5).astype(np.float32))
    for key, value in extractor(images).items():
        np.testing.assert_allclose(value, floats[key], rtol=1e-4, atol=1e-5)


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 80), st.integers(1, 80))
def test_shapes_are_those_predicted(batch: int, height: int, width: int) -> None:
    info = featreg.describe("numpy:tinynet", (height, width))
    extractor = featreg.create_extractor("numpy:tinynet", info.keys)
    features = extractor(np.zeros((batch, 3, height, width), np.float32))
    shapes = {key: array.shape for key, array in features.items()}
    assert shapes == extractor.output_shapes((batch, 3, height, width))
    assert shapes == {key: info.resolve(key).shape(batch, height, width) for key in info.keys}


def test_levels_indices_and_native_names_agree() -> None:
    images = photos(1, 3, 16, 16)
    features = featreg.create_extractor("numpy:tinynet", [0, -1, "stage1", "C5", "C1"])(images)
    assert np.array_equal(features[0], features["stage1"])
    assert np.array_equal(features[0], features["C1"])
    assert np.array_equal(features[-1], features["C5"])


def test_outputs_share_no_storage() -> None:
    images = photos(1, 3, 16, 16).astype(np.float32)
    before = images.copy()
    features = featreg.create_extractor("numpy:tinynet", ["C5", "features", -1, "pooled"])(images)
    arrays = [*features.values(), images, *reference.weights()[0]]
    assert not any(np.shares_memory(one, two) for i, one in enumerate(arrays) for two in arrays[:i])
    assert np.array_equal(images, before)


def test_same_input_same_output_and_later_calls_change_nothing() -> None:
    extractor = featreg.create_extractor("numpy:tinynet", ["C3", "pooled"])
    state = np.random.get_state()[1].copy()  # type: ignore[index]
    first = extractor(photos(2, 3, 20, 20))
    kept = {key: array.copy() for key, array in first.items()}
    extractor(photos(2, 3, 20, 20, seed=2))
    again = extractor(photos(2, 3, 20, 20))
    for key, value in kept.items():
        assert np.array_equal(first[key], value)
        assert np.array_equal(again[key], value)
    assert np.array_equal(np.random.get_state()[1], state)  # type: ignore[index]


def test_batch_size_changes_nothing_beyond_rounding() -> None:
    images = photos(4, 3, 20, 20)
    extractor = featreg.create_extractor("numpy:tinynet", ["C5", "logits"])
    together = extractor(images)
    for row in range(4):
        for key, alone in extractor(images[row : row + 1]).items():
            np.testing.assert_allclose(together[key][row : row + 1], alone, rtol=1e-5, atol=1e-5)


def test_only_what_is_needed_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = reference.convolve
    monkeypatch.setattr(reference, "convolve", lambda x, kernel: calls.append(1) or real(x, kernel))  # type: ignore[func-returns-value]
    featreg.create_extractor("numpy:tinynet", ["C2"])(photos(1, 3, 8, 8))
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"device": "cuda"}, errors.CapabilityError),
        ({"device": "tpu"}, errors.DeviceError),
        ({"options": {"fast": True}}, errors.CapabilityError),
        ({"weights": "default"}, errors.CapabilityError),
        ({"dtype": "float16"}, errors.CapabilityError),
        ({"output_stride": 8}, errors.CapabilityError),
    ],
)
def test_what_it_does_not_do_is_refused(fields: dict[str, Any], kind: type[errors.FeatregError]) -> None:
    with pytest.raises(kind):
        featreg.create_extractor("numpy:tinynet", "C1", **fields)
