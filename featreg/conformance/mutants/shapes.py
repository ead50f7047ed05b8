"""Mutants whose shapes, grids or descriptions are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from featreg.arrays import Array, to_numpy
from featreg.conformance.cases import outside_sizes
from featreg.conformance.mutants.base import Changed, Double, DoubleExtractor, Values, mutant
from featreg.plugin import BackendExtractor
from featreg.spec import ExtractionRequest, FeatureInfo, InputRule, ModelInfo, Size


def _is_free(info: ModelInfo) -> bool:
    return info.input_rule.fixed is None


def _has_formula(info: ModelInfo) -> bool:
    strided = [feature for feature in info.features if feature.kind != "vector" and (feature.reduction or 1) > 1]
    return _is_free(info) and info.input_rule.multiple_of == 1 and any(f.rounding != "measured" for f in strided)


def _has_maps(info: ModelInfo) -> bool:
    return any(feature.kind == "map" for feature in info.features)


def _has_prefix(info: ModelInfo) -> bool:
    return any(feature.prefix_tokens and feature.length is None for feature in info.features)


def _has_rule(info: ModelInfo) -> bool:
    return info.input_rule != InputRule(channels=info.input_rule.channels)


def _has_levels(info: ModelInfo) -> bool:
    return any(feature.level for feature in info.features)


def _described(info: ModelInfo, **changes: Any) -> ModelInfo:
    """The same model with its first map, else its last feature, described otherwise."""
    features = list(info.features)
    for number, feature in enumerate(features):
        if feature.kind == "map" or number == len(features) - 1:
            features[number] = attrs.evolve(feature, **changes)
            break
    return attrs.evolve(info, features=tuple(features))


@mutant("shapes.predicted", when=_is_free)
class ResizedInput(DoubleExtractor):
    """Brings every image to the model's own size, nearest neighbours first."""

    def forward(self, batch: Array) -> Sequence[Array]:
        images, size = to_numpy(batch), self.info.input_size
        rows, columns = (np.arange(to) * side // to for to, side in zip(size, images.shape[2:], strict=True))
        return self.inner.forward(np.ascontiguousarray(images[:, :, rows][..., columns]))


@mutant("shapes.predicted", when=_has_formula)
class OtherRounding(DoubleExtractor):
    """Predicts floor where the grid follows ceil, and ceil where it follows floor."""

    def measure(self, height: int, width: int) -> tuple[FeatureInfo, ...]:
        other: dict[str, Any] = {"ceil": "floor", "floor": "ceil", "measured": "measured"}
        return tuple(attrs.evolve(info, rounding=other[info.rounding]) for info in self.inner.measure(height, width))


@mutant("shapes.predicted", when=_has_prefix)
class DroppedPrefix(Changed):
    """Leaves out the first prefix token."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array[:, 1:] if info.prefix_tokens else array


@mutant("shapes.described")
class DescribesOwnSize(Double):
    """Describes the model at its own size, whichever is asked for."""

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        return attrs.evolve(self.inner.info(model, input_size), input_size=self.inner.info(model).input_size)


@mutant("shapes.described")
class OneChannelMore(Double):
    """Describes one channel more than there are."""

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        info = self.inner.info(model, input_size)
        more = tuple(attrs.evolve(feature, channels=feature.channels + 1) for feature in info.features)
        return attrs.evolve(info, features=more)


@mutant("shapes.batch")
class SqueezedBatch(Changed):
    """Drops every axis of length one, the batch of one image among them."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array.squeeze()


@mutant("shapes.batch", when=_has_maps)
class FlattenedMap(Changed):
    """Gives maps as rows of numbers."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array.reshape(len(array), -1) if info.kind == "map" else array


@mutant("shapes.outside", when=_has_rule)
class BareError(Double):
    """Raises a ValueError where an image has a size that the model does not take."""

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        try:
            return self.inner.info(model, input_size)
        except Exception as error:
            raise ValueError("bad size") from error


@mutant("shapes.drawn", when=_is_free)
class SometimesCropped(DoubleExtractor):
    """Cuts a quarter off images of every third width."""

    def forward(self, batch: Array) -> Sequence[Array]:
        width, step = int(batch.shape[3]), self.info.input_rule.multiple_of
        if (width // step) % 3 == 1:
            batch = batch[..., : max(1, width // step * 3 // 4) * step]
        return self.inner.forward(batch)


@mutant("shapes.equals_open")
class DescribesOtherName(Double):
    """Describes a layer under another native name than the opened model has it."""

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        info = self.inner.info(model, input_size)
        return _described(info, name=f"{info.features[0].name}.other")


@mutant("layout.levels", when=_has_levels)
class OffByOneLevel(Double):
    """Calls each level by the name of the next."""

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        info = self.inner.info(model, input_size)
        features = [
            attrs.evolve(feature, level=None if feature.level in (None, "C7") else f"C{int(feature.level[1:]) + 1}")
            for feature in info.features
        ]
        return attrs.evolve(info, features=tuple(features))


@mutant("layout.local", when=_has_maps)
class ChannelsLastCoat(Changed):
    """Gives channels-last memory the shape of channels first."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).reshape(array.shape) if info.kind == "map" else array


@mutant("layout.local", when=_has_maps)
class TransposedGrid(Changed):
    """Exchanges rows and columns of maps."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array.swapaxes(2, 3) if info.kind == "map" else array


@mutant("layout.local", when=_has_maps)
class MirroredGrid(Changed):
    """Reverses the columns of maps."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array[..., ::-1] if info.kind == "map" else array


@mutant("layout.prefix", when=_has_prefix)
class PrefixLast(Changed):
    """Puts the prefix tokens behind the patches."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return np.roll(array, -info.prefix_tokens, 1) if info.prefix_tokens else array


@mutant("shapes.crop", when=_has_rule)
class CropsAnySize(Double):
    """Crops photographs to a size that the model does not take."""

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        return _cropped(self.inner.info(model, input_size))

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        opened = DoubleExtractor(self.inner.open(request), request)
        opened.info = _cropped(opened.info)
        return opened


def _cropped(info: ModelInfo) -> ModelInfo:
    size = outside_sizes(info.input_rule, info.input_size)[0]
    return attrs.evolve(info, preprocess=attrs.evolve(info.preprocess, crop=size))
