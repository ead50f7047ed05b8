"""Mutants whose text tower is wrong; their image tower is as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from featreg.arrays import Array, to_numpy
from featreg.conformance.mutants.base import Changed, Double, DoubleExtractor, Values, mutant
from featreg.plugin import BackendExtractor
from featreg.spec import ExtractionRequest, FeatureInfo, ModelInfo


def _reads(info: ModelInfo) -> bool:
    return "text" in info.capabilities


class _ChangedTexts(Changed):
    """Changes the features of texts alone."""

    calls = 0

    def forward(self, batch: Array) -> Sequence[Array]:
        self.calls += 1
        return super().forward(batch) if self.takes_text else self.inner.forward(batch)


@mutant("text.values", when=_reads)
class NormalisedTexts(_ChangedTexts):
    """Gives texts embeddings of the length one, which nobody asked for."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array / np.linalg.norm(array, axis=-1, keepdims=True)


@mutant("text.values", when=_reads)
class LosesFirstWord(DoubleExtractor):
    """Encodes each text without its first word."""

    def forward(self, batch: Array) -> Sequence[Array]:
        return self.inner.forward([text.partition(" ")[2] for text in batch] if self.takes_text else batch)


@mutant("text.shapes", when=_reads)
class SqueezedTexts(_ChangedTexts):
    """Drops the axis of a batch of one text."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array.squeeze()


@mutant("text.repeat", when=_reads)
class DriftingTexts(_ChangedTexts):
    """Grows a little with each call."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array * np.float32(1 + 1e-4 * self.calls)


@mutant("text.batch", when=_reads)
class SeesOtherTexts(_ChangedTexts):
    """Mixes a bit of the batch's mean into each text, as attention over the padding may."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array + array.mean(axis=0, keepdims=True) / 10


@mutant("text.batch", when=_reads)
class SortsTexts(DoubleExtractor):
    """Encodes the texts by length, and gives them in that order."""

    def forward(self, batch: Array) -> Sequence[Array]:
        return self.inner.forward(sorted(batch, key=len) if self.takes_text else batch)


@mutant("text.distinct", when=_reads)
class ConstantText(_ChangedTexts):
    """Gives the features of the first text for all of a batch."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array[:1].repeat(len(array), 0)


@mutant("text.long", when=_reads)
class CutsTexts(DoubleExtractor):
    """Reads five words and says nothing."""

    def forward(self, batch: Array) -> Sequence[Array]:
        return self.inner.forward([" ".join(text.split()[:5]) for text in batch] if self.takes_text else batch)


class _Ignores(Double):
    """Takes an option and does nothing about it."""

    option = ""

    def ignores(self, request: ExtractionRequest) -> bool:
        return True

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        options: dict[str, Any] = {**request.options}
        if self.ignores(request):
            options.pop(self.option, None)
        return self.inner.open(attrs.evolve(request, options=options))


@mutant("text.truncate", when=_reads)
class IgnoresTruncate(_Ignores):
    """Takes the option ``truncate`` and refuses long texts all the same."""

    option = "truncate"


@mutant("text.normalized", when=_reads)
class IgnoresNormalize(_Ignores):
    """Takes the option ``normalize`` and gives embeddings of any length."""

    option = "normalize"


@mutant("text.normalized", when=_reads)
class NormalisesOneTower(_Ignores):
    """Normalises texts where that is asked for, and not images."""

    option = "normalize"

    def ignores(self, request: ExtractionRequest) -> bool:
        return "embedding" in request.layers


@mutant("text.refused", when=_reads)
class TakesImagesForTexts(DoubleExtractor):
    """Takes images for as many empty texts."""

    @property
    def takes_text(self) -> bool:
        return False

    def forward(self, batch: Array) -> Sequence[Array]:
        return self.inner.forward([""] * len(to_numpy(batch)) if self.inner.takes_text else batch)


@mutant("text.mixed", when=_reads)
class BareMixture(Double):
    """Raises a ValueError where both towers are asked for."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        if "text_embedding" in request.layers and len(request.layers) > 1:
            raise ValueError("both towers")
        return self.inner.open(request)


@mutant("text.logits", when=_reads)
class OtherScale(Changed):
    """Gives logits on a scale of its own."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array / 10 if info.head == "logits" else array


@mutant("text.logits", when=_reads)
class MirroredLogits(Changed):
    """Gives the logits of the texts in another order."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array[:, ::-1] if info.head == "logits" else array
