"""Mutants whose shapes are right and whose numbers are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from featreg.arrays import Array, to_numpy
from featreg.conformance.mutants.base import Changed, Double, DoubleExtractor, Values, like, mutant
from featreg.plugin import BackendExtractor
from featreg.spec import ExtractionRequest, FeatureInfo


def _twins(features: Sequence[FeatureInfo]) -> list[tuple[int, int]]:
    """Pairs of indexed layers of one shape at every size; heads are left out, whose values may be a level's."""
    keys = [(info.kind, info.channels, info.reduction, info.prefix_tokens, info.length) for info in features]
    return [
        (one, two)
        for two in range(len(keys))
        for one in range(two)
        if keys[one] == keys[two]
        and features[one].name != features[two].name
        and None not in (features[one].index, features[two].index)
    ]


@mutant("values.oracle", when=lambda info: bool(_twins(info.features)))
class SwappedTwins(DoubleExtractor):
    """Exchanges two layers of one shape."""

    def forward(self, batch: Array) -> Sequence[Array]:
        outputs = list(self.inner.forward(batch))
        for one, two in _twins(self.features)[:1]:
            outputs[one], outputs[two] = outputs[two], outputs[one]
        return outputs


@mutant("values.oracle")
class Rescaled(Changed):
    """Is a thousandth too large, as after another epsilon."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array * np.float32(1.001)


@mutant("values.oracle")
class BlurredInput(DoubleExtractor):
    """Halves and doubles the image before the network sees it."""

    def forward(self, batch: Array) -> Sequence[Array]:
        images = to_numpy(batch)
        rows, columns = (np.arange(side) // 2 * 2 for side in images.shape[2:])
        return self.inner.forward(np.ascontiguousarray(images[:, :, rows][..., columns]))


@mutant("values.oracle")
class NormalisedVectors(Changed):
    """Gives vectors and tokens the length one, which nobody asked for."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array if info.kind == "map" else array / np.linalg.norm(array, axis=-1, keepdims=True)


@mutant("values.oracle")
class InPlaceActivation(Changed):
    """Lets an activation overwrite each layer: its negative values are gone, and a bit of its positive ones."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return np.where(array > 0, array * np.float32(0.99), 0)


@mutant("values.oracle")
class ShiftedChannels(Changed):
    """Gives the channels in another order."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return np.roll(array, 1, axis=1 if info.kind == "map" else -1)


class _Counting(Changed):
    calls = 0

    def forward(self, batch: Array) -> Sequence[Array]:
        self.calls += 1
        return super().forward(batch)


@mutant("values.repeat")
class Drifts(_Counting):
    """Grows a little with each call, as a moving average does in training mode."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array * np.float32(1 + 1e-4 * self.calls)


@mutant("values.repeat")
class DropsOut(_Counting):
    """Sets a tenth of the values to zero, others each time."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array * (np.random.default_rng(self.calls).random(array.shape) > 0.1)


@mutant("values.reopen")
class OtherWeights(Double):
    """Draws other random weights each time that a model is opened."""

    opened = 0

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        type(self).opened += 1
        opened, factor = self.inner.open(request), np.float32(1 + 0.01 * self.opened)

        class Other(Changed):
            def change(self, array: Values, info: FeatureInfo) -> Values:
                return array * factor

        return Other(opened, request)


@mutant("values.batch")
class BatchStatistics(Changed):
    """Subtracts half the mean over the batch, as normalisation in training mode does."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array - array.mean(axis=0, keepdims=True) / 2


@mutant("values.permuted")
class SortsRows(Changed):
    """Gives the rows sorted by their mean."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array[np.argsort(array.reshape(len(array), -1).mean(axis=1))]


@mutant("values.alone")
class DependsOnRequest(DoubleExtractor):
    """Gives other values where several layers are asked for."""

    def __init__(self, inner: BackendExtractor, request: ExtractionRequest) -> None:
        super().__init__(inner, request)
        self.factor = np.float32(1.01 if len(request.layers) > 1 else 1)

    def forward(self, batch: Array) -> Sequence[Array]:
        return [like(to_numpy(array) * self.factor, array) for array in self.inner.forward(batch)]


@mutant("values.distinct")
class Constant(Changed):
    """Gives the same values for every image."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return np.linspace(0.1, 0.9, array[0].size).reshape(array[:1].shape).repeat(len(array), 0)


@mutant("values.distinct")
class FirstForAll(Changed):
    """Gives the features of the first image for all of a batch."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array[:1].repeat(len(array), 0)


@mutant("values.rewritten")
class KnowsByIdentity(DoubleExtractor):
    """Remembers the features of an array by its identity."""

    def __init__(self, inner: BackendExtractor, request: ExtractionRequest) -> None:
        super().__init__(inner, request)
        self.known: dict[int, tuple[Array, list[Any]]] = {}

    def forward(self, batch: Array) -> Sequence[Array]:
        if id(batch) not in self.known:
            self.known[id(batch)] = batch, [np.array(to_numpy(array)) for array in self.inner.forward(batch)]
        fresh = self.inner.forward(batch)
        return [like(kept, array) for kept, array in zip(self.known[id(batch)][1], fresh, strict=True)]


@mutant("values.finite")
class DividesByInput(DoubleExtractor):
    """Divides by the norm of the image, without an epsilon."""

    def forward(self, batch: Array) -> Sequence[Array]:
        with np.errstate(all="ignore"):
            norm = np.float32(1) / np.abs(to_numpy(batch)).sum(dtype=np.float32)
            return [like(to_numpy(array) * norm, array) for array in self.inner.forward(batch)]


@mutant("values.precision")
class HalfInside(Changed):
    """Computes in float16 and gives float32."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array.astype(np.float16).astype(np.float32)


@mutant("values.precision")
class BrainInside(Changed):
    """Computes in bfloat16 and gives float32."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return (np.ascontiguousarray(array, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


@mutant("values.uint8")
class Unnormalised(DoubleExtractor):
    """Scales uint8 to [0, 1] and leaves mean and deviation out."""

    def forward(self, batch: Array) -> Sequence[Array]:
        images = to_numpy(batch)
        return self.inner.forward(images.astype(np.float32) / 255 if images.dtype == np.uint8 else batch)


@mutant("values.uint8")
class OtherColors(DoubleExtractor):
    """Takes uint8 images as BGR."""

    def forward(self, batch: Array) -> Sequence[Array]:
        images = to_numpy(batch)
        return self.inner.forward(np.ascontiguousarray(images[:, ::-1]) if images.dtype == np.uint8 else batch)


@mutant("values.aliases", when=lambda info: any(feature.index is not None for feature in info.features))
class CollapsesDuplicates(DoubleExtractor):
    """Gives a layer that was asked for under two names once."""

    def forward(self, batch: Array) -> Sequence[Array]:
        found = {
            (info.name, info.kind): array for info, array in zip(self.features, self.inner.forward(batch), strict=True)
        }
        return list(found.values())


@mutant("values.aliases", when=lambda info: sum(feature.index is not None for feature in info.features) > 1)
class SkewedIndices(Double):
    """Counts negative indices from the last but one."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        info = self.inner.info(request.model)
        count = sum(feature.index is not None for feature in info.features)
        layers = [layer - 1 if isinstance(layer, int) and -count < layer < 0 else layer for layer in request.layers]
        fields: dict[str, Any] = {
            "model": request.model,
            "layers": layers,
            "array": request.array,
            "grad": request.grad,
        }
        return DoubleExtractor(self.inner.open(ExtractionRequest(**fields)), request)
