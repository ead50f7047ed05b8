"""An opened model: every batch that goes in is checked, and every array that comes out."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType, TracebackType
from typing import Any, TypeAlias, TypeVar

import attrs

from featreg.arrays import Array
from featreg.checkpoints import WeightsReport
from featreg.checks import (
    as_numpy_batch,
    as_size,
    as_texts,
    check_batch,
    check_capabilities,
    check_features,
    check_outputs,
    checked_info,
    grid_is_known,
)
from featreg.errors import BackendError, CapabilityError, FeatregError, InputError, OutOfMemoryError, RequestError
from featreg.featureset import FeatureSet, flatten_features, pool_features
from featreg.fields import as_pair
from featreg.identity import identify_path
from featreg.plugin import BackendExtractor
from featreg.pooling import described
from featreg.registry import guarded
from featreg.spec import ExtractionRequest, FeatureInfo, Layer, Preprocess, Size
from featreg.synthetic import synthetic_seed

__all__ = ["Extractor", "Transfers"]

T = TypeVar("T")

Transfers: TypeAlias = Callable[[], AbstractContextManager[None]]
"""Gives the context in which one copy to or from the device goes on."""


class Extractor:
    """An opened model: called with a batch of images (or of texts), it returns a FeatureSet.

    ``request`` is what was asked for, ``info`` the whole model. Use it as a context manager, or call :meth:`close`.
    Images are (N, 3, H, W): floating point goes in as it is, uint8 RGB is normalised on the device by ``preprocess``.
    Extractors are made by :func:`create_extractor` and :func:`from_module`.
    """

    def __init__(self, request: ExtractionRequest, opened: BackendExtractor) -> None:
        self.request = request
        self._opened: BackendExtractor | None = opened
        self._module = opened.module
        self._weights_report = opened.weights_report
        self.info = checked_info(request.model, opened.info)
        self._features = self._with_rule(opened.features)
        check_capabilities(request, self.info.capabilities, request.model)
        self._takes_text = opened.takes_text
        self._turn = threading.Lock()

    @functools.cached_property
    def feature_info(self) -> Mapping[Layer, FeatureInfo]:
        """The requested layers by key, pooled and flattened as requested; what depends on the size, at the model's own.

        Raises InputError where an image of that size is too small for the pooling.
        """
        if self.request.pool is None and not self.request.flatten:
            return self._keyed(self._features)
        size = self.info.input_size
        known = all(grid_is_known(info, size) for info in self._features)
        return self._keyed(self._described(self._features, size)) if known else self.describe(size)

    @property
    def preprocess(self) -> Preprocess:
        """How an image becomes this model's input."""
        return self.info.preprocess

    @property
    def takes_text(self) -> bool:
        """Whether it is called with texts in place of images."""
        return self._takes_text

    @property
    def weights_report(self) -> WeightsReport | None:
        """What was done to the checkpoint's file that ``weights`` names; None for weights of another origin."""
        return self._weights_report

    def weights_identity(self) -> str:
        """What the weights are: a hash of their file or, of a module of your own, of its state now; else their name.

        Of a network whose weights were changed after it was opened, as by training ``module``, it is a hash of its
        state, where the backend sees that (the torch ones do). Two extractors of one model that have other weights
        have other identities.
        """
        found = guarded(self.request.model, self._open().weights_identity)
        if found is not None:
            return str(found)
        weights = self.request.weights
        if weights is None:
            return "none: seeded random init"
        if synthetic_seed(weights) is not None:
            return weights
        file = os.path.expanduser(weights)  # a backend that says nothing of its files: a path says nothing of content
        return identify_path(file) if os.path.isfile(file) else f"tag: {weights}"

    @property
    def module(self) -> Any:
        """The framework's own network; None where the backend has none."""
        return self._module

    def __call__(self, inputs: Array | Sequence[str], *, transfers: Transfers | None = None) -> FeatureSet:
        """The features of a batch.

        ``transfers``, for measuring, gives a context for each copy to the device and back, which then waits for what
        was begun before; a backend that cannot tell these apart copies outside of any.

        Raises InputError for a batch of another rank, type, channel count or size than the model takes, BackendError
        where the framework fails (OutOfMemoryError where memory does not suffice), and CapabilityError while another
        thread is in a call, unless ``thread_safe`` is among the capabilities.
        """
        if "thread_safe" in self.info.capabilities:
            return self._extract(inputs, transfers)
        if not self._turn.acquire(blocking=False):
            raise CapabilityError(
                f"the extractor of {self.request.model} is in use by another thread",
                "one call at a time: thread_safe is not declared",
                remedy="open an extractor in each thread",
            )
        try:
            return self._extract(inputs, transfers)
        finally:
            self._turn.release()

    def _extract(self, inputs: Array | Sequence[str], transfers: Transfers | None) -> FeatureSet:
        opened = self._open()
        batch = as_texts(inputs) if self._takes_text else self._images(opened, inputs)
        if transfers is not None and not isinstance(batch, list):
            with transfers():
                batch = self._guard(opened.to_device)(batch)
                self._guard(opened.synchronize)()
        outputs = self._run(opened, batch)
        check_outputs(self.request, self._features, outputs, batch)
        size = None if isinstance(batch, list) else (int(batch.shape[2]), int(batch.shape[3]))
        features = FeatureSet(self._keyed(outputs), self._keyed(self._features), size)
        features = pool_features(features, self.request.pools, self._guard(opened.pool))
        if self.request.flatten:
            features = flatten_features(features, self._guard(opened.flatten), self.request.flattened)
        if self.request.array != "numpy":
            return features
        if transfers is None:
            return features.map(self._guard(opened.to_numpy))
        self._guard(opened.synchronize)()
        with transfers():
            return features.map(self._guard(opened.to_numpy))

    def free_memory(self) -> None:
        """Give back what the framework keeps for later, as after a batch for which memory did not suffice."""
        self._guard(self._open().free_memory)()

    def output_shapes(self, input_shape: Sequence[int]) -> dict[Layer, tuple[int, ...]]:
        """The exact shape of every requested layer for an input of (N, 3, H, W); runs no forward pass on real data.

        Raises InputError for a shape that the model does not take, or that is too small for the pooling.
        """
        shape = as_pair(input_shape)
        if not isinstance(shape, tuple) or not all(type(side) is int for side in shape):
            raise InputError("a shape is four whole numbers", "(N, 3, H, W)", repr(input_shape))
        check_batch(self.info.input_rule, shape)
        batch, _, height, width = shape
        return {key: info.shape(batch, height, width) for key, info in self.describe((height, width)).items()}

    def describe(self, input_size: Size) -> Mapping[Layer, FeatureInfo]:
        """The requested layers as they are for one input size (height, width), pooled and flattened as requested.

        Raises InputError for a size that the model does not take, or that is too small for the pooling.
        """
        opened, size = self._open(), as_size(input_size)
        self.info.input_rule.check(*size)
        infos = guarded(self.request.model, opened.measure, *size)
        return self._keyed(self._described(self._with_rule(infos), size))

    def close(self) -> None:
        """Release the model; a closed extractor cannot be called. Closing twice does nothing."""
        opened, self._opened, self._module = self._opened, None, None
        if opened is not None:
            opened.close()

    def __enter__(self) -> Extractor:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise CapabilityError(
            f"the extractor of {self.request.model} can be neither copied nor pickled",
            "an open network in one place: its request is what travels",
            remedy="create_extractor(extractor.request) opens another, in any process; for its network alone copy "
            "extractor.module",
        )

    def __repr__(self) -> str:
        state = "" if self._opened is not None else ", closed"
        return f"Extractor({self.request.model!r}, layers={list(self.request.layers)!r}{state})"

    def _with_rule(self, infos: Sequence[FeatureInfo]) -> tuple[FeatureInfo, ...]:
        check_features(self.request, infos)
        return tuple(attrs.evolve(info, input_rule=self.info.input_rule) for info in infos)

    def _guard(self, method: Callable[..., T]) -> Callable[..., T]:
        out_of_memory = self._open().is_out_of_memory
        return functools.partial(guarded, self.request.model, method, out_of_memory=out_of_memory)

    def _keyed(self, values: Sequence[T]) -> Mapping[Layer, T]:
        return MappingProxyType(dict(zip(self.request.layers, values, strict=True)))

    def _described(self, infos: Sequence[FeatureInfo], size: Size) -> list[FeatureInfo]:
        pools, flattened = self.request.pools, self.request.flattened
        return [
            described(info, pools.get(layer), layer in flattened, size)
            for layer, info in zip(self.request.layers, infos, strict=True)
        ]

    def _open(self) -> BackendExtractor:
        if self._opened is None:
            raise RequestError(f"the extractor of {self.request.model} is closed", remedy="create it again")
        return self._opened

    def _images(self, opened: BackendExtractor, images: Array) -> Array:
        batch = images if opened.is_native(images) else as_numpy_batch(images)
        check_batch(self.info.input_rule, tuple(batch.shape), batch.dtype)
        return batch

    def _run(self, opened: BackendExtractor, batch: Any) -> list[Array]:
        def forward() -> list[Array]:
            return list(opened.forward(batch))  # a generator runs here, inside the guard

        try:
            return self._guard(forward)()
        except OutOfMemoryError:
            raise
        except BackendError:
            if not self._takes_text:
                self._blame_size(opened, int(batch.shape[2]), int(batch.shape[3]))
            raise

    def _blame_size(self, opened: BackendExtractor, height: int, width: int) -> None:
        """Raise InputError where the forward pass failed because of the size: then inferring the shapes says so."""
        try:
            guarded(self.request.model, opened.measure, height, width)
        except InputError:
            raise
        except FeatregError:
            return
