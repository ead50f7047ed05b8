"""Mutants whose native arrays are of another device or number format, or not the caller's own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import attrs

from featreg.arrays import Array, to_numpy
from featreg.conformance.mutants.base import Double, DoubleExtractor, declares, mutant
from featreg.plugin import BackendExtractor
from featreg.spec import ExtractionRequest, ModelInfo


class _OnTheGpu:
    """An array that says that it lies on the GPU."""

    device = "cuda:0"

    def __init__(self, array: Array) -> None:
        self.array = array

    def __getattr__(self, name: str) -> Any:
        return getattr(self.array, name)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


@mutant("arrays.device", when=declares("native_array"))
class TakesTheGpu(DoubleExtractor):
    """Gives native arrays on the GPU where the CPU was asked for."""

    def forward(self, batch: Array) -> Sequence[Array]:
        outputs = self.inner.forward(batch)
        return list(map(_OnTheGpu, outputs)) if self.request.array == "native" else outputs


@mutant("capabilities.cuda", when=declares("cuda"))
class RunsOnTheCpu(Double):
    """Runs on the CPU where CUDA was asked for."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        return self.inner.open(attrs.evolve(request, device="cpu"))


def _has_half(info: ModelInfo) -> bool:
    return declares("native_array")(info) and (declares("float16")(info) or declares("bfloat16")(info))


@mutant("arrays.native_dtype", when=_has_half)
class IgnoresNativeDtype(Double):
    """Computes native arrays in float32 whatever the number format that was asked for."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        return self.inner.open(attrs.evolve(request, dtype="float32" if request.array == "native" else request.dtype))


@mutant("arrays.bfloat16_values", when=declares("bfloat16"))
class IgnoresBfloat16(Double):
    """Computes in float32 where bfloat16 was asked for."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        return self.inner.open(attrs.evolve(request, dtype="float32"))


@mutant("arrays.native_storage", when=declares("native_array"))
class HandsOutAgain(DoubleExtractor):
    """Gives two calls with the same images the same native arrays."""

    def __init__(self, inner: BackendExtractor, request: ExtractionRequest) -> None:
        super().__init__(inner, request)
        self.kept: dict[str, Sequence[Array]] = {}

    def forward(self, batch: Array) -> Sequence[Array]:
        if self.request.array != "native":
            return self.inner.forward(batch)
        key = hashlib.sha256(to_numpy(batch).tobytes()).hexdigest()
        if key not in self.kept:
            self.kept[key] = self.inner.forward(batch)
        return self.kept[key]
