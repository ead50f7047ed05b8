"""One opened mindcv network, tapped by forward hooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featreg.plugin import Array, BackendExtractor, FeatureInfo, ModelInfo, normalize
from featreg_mindspore.libraries import mindspore
from featreg_mindspore.runtime import eager
from featreg_mindspore.survey import Survey
from featreg_mindspore.trace import cells, run, trace, watching

__all__ = ["MindsporeExtractor", "Tap"]


@dataclass(frozen=True)
class Tap:
    """Where a feature is taken: the cell, its input or its output, and whether its channels have yet to be moved."""

    feature: FeatureInfo
    cell: str
    takes_input: bool
    channels_last: bool


class MindsporeExtractor(BackendExtractor):
    """The raw network, in evaluation mode. Hooks are set for the length of one call, in PYNATIVE mode."""

    def __init__(self, network: Any, info: ModelInfo, survey: Survey, taps: Sequence[Tap]) -> None:
        self.info = info
        self.features = tuple(tap.feature for tap in taps)
        self._network = network
        self._survey = survey
        self._taps = tuple(taps)
        named = cells(network)
        self._watched = {tap.cell: named[tap.cell] for tap in taps}

    @property
    def module(self) -> Any:
        return self._network

    def is_native(self, array: Array) -> bool:
        return isinstance(array, mindspore.Tensor)

    def forward(self, batch: Array) -> list[Any]:
        """One pass with hooks on the cells that were asked for; see :meth:`BackendExtractor.forward`.

        Each output is copied the moment it is there, so that nothing later in the network can write into it. The copy
        goes through NumPy: on the CPU that is one copy, waits for the result, and leaves no gradient behind.
        """
        found: dict[int, Any] = {}

        def keep(name: str, inputs: tuple[Any, ...], output: Any) -> None:
            for position, tap in enumerate(self._taps):
                if tap.cell == name:
                    found[position] = _copy(inputs[0] if tap.takes_input else output, tap.channels_last)

        images = normalize(_as_numpy(batch), self.info.preprocess)
        with eager(), watching(self._watched.items(), keep):
            run(self._network, images)
        return [found[position] for position in range(len(self._taps))]

    def measure(self, height: int, width: int) -> tuple[FeatureInfo, ...]:
        size = (height, width)
        if all(info.rounding != "measured" for info in self.features):
            return self.features
        if size not in self._survey.shapes:
            self._survey.add(size, trace(self._network, size))
        return tuple(
            self._survey.describe(info.name, size, level=info.level, index=info.index, head=info.head).feature
            for info in self.features
        )

    def close(self) -> None:
        self._network = None
        self._watched = {}


def _copy(array: Any, channels_last: bool) -> Any:
    values = array.asnumpy()
    return mindspore.Tensor(np.ascontiguousarray(np.moveaxis(values, 3, 1) if channels_last else values))


def _as_numpy(batch: Array) -> np.ndarray[Any, Any]:
    if isinstance(batch, mindspore.Tensor):
        batch = (batch.astype(mindspore.float32) if batch.dtype == mindspore.bfloat16 else batch).asnumpy()
    return np.asarray(batch)
