"""Broken doubles of any backend: what a mutant is, and the wrappers that it is made with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np

from featreg.arrays import Array, to_numpy
from featreg.checkpoints import WeightsReport
from featreg.discovery import Plugin
from featreg.errors import SpecError
from featreg.hookspecs import BackendSpec
from featreg.plugin import Backend, BackendExtractor
from featreg.pool import Pool
from featreg.registry import Registry
from featreg.spec import ExtractionRequest, FeatureInfo, ModelInfo, NodeInfo, Size

__all__ = [
    "Changed",
    "Double",
    "DoubleExtractor",
    "Mutant",
    "MutantRegistry",
    "Values",
    "all_mutants",
    "declares",
    "like",
    "mutant",
]


Values: TypeAlias = Any
"""A NumPy array of any type."""


class Double(Backend):
    """A backend that does what another does; a mutant overrides what it breaks."""

    extractor: type[DoubleExtractor]

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    def models(self) -> Sequence[str]:
        return self.inner.models()

    def has(self, model: str) -> bool:
        return self.inner.has(model)

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        return self.inner.info(model, input_size)

    def nodes(self, model: str, input_size: Size | None = None, train: bool = False) -> Sequence[NodeInfo]:
        return self.inner.nodes(model, input_size, train)

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        return self.extractor(self.inner.open(request), request)


class DoubleExtractor(BackendExtractor):
    """An extractor that does what another does; a mutant overrides what it breaks."""

    def __init__(self, inner: BackendExtractor, request: ExtractionRequest) -> None:
        self.inner = inner
        self.request = request
        self.info: ModelInfo = inner.info
        self.features: tuple[FeatureInfo, ...] = inner.features
        self.weights_report: WeightsReport | None = inner.weights_report

    def weights_identity(self) -> str | None:
        return self.inner.weights_identity()

    @property
    def module(self) -> Any:
        return self.inner.module

    @property
    def takes_text(self) -> bool:
        return self.inner.takes_text

    def forward(self, batch: Array) -> Sequence[Array]:
        return self.inner.forward(batch)

    def is_native(self, array: Array) -> bool:
        return self.inner.is_native(array)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return self.inner.to_numpy(array)

    def pool(self, array: Array, info: FeatureInfo, pool: Pool) -> Array:
        return self.inner.pool(array, info, pool)

    def flatten(self, array: Array) -> Array:
        return self.inner.flatten(array)

    def is_out_of_memory(self, error: BaseException) -> bool:
        return self.inner.is_out_of_memory(error)

    def free_memory(self) -> None:
        self.inner.free_memory()

    def measure(self, height: int, width: int) -> tuple[FeatureInfo, ...]:
        return self.inner.measure(height, width)

    def close(self) -> None:
        self.inner.close()


Double.extractor = DoubleExtractor


@attrs.frozen
class Mutant:
    """A way to break a backend, and the check that must notice. ``summary`` says what is broken, in a line.

    ``when`` says of a model, its request's layers and the size of its case whether the breakage changes anything.
    """

    name: str
    killed_by: str
    summary: str
    make: Callable[[Backend], Backend] = attrs.field(repr=False)
    when: Callable[[ModelInfo], bool] = attrs.field(repr=False)


_MUTANTS: dict[str, Mutant] = {}


def _everywhere(info: ModelInfo) -> bool:
    return True


def declares(capability: str) -> Callable[[ModelInfo], bool]:
    """Whether a model declares a capability, for ``when``."""
    return lambda info: capability in info.capabilities


def mutant(killed_by: str, *, when: Callable[[ModelInfo], bool] = _everywhere) -> Callable[[type[Any]], type[Any]]:
    """Register a Double, or a DoubleExtractor which a plain Double then opens, as a mutant of its class's name.

    The class's docstring is the summary.
    """

    def register(broken: type[Any]) -> type[Any]:
        name = broken.__name__
        if name in _MUTANTS:
            raise SpecError(f"two mutants are called {name!r}")
        double = broken if issubclass(broken, Double) else type(f"Opens{name}", (Double,), {"extractor": broken})
        summary = " ".join((broken.__doc__ or name).split())
        _MUTANTS[name] = Mutant(name, killed_by, summary, double, when)
        return broken

    return register


def all_mutants() -> tuple[Mutant, ...]:
    """Every mutant of the kit, by theme, in the order of the source."""
    import featreg.conformance.mutants  # noqa: F401  (registers them)

    return tuple(_MUTANTS.values())


class MutantRegistry(Registry):
    """A registry in which one backend is broken; all else is as in the one that it is made from."""

    def __init__(self, inner: Registry, name: str, mutant: Mutant) -> None:
        super().__init__({})
        self._inner, self._name = inner, name
        self._double = mutant.make(inner.backend(name))

    def names(self) -> tuple[str, ...]:
        return self._inner.names()

    def plugin(self, name: str) -> Plugin:
        plugin = self._inner.plugin(name)
        move: Callable[[Plugin, BackendSpec], Plugin] | None = getattr(self._double, "move", None)
        return plugin if move is None or name != self._name else move(plugin, self._inner.spec(name))

    def spec(self, name: str) -> BackendSpec:
        spec = self._inner.spec(name)
        change: Callable[[BackendSpec], BackendSpec] | None = getattr(self._double, "declare", None)
        return spec if change is None or name != self._name else change(spec)

    def backend(self, name: str) -> Backend:
        return self._double if name == self._name else self._inner.backend(name)

    def cases(self, name: str) -> Any:
        return self._inner.cases(name)


def like(values: np.ndarray[Any, Any], array: Array) -> Array:
    """NumPy values as an array of the class, type and device of another."""
    values = np.ascontiguousarray(values, dtype=to_numpy(array).dtype)
    if isinstance(array, np.ndarray):
        return values
    if hasattr(array, "new_tensor"):
        return array.new_tensor(values)
    return type(array).from_numpy(values).astype(array.dtype)


class Changed(DoubleExtractor):
    """An extractor that changes each array, as NumPy."""

    @abstractmethod
    def change(self, array: Values, info: FeatureInfo) -> Values:
        """What becomes of one array that ``info`` describes."""

    def forward(self, batch: Array) -> Sequence[Array]:
        outputs = self.inner.forward(batch)
        return [
            like(self.change(to_numpy(array), info), array) for array, info in zip(outputs, self.features, strict=True)
        ]
