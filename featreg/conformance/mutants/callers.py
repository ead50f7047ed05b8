"""Mutants that follow the modes of torch which their caller has set."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from featreg.arrays import Array, to_numpy
from featreg.conformance.mutants.base import Double, DoubleExtractor, like, mutant
from featreg.plugin import BackendExtractor
from featreg.spec import ExtractionRequest, ModelInfo


def _has_torch(info: ModelInfo) -> bool:
    return "torch" in sys.modules


def _torch() -> Any:
    return sys.modules["torch"]


class _Follows(DoubleExtractor):
    """Gives values that are off by a thousandth in one of the caller's modes."""

    @abstractmethod
    def is_set(self) -> bool:
        """Whether the mode that it follows is on."""

    def forward(self, batch: Array) -> Sequence[Array]:
        outputs = self.inner.forward(batch)
        return [like(to_numpy(array) * np.float32(1.001), array) for array in outputs] if self.is_set() else outputs


@mutant("callers.autocast", when=_has_torch)
class FollowsAutocast(_Follows):
    """Computes less precisely where the caller has an autocast."""

    def is_set(self) -> bool:
        return bool(_torch().is_autocast_enabled("cpu"))


@mutant("callers.default_dtype", when=_has_torch)
class FollowsDefaultDtype(Double):
    """Draws other weights where the caller's default type is float64."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        double, opened = bool(_torch().get_default_dtype() == _torch().float64), self.inner.open(request)

        class Other(_Follows):
            def is_set(self) -> bool:
                return double

        return Other(opened, request)


@mutant("callers.default_device", when=_has_torch)
class FollowsDefaultDevice(_Follows):
    """Computes something else where the caller's default device is another."""

    def is_set(self) -> bool:
        return bool(_torch().empty(0).device.type != "cpu")


@mutant("callers.no_grad", when=_has_torch)
class KeepsInferenceMode(Double):
    """Gives other values, for good, where it was opened in inference mode."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        inference, opened = _torch().is_inference_mode_enabled(), self.inner.open(request)

        class Other(_Follows):
            def is_set(self) -> bool:
                return bool(inference)

        return Other(opened, request)
