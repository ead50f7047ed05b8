"""How many samples go through the model at once: what memory allows, and how many are worth it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from featreg.engine.monitoring.stages import Clock, Stages
from featreg.errors import OutOfMemoryError
from featreg.extractor import Extractor
from featreg.preprocess import crop_size
from featreg.spec import Layer, Preprocess

__all__ = ["Batching", "Model", "choose_batch_size", "settle_batch_size"]

Batch: TypeAlias = Any
Floats: TypeAlias = np.ndarray[Any, Any]

GAIN = 1.05
"""By how much a doubled batch must be faster, per sample, to be worth its memory."""

PATIENCE = 2
"""How many doublings in a row may bring less before no more are tried."""

LONGEST = 5.0
"""The seconds of a batch beyond which no larger one is tried."""


class Model(Protocol):
    """What computes a batch: an extractor, or one behind :class:`Batching`."""

    @property
    def takes_text(self) -> bool: ...

    @property
    def preprocess(self) -> Preprocess: ...

    def __call__(self, inputs: Batch, /) -> Mapping[Layer, Any]: ...


class Batching:
    """An extractor whose batches are halved where memory does not suffice, for the rest of the run.

    ``size`` is the most that it computes at once: a larger batch goes through in parts. ``computed`` is told the rows
    of each part, ``stages`` the time. What a batch gives does not depend on its parts, up to rounding.
    """

    def __init__(
        self,
        extractor: Extractor,
        size: int,
        *,
        stages: Stages | None = None,
        computed: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.size = size
        self._extractor = extractor
        self._stages = Stages() if stages is None else stages
        self._computed = computed
        self._failed_at: int | None = None

    @property
    def takes_text(self) -> bool:
        return self._extractor.takes_text

    @property
    def preprocess(self) -> Preprocess:
        return self._extractor.preprocess

    def __call__(self, inputs: Batch, /) -> Mapping[Layer, Floats]:
        """The features of a batch; raises OutOfMemoryError where not even one sample fits, and as the extractor."""
        parts: list[Mapping[Layer, Floats]] = []
        start = 0
        while start < len(inputs):
            part = inputs[start : start + self.size]
            features = self._extract(part)
            if features is not None:
                parts.append(features)
                start += len(part)
                self._computed(len(part))
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _extract(self, part: Batch) -> Mapping[Layer, Floats] | None:
        """The features of a part, None where it was too large: then ``size`` is smaller."""
        try:
            with self._stages.timed("model"):
                features = self._extractor(part, transfers=self._transfers)
        except OutOfMemoryError:
            if len(part) == 1:
                raise
        else:
            self._report(len(part))
            return features
        # out of the handler: as long as the error is there, it holds the frames, and with them the memory
        self._failed_at = self._failed_at or len(part)
        self.size = len(part) // 2
        self._extractor.free_memory()
        return None

    def _transfers(self) -> AbstractContextManager[None]:
        return self._stages.timed("transfer", within="model")

    def _report(self, fitting: int) -> None:
        """Say once what the run goes on with."""
        if self._failed_at is not None:
            failed_at = self._failed_at
            warnings.warn(f"memory does not suffice for batches of {failed_at}: going on with {fitting}", stacklevel=2)
            self._failed_at = None


def settle_batch_size(asked: int | Literal["auto"], extractor: Extractor, most: int) -> int:
    """The batch size that a pass records; ``most`` is the size of its tasks, which no batch crosses."""
    return choose_batch_size(extractor, most) if asked == "auto" else asked


def choose_batch_size(extractor: Extractor, most: int, *, clock: Clock = time.perf_counter) -> int:
    """The batch size of the highest throughput, tried on the device with empty inputs: 1, 2, 4, … up to ``most``.

    A larger one must be faster per sample by :data:`GAIN`; trying ends after :data:`PATIENCE` doublings that are not,
    at a batch of more than :data:`LONGEST` seconds, and where memory fails. Raises OutOfMemoryError where it does for
    a single sample.
    """
    best, highest, without = 1, 0.0, 0
    size = 1
    while size <= most and without < PATIENCE:
        seconds = _try(extractor, size, clock)
        if seconds is None:
            break
        rate = size / max(seconds, 1e-9)
        if rate > GAIN * highest:
            best, highest, without = size, rate, 0
        else:
            without += 1
        if seconds > LONGEST:
            break
        size *= 2
    extractor.free_memory()
    return best


def _try(extractor: Extractor, size: int, clock: Clock) -> float | None:
    """The seconds of a batch, the second time that it runs; None where memory does not suffice."""
    batch = _empty_batch(extractor, size)
    try:
        extractor(batch)
        started = clock()
        extractor(batch)
        return clock() - started
    except OutOfMemoryError:
        if size == 1:
            raise
    return None


def _empty_batch(extractor: Extractor, size: int) -> Batch:
    if extractor.takes_text:
        return [""] * size
    return np.zeros((size, 3, *(crop_size(extractor.preprocess) or extractor.info.input_size)), np.uint8)


def _joined(parts: Sequence[Mapping[Layer, Floats]]) -> dict[Layer, Floats]:
    return {layer: np.concatenate([part[layer] for part in parts]) for layer in parts[0]}
