"""One opened network, tapped by forward hooks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import attrs
import numpy as np

from featreg.plugin import Array, BackendExtractor, FeatureInfo, Layer, ModelInfo, errors, normalize
from featreg_mindspore.layout import Place
from featreg_mindspore.learning import Learnt
from featreg_mindspore.libraries import mindspore
from featreg_mindspore.runtime import evaluating
from featreg_mindspore.survey import Survey
from featreg_mindspore.taps import Tap, arrange, collect
from featreg_mindspore.trace import Source

__all__ = ["MindsporeExtractor", "find_places", "find_taps"]

_OUT_OF_MEMORY = re.compile(r"Allocate (device )?memory failed|Memory not enough|Out of memory", re.IGNORECASE)
"""How the message of a RuntimeError begins where memory fails."""


class MindsporeExtractor(BackendExtractor):
    """The raw network, in evaluation mode for the length of one call, which ends with the last layer asked for."""

    def __init__(self, network: Any, info: ModelInfo, learnt: Learnt, layers: Sequence[Layer]) -> None:
        self.info = info
        self._network = network
        self._learnt = learnt
        self._places = find_places(info, learnt.survey, layers)
        self.taps = find_taps(learnt.survey, self._places)
        self.features = tuple(tap.feature for tap in self.taps)
        self.identify: Callable[[], str | None] | None = None

    def weights_identity(self) -> str | None:
        return None if self.identify is None else self.identify()

    @property
    def module(self) -> Any:
        return self._network

    def is_native(self, array: Array) -> bool:
        return isinstance(array, mindspore.Tensor)

    def forward(self, batch: Array) -> list[Any]:
        with evaluating(self._network):
            images = normalize(_as_numpy(batch), self.info.preprocess)
            size = (int(images.shape[2]), int(images.shape[3]))
            return collect(self._network, self.taps, images, lambda tap, array: arrange(tap, array, size))

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError) and _OUT_OF_MEMORY.match(str(error)) is not None
        )

    def measure(self, height: int, width: int) -> tuple[FeatureInfo, ...]:
        if all(info.rounding != "measured" for info in self.features):
            return self.features
        self._learnt.see((height, width))
        return tuple(self._learnt.survey.describe(place, (height, width)).feature for place in self._places)

    def close(self) -> None:
        self._network = self.identify = None


def find_places(info: ModelInfo, survey: Survey, layers: Sequence[Layer]) -> list[Place]:
    """What each layer of a request stands for: something declared, or any cell by its own name.

    Raises LayerError and CapabilityError, as :meth:`ModelInfo.resolve` does.
    """
    declared = list(survey.features().items())
    return [_find_place(info, survey, declared, layer) for layer in layers]


def _find_place(info: ModelInfo, survey: Survey, declared: Sequence[tuple[FeatureInfo, Place]], layer: Layer) -> Place:
    if isinstance(layer, str) and layer in survey.types and layer not in info.keys:
        return Place(layer, Source(layer))
    try:
        feature = info.resolve(layer)
    except errors.LayerError as error:
        matches = errors.near_matches(str(layer), [*info.keys, *survey.types])
        raise errors.LayerError(error.problem, error.expected, error.got, matches, error.remedy) from None
    return next(place for own, place in declared if attrs.evolve(own, input_rule=info.input_rule) == feature)


def find_taps(survey: Survey, places: Sequence[Place]) -> list[Tap]:
    """Where and how each place is taken; raises CapabilityError for a cell whose output is no feature."""
    taps = []
    for place in places:
        described = survey.describe(place)
        source = replace(place.source, call=survey.call(place.source))
        taps.append(Tap(described.feature, source, described.form, described.prefix_tokens))
    return taps


def _as_numpy(batch: Array) -> np.ndarray[Any, Any]:
    if isinstance(batch, mindspore.Tensor):
        batch = (batch.astype(mindspore.float32) if batch.dtype == mindspore.bfloat16 else batch).asnumpy()
    return np.asarray(batch)
