"""Mutants with a pooling of their own."""

from __future__ import annotations

import numpy as np

from featreg.arrays import Array, to_numpy
from featreg.conformance.mutants.base import DoubleExtractor, like, mutant
from featreg.pool import Pool
from featreg.spec import FeatureInfo, ModelInfo


def _has_positions(info: ModelInfo) -> bool:
    return any(feature.kind != "vector" for feature in info.features)


def _has_maps(info: ModelInfo) -> bool:
    return any(feature.kind == "map" for feature in info.features)


def _has_prefix(info: ModelInfo) -> bool:
    return any(feature.prefix_tokens and feature.length is None for feature in info.features)


def _has_class_token(info: ModelInfo) -> bool:
    return any(feature.class_token and feature.length is None for feature in info.features)


@mutant("layout.pooled", when=_has_maps)
class PoolsMaximum(DoubleExtractor):
    """Takes the maximum where the average is asked for."""

    def pool(self, array: Array, info: FeatureInfo, pool: Pool) -> Array:
        return self.inner.pool(array, info, Pool("max") if pool.kind == "avg" else pool)


@mutant("layout.pooled", when=_has_maps)
class FlattensColumns(DoubleExtractor):
    """Flattens with the channels last."""

    def flatten(self, array: Array) -> Array:
        values = to_numpy(array)
        return like(np.moveaxis(values, 1, -1).reshape(len(values), -1), array)


@mutant("layout.pooled", when=_has_positions)
class AveragesForGem(DoubleExtractor):
    """Takes the average where the generalised mean is asked for."""

    def pool(self, array: Array, info: FeatureInfo, pool: Pool) -> Array:
        return self.inner.pool(array, info, Pool("avg") if pool.kind == "gem" else pool)


@mutant("layout.pooled", when=_has_prefix)
class CountsThePrefix(DoubleExtractor):
    """Counts prefix tokens in averages and maxima."""

    def pool(self, array: Array, info: FeatureInfo, pool: Pool) -> Array:
        if pool.kind not in ("avg", "max") or info.kind != "tokens":
            return self.inner.pool(array, info, pool)
        tokens = to_numpy(array)
        return like(tokens.mean(axis=1) if pool.kind == "avg" else tokens.max(axis=1), array)


@mutant("layout.pooled", when=_has_class_token)
class LastForClass(DoubleExtractor):
    """Takes the last token for the class token."""

    def pool(self, array: Array, info: FeatureInfo, pool: Pool) -> Array:
        return array[:, -1] if pool.kind == "cls" and info.kind == "tokens" else self.inner.pool(array, info, pool)


@mutant("layout.grids", when=_has_maps)
class PadsWithoutCounting(DoubleExtractor):
    """Leaves the zeros around a map out of averages."""

    def pool(self, array: Array, info: FeatureInfo, pool: Pool) -> Array:
        pooled = self.inner.pool(array, info, pool)
        if pool.kind != "avgpool":
            return pooled
        counted = to_numpy(self.inner.pool(like(np.ones_like(to_numpy(array)), array), info, pool))
        return like(to_numpy(pooled) / counted, array)


@mutant("layout.grids", when=_has_maps)
class TurnsTheGrid(DoubleExtractor):
    """Takes the columns of an adaptive grid for its rows."""

    def pool(self, array: Array, info: FeatureInfo, pool: Pool) -> Array:
        if pool.output is None:
            return self.inner.pool(array, info, pool)
        turned = self.inner.pool(like(to_numpy(array).swapaxes(2, 3), array), info, pool)
        return like(to_numpy(turned), array)
