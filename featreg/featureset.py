"""What a call returns: an ordered mapping from the requested layers to arrays."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import attrs
import numpy as np

from featreg.arrays import Array, to_numpy
from featreg.errors import LayerError, MissingDependencyError, SpecError, near_matches
from featreg.fields import as_whole
from featreg.pool import Pool
from featreg.pooling import flat_array, flattened_info, pool_array, pooled_info
from featreg.request import as_pools
from featreg.spec import FeatureInfo, Layer, MeasuredGrid, Size

__all__ = ["FeatureSet", "flatten_features", "pool_features"]

Pooling: TypeAlias = Callable[[Array, FeatureInfo, Pool], Array]


class FeatureSet(Mapping[Layer, Array]):
    """The features of one batch, keyed exactly as they were asked for, in that order.

    Maps are (N, C, H, W), tokens (N, L, D) with the prefix tokens first, vectors (N, D). ``features["C5"]`` also finds
    a layer that was asked for under another key, by its level, head or native name. ``info`` holds each one's
    FeatureInfo, ``input_size`` is the (height, width) of the images where it is known. Every method returns a new
    FeatureSet; arrays are shared where a conversion needs no copy.
    """

    def __init__(
        self, arrays: Mapping[Layer, Array], info: Mapping[Layer, FeatureInfo], input_size: Size | None = None
    ) -> None:
        if list(arrays) != list(info):
            raise SpecError("arrays and info have other keys", str(list(info)), str(list(arrays)))
        self._arrays = dict(arrays)
        self.info: Mapping[Layer, FeatureInfo] = MappingProxyType(dict(info))
        self.input_size = input_size

    def __getitem__(self, key: Layer) -> Array:
        return self._arrays[self._key(key)]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __contains__(self, key: object) -> bool:
        try:
            self._key(key)
        except LayerError:
            return False
        return True

    def __repr__(self) -> str:
        shapes = ", ".join(f"{key!r}: {tuple(array.shape)}" for key, array in self._arrays.items())
        return f"FeatureSet({{{shapes}}})"

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureSet, (self._arrays, dict(self.info), self.input_size)

    def _key(self, key: object) -> Layer:
        key = as_whole(key)
        if isinstance(key, str | int) and not isinstance(key, bool):
            if key in self._arrays:
                return key
            for field in ("level", "head", "name"):
                for own, info in self.info.items():
                    if getattr(info, field) == key:
                        return own
        names = [str(own) for own in self._arrays] + [info.name for info in self.info.values()]
        raise FeatureKeyError(
            f"no layer {key!r} in this FeatureSet",
            f"one of {list(self._arrays)}",
            repr(key),
            near_matches(str(key), names),
        )

    def numpy(self) -> FeatureSet:
        """The same features as NumPy arrays, without a copy where the framework shares CPU memory."""
        return self.map(to_numpy)

    def torch(self) -> FeatureSet:
        """The same features as torch tensors, through DLPack; read-only arrays are copied, which torch cannot express.

        Raises MissingDependencyError where torch is not installed.
        """
        torch = _framework("torch")
        return self.map(lambda array: array if isinstance(array, torch.Tensor) else torch.from_dlpack(_lendable(array)))

    def mindspore(self) -> FeatureSet:
        """The same features as MindSpore tensors on the CPU, sharing the memory of contiguous, writable NumPy arrays.

        Raises MissingDependencyError where MindSpore is not installed.
        """
        tensor = _framework("mindspore").Tensor
        return self.map(
            lambda array: array if isinstance(array, tensor) else tensor.from_numpy(_owned(to_numpy(array)))
        )

    def pool(self, how: Pool | str | Mapping[Layer, Pool | str] = "avg") -> FeatureSet:
        """The layers pooled: all alike, or by key those that a mapping names; see :class:`~featreg.Pool`.

        Raises SpecError for a pooling that there is not, CapabilityError for ``cls`` without a class token and for a
        grid of what is no map, InputError for a map that is smaller than the kernel, LayerError for an unknown key.
        """
        return pool_features(self, as_pools(how, tuple(self)))

    def flatten(self) -> FeatureSet:
        """Every feature as (N, D), row-major."""
        return flatten_features(self)

    def map(self, convert: Callable[[Array], Array]) -> FeatureSet:
        """Every array converted by a function that keeps its shape."""
        return FeatureSet({key: convert(array) for key, array in self._arrays.items()}, self.info, self.input_size)


class FeatureKeyError(LayerError, KeyError):
    """A FeatureSet was asked for a layer that it does not hold; also a KeyError, as for every mapping."""

    __str__ = LayerError.__str__


def pool_features(features: FeatureSet, pools: Mapping[Layer, Pool], apply: Pooling = pool_array) -> FeatureSet:
    """The features with some layers pooled; ``apply`` pools one array."""
    arrays, infos = dict(features), {}
    for key, info in features.info.items():
        infos[key] = info
        if key in pools:
            infos[key] = pooled_info(_located(info, arrays[key], features.input_size), pools[key], features.input_size)
            arrays[key] = apply(arrays[key], info, pools[key])
    return FeatureSet(arrays, infos, features.input_size)


def flatten_features(
    features: FeatureSet, apply: Callable[[Array], Array] = flat_array, layers: Collection[Layer] | None = None
) -> FeatureSet:
    """Every feature, or those of some layers, as (N, D), row-major; ``apply`` flattens one array."""
    size = features.input_size
    arrays, infos = dict(features), dict(features.info)
    for key in features if layers is None else layers:
        infos[key] = flattened_info(_located(infos[key], arrays[key], size), math.prod(arrays[key].shape[1:]), size)
        arrays[key] = apply(arrays[key])
    return FeatureSet(arrays, infos, size)


def _located(info: FeatureInfo, array: Array, size: Size | None) -> FeatureInfo:
    """The description with the grid that a map has at this size, where no formula gives it."""
    listed = any(entry.input_size == size for entry in info.measured)
    if size is None or listed or info.kind != "map" or info.rounding != "measured":
        return info
    return attrs.evolve(info, measured=(*info.measured, MeasuredGrid(size, tuple(map(int, array.shape[2:])))))


def _framework(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} is not installed", f"{name}, for .{name}()", remedy=f"pip install {name}"
        ) from error


def _lendable(array: Array) -> Array:
    """The array itself where it speaks DLPack, else a NumPy array that does."""
    if hasattr(array, "__dlpack__") and not isinstance(array, np.ndarray):
        return array
    plain = to_numpy(array)
    takes = plain.flags.writeable and plain.dtype.isnative and min(plain.strides, default=0) >= 0
    return plain if takes else _owned(plain)


def _owned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array itself where it is contiguous, of native byte order and may be written, else a copy that is."""
    return np.require(array, array.dtype.newbyteorder("="), ["C_CONTIGUOUS", "WRITEABLE"])
