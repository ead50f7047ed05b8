"""Mutants that give arrays of another kind, or that are not the caller's own, or that spoil his."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from featreg.arrays import Array, to_numpy
from featreg.conformance.mutants.base import DoubleExtractor, like, mutant
from featreg.plugin import BackendExtractor
from featreg.spec import ExtractionRequest, ModelInfo


@mutant("arrays.numpy")
class Doubles(DoubleExtractor):
    """Gives float64."""

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return self.inner.to_numpy(array).astype(np.float64)


@mutant("arrays.numpy")
class ReadOnly(DoubleExtractor):
    """Gives arrays that cannot be written to."""

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        found = np.array(self.inner.to_numpy(array))
        found.setflags(write=False)
        return found


class _Own(np.ndarray[Any, Any]):
    pass


@mutant("arrays.numpy")
class OwnClass(DoubleExtractor):
    """Gives an array of a class of its own."""

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return self.inner.to_numpy(array).view(_Own)


class _Keeping(DoubleExtractor):
    """Keeps arrays between calls."""

    def __init__(self, inner: BackendExtractor, request: ExtractionRequest) -> None:
        super().__init__(inner, request)
        self.kept: dict[object, list[Array]] = {}


@mutant("arrays.later_calls")
class OneBuffer(_Keeping):
    """Writes the features of every call into the same arrays."""

    def forward(self, batch: Array) -> Sequence[Array]:
        fresh = [like(to_numpy(array).copy(), array) for array in self.inner.forward(batch)]
        kept = self.kept.setdefault(tuple(tuple(array.shape) for array in fresh), fresh)
        for array, values in zip(kept, fresh, strict=True):
            if array is not values:
                array[...] = values
        return list(kept)


class _Remembers(_Keeping):
    def forward(self, batch: Array) -> Sequence[Array]:
        key = hashlib.sha256(to_numpy(batch).tobytes()).hexdigest()
        if key not in self.kept:
            self.kept[key] = [like(to_numpy(array).copy(), array) for array in self.inner.forward(batch)]
        return list(self.kept[key])


@mutant("arrays.yours")
class CachedOutput(_Remembers):
    """Remembers results by content, and hands out the remembered arrays themselves."""


@mutant("arrays.storage")
class SharedBetweenCalls(_Remembers):
    """Gives two calls with the same images the same arrays."""


def _has_twice(info: ModelInfo) -> bool:
    """Whether one tensor is a level and a head, say; tokens and the map that is made of them are two."""
    return len({(feature.name, feature.kind) for feature in info.features}) < len(info.features)


@mutant("arrays.storage", when=_has_twice)
class SharedBetweenKeys(DoubleExtractor):
    """Gives one array for all names of a layer."""

    def forward(self, batch: Array) -> Sequence[Array]:
        found: dict[object, Array] = {}
        outputs = []
        for info, array in zip(self.features, self.inner.forward(batch), strict=True):
            outputs.append(found.setdefault((info.name, info.kind, tuple(array.shape)), array))
        return outputs


@mutant("arrays.input_untouched")
class NormalisesInPlace(DoubleExtractor):
    """Changes the caller's images."""

    def forward(self, batch: Array) -> Sequence[Array]:
        outputs = self.inner.forward(batch)
        if to_numpy(batch).flags.writeable:
            to_numpy(batch)[:, 0] = 0
        return outputs


@mutant("arrays.readonly")
class WantsToWrite(DoubleExtractor):
    """Fails on images that cannot be written to."""

    def forward(self, batch: Array) -> Sequence[Array]:
        if not to_numpy(batch).flags.writeable:
            raise ValueError("assignment destination is read-only")
        return self.inner.forward(batch)


@mutant("arrays.strided")
class ReadsTheBuffer(DoubleExtractor):
    """Reads images in the order in which they lie in memory."""

    def forward(self, batch: Array) -> Sequence[Array]:
        images = to_numpy(batch)
        return self.inner.forward(np.ascontiguousarray(images.ravel(order="K").reshape(images.shape)))


@mutant("arrays.float64")
class FollowsInputType(DoubleExtractor):
    """Gives arrays of the images' type."""

    def forward(self, batch: Array) -> Sequence[Array]:
        self.kind = to_numpy(batch).dtype
        return self.inner.forward(batch)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        found = self.inner.to_numpy(array)
        return found.astype(self.kind) if self.kind.kind == "f" else found
