"""What a call returns: an ordered mapping from the requested layers to arrays."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np

from featreg.errors import CapabilityError, LayerError, MissingDependencyError, SpecError, near_matches
from featreg.fields import as_whole
from featreg.spec import FeatureInfo, Layer

__all__ = ["Array", "FeatureSet", "pool_array", "pooled_info", "to_numpy"]

Array: TypeAlias = Any
"""A NumPy array or a framework's own tensor."""


class FeatureSet(Mapping[Layer, Array]):
    """The features of one batch, keyed exactly as they were asked for, in that order.

    Maps are (N, C, H, W), tokens (N, L, D) with the prefix tokens first, vectors (N, D). ``features["C5"]`` also finds
    a layer that was asked for under another key, by its level, head or native name. ``info`` holds each one's
    FeatureInfo. Every method returns a new FeatureSet; arrays are shared where a conversion needs no copy.
    """

    def __init__(self, arrays: Mapping[Layer, Array], info: Mapping[Layer, FeatureInfo]) -> None:
        if list(arrays) != list(info):
            raise SpecError("arrays and info have other keys", str(list(info)), str(list(arrays)))
        self._arrays = dict(arrays)
        self.info: Mapping[Layer, FeatureInfo] = MappingProxyType(dict(info))

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
        return FeatureSet, (self._arrays, dict(self.info))

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
        return self._map(to_numpy)

    def torch(self) -> FeatureSet:
        """The same features as torch tensors, through DLPack; read-only arrays are copied, which torch cannot express.

        Raises MissingDependencyError where torch is not installed.
        """
        torch = _framework("torch")
        return self._map(
            lambda array: array if isinstance(array, torch.Tensor) else torch.from_dlpack(_lendable(array))
        )

    def mindspore(self) -> FeatureSet:
        """The same features as MindSpore tensors on the CPU, sharing the memory of contiguous, writable NumPy arrays.

        Raises MissingDependencyError where MindSpore is not installed.
        """
        tensor = _framework("mindspore").Tensor
        return self._map(
            lambda array: array if isinstance(array, tensor) else tensor.from_numpy(_owned(to_numpy(array)))
        )

    def flatten(self) -> FeatureSet:
        """Every feature as (N, D), row-major."""
        lengths = {key: math.prod(array.shape[1:]) for key, array in self._arrays.items()}
        arrays = {key: array.reshape(array.shape[0], lengths[key]) for key, array in self._arrays.items()}
        return FeatureSet(arrays, {key: _vector_info(info, lengths[key]) for key, info in self.info.items()})

    def pool(self, how: Literal["avg", "max", "cls"] = "avg") -> FeatureSet:
        """Every map and every sequence of tokens as one vector per image; vectors stay as they are.

        ``avg`` and ``max`` go over the positions and leave prefix tokens out; ``cls`` takes the first prefix token and
        raises CapabilityError where there is none.
        """
        arrays = {key: pool_array(array, self.info[key], how) for key, array in self._arrays.items()}
        return FeatureSet(arrays, {key: pooled_info(info) for key, info in self.info.items()})

    def _map(self, convert: Callable[[Array], Array]) -> FeatureSet:
        return FeatureSet({key: convert(array) for key, array in self._arrays.items()}, self.info)


class FeatureKeyError(LayerError, KeyError):
    """A FeatureSet was asked for a layer that it does not hold; also a KeyError, as for every mapping."""

    __str__ = LayerError.__str__


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """Any framework's array as NumPy on the CPU; bfloat16, which NumPy lacks, widens to float32 without loss."""
    if isinstance(array, np.ndarray):
        return array
    if str(array.dtype).endswith(("bfloat16", "BFloat16")):
        array = array.float()
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    elif hasattr(array, "asnumpy"):
        array = array.asnumpy()
    return np.asarray(array)


def pool_array(array: Array, info: FeatureInfo, how: str) -> Array:
    """One vector per image, by the framework's own reductions; see :meth:`FeatureSet.pool`."""
    if how not in ("avg", "max", "cls"):
        raise SpecError(f"no pooling {how!r}", "'avg', 'max' or 'cls'", repr(how))
    if info.kind == "vector":
        return array
    if how == "cls":
        if not info.prefix_tokens:
            raise CapabilityError(f"{info.name!r} has no class token", "tokens with a prefix", info.kind)
        return array[:, 0]
    axes: tuple[int, ...] = (2, 3) if info.kind == "map" else (1,)
    positions = array if info.kind == "map" else array[:, info.prefix_tokens :]
    if how == "avg":
        return positions.mean(axis=axes)
    return positions.amax(axis=axes) if hasattr(positions, "amax") else positions.max(axis=axes)


def pooled_info(info: FeatureInfo) -> FeatureInfo:
    """The description of a feature after pooling."""
    return info if info.kind == "vector" else _vector_info(info, info.channels)


def _vector_info(info: FeatureInfo, channels: int) -> FeatureInfo:
    return FeatureInfo(
        info.name, channels, None, "vector", info.level, info.index, info.head, input_rule=info.input_rule
    )


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
