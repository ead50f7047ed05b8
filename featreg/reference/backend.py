"""A whole backend in NumPy: five 3x3 convolutions of stride 2 with ReLU, average pooling, one linear layer.

Its weights are fixed: they are drawn from a seeded generator, scaled as in He et al. 2015 (arXiv:1502.01852); or they
are synthetic, where a request says so.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np

from featreg.plugin import (
    Backend,
    BackendExtractor,
    ExtractionRequest,
    FeatureInfo,
    ModelInfo,
    NodeInfo,
    Preprocess,
    Size,
    draw_weight,
    errors,
    normalize,
    synthetic_seed,
)

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
Parameters: TypeAlias = tuple[tuple[Floats, ...], Floats]

CHANNELS = (3, 8, 16, 24, 32, 48)
CLASSES = 10
PREPROCESS = Preprocess(resize=(64, 64), crop=(64, 64), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class NumpyBackend(Backend):
    """The backend ``numpy``, with its one model ``tinynet``."""

    def models(self) -> Sequence[str]:
        return ("tinynet",)

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        stages = [
            FeatureInfo(f"stage{k}", CHANNELS[k], 2**k, "map", level=f"C{k}", index=k - 1)
            for k in range(1, len(CHANNELS))
        ]
        heads = [
            FeatureInfo("stage5", CHANNELS[-1], 32, "map", head="features"),
            FeatureInfo("pool", CHANNELS[-1], None, "vector", head="pooled"),
            FeatureInfo("classifier", CLASSES, None, "vector", head="logits"),
        ]
        capabilities = ("native_array", "native_names", "synthetic_weights", "thread_safe")
        features = (*stages, *heads)
        return ModelInfo("numpy", model, input_size or (64, 64), features, PREPROCESS, capabilities=capabilities)

    def nodes(self, model: str, input_size: Size | None = None, train: bool = False) -> Sequence[NodeInfo]:
        types = {"pool": "mean", "classifier": "linear"}
        found = super().nodes(model, input_size, train)
        return tuple(attrs.evolve(node, type=types.get(node.name, "convolution")) for node in found)

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        if request.device != "cpu":
            raise errors.DeviceError("NumPy runs on the CPU", "device='cpu'", request.device)
        if request.options:
            raise errors.CapabilityError("the backend 'numpy' takes no options", got=", ".join(request.options))
        info = self.info(request.model)
        features = tuple(info.resolve(layer) for layer in request.layers)
        return NumpyExtractor(info, features, weights(synthetic_seed(request.weights)))


class NumpyExtractor(BackendExtractor):
    """The network, cut after the last layer that is asked for."""

    def __init__(self, info: ModelInfo, features: tuple[FeatureInfo, ...], parameters: Parameters) -> None:
        self.info = info
        self.features = features
        self._parameters = parameters

    def forward(self, batch: Floats) -> list[Floats]:
        wanted = {feature.name for feature in self.features}
        found: dict[str, Floats] = {}
        x = normalize(batch, self.info.preprocess)
        kernels, matrix = self._parameters
        for number, kernel in enumerate(kernels, start=1):
            x = found[f"stage{number}"] = np.maximum(convolve(x, kernel), 0)
            if wanted <= set(found):
                break
        else:
            found["pool"] = x.mean(axis=(2, 3))
            found["classifier"] = found["pool"] @ matrix
        return [found[feature.name].copy() for feature in self.features]


@functools.cache
def weights(seed: int | None = None) -> Parameters:
    """The five kernels (out, in, 3, 3) and the linear layer (in, classes), synthetic where there is a seed."""
    if seed is not None:
        shapes = [(after, before, 3, 3) for before, after in itertools.pairwise(CHANNELS)]
        drawn = (draw_weight(seed, f"stage{k}.weight", shape) for k, shape in enumerate(shapes, start=1))
        return tuple(drawn), draw_weight(seed, "classifier.weight", (CLASSES, CHANNELS[-1])).T
    generator = np.random.default_rng(0)
    kernels = tuple(
        (generator.standard_normal((after, before, 3, 3)) * (2 / (before * 9)) ** 0.5).astype(np.float32)
        for before, after in itertools.pairwise(CHANNELS)
    )
    return kernels, generator.standard_normal((CHANNELS[-1], CLASSES)).astype(np.float32)


def convolve(x: Floats, kernel: Floats) -> Floats:
    """A 3x3 convolution of stride 2 with padding 1: (N, C, H, W) becomes (N, K, ceil(H / 2), ceil(W / 2))."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows = np.lib.stride_tricks.sliding_window_view(padded, 3, axis=2)[:, :, ::2]
    windows = np.lib.stride_tricks.sliding_window_view(rows, 3, axis=3)[:, :, :, ::2]
    out: Floats = np.tensordot(windows, kernel, axes=([1, 4, 5], [1, 2, 3])).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(out)
