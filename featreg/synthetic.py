"""Weights drawn from a seed: the same numbers for one architecture in every framework.

``weights="synthetic:SEED"`` fills a network's parameters and the statistics of its batch normalisation. A value depends
on the seed, on the canonical name of its weight and on the shape: not on the framework, on the order of drawing, on the
platform or on the version of NumPy. Philox (Salmon et al. 2011, doi:10.1145/2063384.2063405) counts from a key, which
holds seed and name; its words are made into numbers by whole-number arithmetic and one rounding.

The canonical name is torchvision's where a plugin's ``canonical_names.toml`` leads there, else the library's own. With
``[2/3]`` before its last dot, or at its end, it names a part of a weight: the second of three equal parts of its rows.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.resources import files
from typing import Any, TypeAlias

import attrs
import numpy as np

from featreg.errors import SpecError
from featreg.keymap import KeyMap, Rule

__all__ = ["CanonicalNames", "canonical_names", "draw_weight", "is_drawn_buffer", "synthetic_seed"]

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

PREFIX = "synthetic:"

_CHUNK = 1 << 15  # words at a time, which stay in the processor's cache
_PART = re.compile(r"\[(?P<part>[1-9]\d*)/(?P<parts>[1-9]\d*)\](?=\.[^.]*$|$)")
_QUARTERS, _HALF = np.uint64(0x0000FFFF0000FFFF), np.uint64(0xFFFFFFFF)
_MEAN = 2 * 0xFFFF
_DEVIATION = math.sqrt(4 * (2**32 - 1) / 12)
"""Of the sum of four independent whole numbers from 0 to 65535."""

_SCALES = ("weight", "gamma", "scale")
_VARIANCES = ("running_var", "moving_variance")
_MEANS = ("running_mean", "moving_mean")


def synthetic_seed(weights: str | None) -> int | None:
    """The seed in ``"synthetic:SEED"``, from 0 to 2**64 - 1; None for other weights.

    Raises SpecError for ``"synthetic:"`` with anything else behind it: it names no file and no tag.
    """
    if weights is None or not weights.startswith(PREFIX):
        return None
    text = weights.removeprefix(PREFIX)
    seed = int(text) if text.isascii() and text.isdigit() else 2**64
    if str(seed) != text or seed >= 2**64:
        raise SpecError(
            "no seed of synthetic weights", "synthetic:N, with a whole number N from 0 to 2**64 - 1", repr(weights)
        )
    return seed


def is_drawn_buffer(name: str) -> bool:
    """Whether a tensor that is no parameter is drawn too: the statistics of batch normalisation alone are."""
    return name.endswith((*_MEANS, *_VARIANCES))


def draw_weight(seed: int, name: str, shape: Sequence[int]) -> Floats:
    """The values of the weight of a canonical name, in float32.

    By the end of the name:

    - ``weight``, ``gamma`` and ``scale``: of mean 0 and variance 2 / fan-in (He et al. 2015, arXiv:1502.01852), where
      they have more than one axis longer than 1; a vector is of mean 1 and deviation 0.1. Ones at the end of a shape do
      not count, the fan-in is the product of all but the first axis;
    - ``running_var`` (``moving_variance``): of mean 1.5 and deviation 0.15;
    - ``bias`` and ``running_mean`` (``moving_mean``): of mean 0 and deviation 0.02;
    - anything else (tokens, tables of positions): of mean 0 and deviation 0.1.

    The distribution is that of the sum of four uniform numbers: close to normal, and never beyond 3.5 deviations.

    A name with ``[k/n]`` gives the k-th part of the weight that has n times as many rows: what one library keeps as one
    weight (query, key and value), others keep as several. Raises SpecError for a part beyond the last.

    The variance was measured on the architectures of ``specs/``. With 1 residual networks grow, EfficientNetV2 to 1e7,
    and their gates turn rounding into other features; with 2 what shows of the image fades on the way.
    """
    name, before = _whole(name)
    mean, deviation = _moments(name, tuple(shape))
    count = math.prod(shape)
    generator = np.random.Philox(key=np.array([seed, _hashed(name)], dtype=np.uint64))
    _skip(generator, before * count)
    values = np.empty(count, dtype=np.float32)
    for start in range(0, count, _CHUNK):
        part = values[start : start + _CHUNK]
        part[:] = _sums(generator.random_raw(len(part))) * (deviation / _DEVIATION) + mean
    return values.reshape(tuple(shape))


def _whole(name: str) -> tuple[str, int]:
    """The name of the weight that a name stands for a part of, and how many parts come before."""
    found = _PART.search(name)
    if found is None:
        return name, 0
    part, parts = int(found["part"]), int(found["parts"])
    if part > parts:
        raise SpecError(f"{name!r} names a part beyond the last", f"[1/{parts}] to [{parts}/{parts}]", found[0])
    return name[: found.start()] + name[found.end() :], part - 1


def _skip(generator: np.random.Philox, words: int) -> None:
    """Leave out the words of a stream from its beginning; the counter makes four at a time."""
    generator.advance(words // 4)
    generator.random_raw(words % 4)


def _hashed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _sums(words: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The sum of the four quarters of each 64-bit word, around 0."""
    pairs = (words & _QUARTERS) + ((words >> np.uint64(16)) & _QUARTERS)
    return ((pairs & _HALF) + (pairs >> np.uint64(32))).astype(np.int64) - _MEAN


def _moments(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """The mean and the standard deviation of a weight."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    if name.endswith(_VARIANCES):
        return 1.5, 0.15
    if name.endswith((*_MEANS, "bias")):
        return 0.0, 0.02
    if not name.endswith(_SCALES):
        return 0.0, 0.1
    return (0.0, math.sqrt(2 / max(1, math.prod(shape[1:])))) if len(shape) > 1 else (1.0, 0.1)


@attrs.frozen
class CanonicalNames:
    """From a library's names of the weights of one model to the canonical ones: maps, one after the other."""

    maps: tuple[KeyMap, ...] = ()

    def apply(self, names: Iterable[str]) -> dict[str, str]:
        """The canonical name of every weight; raises WeightsError where two weights would share one."""
        found = {name: name for name in names}
        for one in self.maps:
            renamed = one.apply(list(found.values()))
            found = {name: renamed[given][0] for name, given in found.items()}
        return found


def canonical_names(package: str, model: str) -> CanonicalNames:
    """What ``canonical_names.toml`` in a plugin's package says of a model; no change where it says nothing.

    A ``[[family]]`` of the file lists ``models`` (shell-style patterns), ``rules`` (pairs as of :class:`Rule`, the
    library's name and the canonical one) and, optionally, the rules that go on from there as ``then``. Raises SpecError
    for a file of another form.
    """
    matches = (family for family in _families(package) if any(fnmatchcase(model, one) for one in family.models))
    return next((family.names for family in matches), CanonicalNames())


@attrs.frozen
class _Family:
    models: tuple[str, ...]
    names: CanonicalNames

    @classmethod
    def read(cls, package: str, entry: Mapping[str, Any]) -> _Family:
        steps = [entry["rules"], *([entry["then"]] if "then" in entry else [])]
        if set(entry) - {"models", "rules", "then"} or not all(
            isinstance(new, str) for rules in steps for _, new in rules
        ):
            raise ValueError(f"keys {sorted(entry)}")
        maps = tuple(KeyMap(package, tuple(Rule(old, new) for old, new in rules)) for rules in steps)
        return cls(tuple(entry["models"]), CanonicalNames(maps))


@functools.cache
def _families(package: str) -> tuple[_Family, ...]:
    file = files(package) / "canonical_names.toml"
    if not file.is_file():
        return ()
    try:
        return tuple(_Family.read(package, entry) for entry in tomllib.loads(file.read_text("utf-8"))["family"])
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(
            f"canonical_names.toml of {package} is of another form", "[[family]] with models and rules", str(error)
        ) from error
