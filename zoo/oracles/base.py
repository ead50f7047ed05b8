"""What every oracle can say of one raw model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from zoo.completeness import Entry
from zoo.survey import Survey

__all__ = ["Oracle", "RawRefusal", "Shape", "Size", "explain", "stirred"]

Shape: TypeAlias = tuple[int, ...]
Size: TypeAlias = tuple[int, int]

_USUAL_SIDES = (224, 256, 384)


class RawRefusal(Exception):
    """The library cannot build the model, or its network does not run on this size."""


class Oracle(ABC):
    """A raw network and what it gives.

    ``batch`` is the number of images that :meth:`shapes` runs, ``how`` what they are made of: ``meta``, ``fake`` or
    ``real`` tensors. ``prefix_tokens``, ``dilated`` and ``parameters`` describe the network.
    """

    batch: int
    how: str
    has_texts: bool = False
    """Whether the network takes texts too, and gives embeddings of both."""
    exact_values: bool = True
    """Whether values must agree bit for bit; else to 1e-4 of the largest."""

    def __init__(self, model: str) -> None:
        self.model = model

    @staticmethod
    @abstractmethod
    def models() -> Sequence[str]:
        """Every model that the library lists."""

    @property
    @abstractmethod
    def prefix_tokens(self) -> int:
        """How many tokens the network puts before its patches."""

    @property
    @abstractmethod
    def dilated(self) -> bool:
        """Whether a convolution is dilated: then a level's reduction may stay below its power of two."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """How many numbers the network holds."""

    @property
    def unknown(self) -> frozenset[str]:
        """Names of outputs that cannot be made here, for want of files that another library downloads."""
        return frozenset()

    @abstractmethod
    def shapes(self, names: Sequence[str], size: Size, thorough: bool = True) -> Mapping[str, Shape]:
        """The raw shapes of the named outputs in the order in which they were last made; names not made are left out.

        Where the cheapest tensors do not get through and ``thorough`` is set, dearer ones are tried before the network
        counts as refusing. Raises RawRefusal.
        """

    @abstractmethod
    def values(self, names: Sequence[str], images: np.ndarray[Any, Any]) -> Mapping[str, np.ndarray[Any, Any]]:
        """The raw values of the named outputs for real images, with the weights of :meth:`checkpoint`."""

    @abstractmethod
    def result(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """What the library's own call returns for real images, where that is one array."""

    @abstractmethod
    def checkpoint(self, folder: Path) -> Path:
        """Random weights for the real network, in none of which all numbers are alike, written to a file."""

    def confirm(self, size: Size) -> None:
        """Raise RawRefusal unless the network runs on images with values, where :meth:`shapes` may use others.

        Tensors without values pass an index that is beyond its table.
        """
        self.shapes((), size)

    def probe(self) -> None:
        """Raise RawRefusal unless the library builds the network and runs it on images of some usual size."""
        refusal: RawRefusal | None = None
        for side in _USUAL_SIDES:
            try:
                self.shapes((), (side, side))
            except RawRefusal as error:
                refusal = refusal or error
            else:
                return
        assert refusal is not None
        raise refusal

    def declared(self) -> Sequence[Entry]:
        """The levels that the library itself declares, in its own order; none where it declares nothing."""
        return ()

    @property
    def encoder(self) -> str:
        """The module that holds the levels, where the library declares none; empty for the whole network."""
        return ""

    @abstractmethod
    def survey(self, size: Size) -> Survey:
        """What every module of the network gives when the library's own call runs. Raises RawRefusal."""


def explain(error: BaseException) -> str:
    """An exception in one short line."""
    words = " ".join(str(error).partition("\n----")[0].split())
    return f"{type(error).__name__}: {words}"[:300]


def stirred(values: np.ndarray[Any, Any], generator: np.random.Generator) -> np.ndarray[Any, Any]:
    """Initial weights without what hides mistakes: scales of one, biases, residual branches and layer scales of zero.

    Vectors move up by up to 0.1 (so that variances stay positive), and arrays of one single number become noise.
    What is left as it was keeps the activations of a deep network in range.
    """
    finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    if finite.ndim <= 1:
        return np.asarray(finite + 0.1 * generator.random(finite.shape), dtype=values.dtype)
    if finite.min(initial=0) == finite.max(initial=0):
        return np.asarray(0.02 * generator.standard_normal(finite.shape), dtype=values.dtype)
    return finite
