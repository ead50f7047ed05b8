"""Request in, checked Extractor out."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar

import attrs

from featreg.arrays import Array
from featreg.checkpoints import WeightsReport
from featreg.checks import (
    as_numpy_batch,
    as_texts,
    broken_contract,
    check_batch,
    check_capabilities,
    check_features,
    check_outputs,
    checked_info,
    grid_is_known,
)
from featreg.errors import BackendError, CapabilityError, FeatregError, InputError, RequestError, SpecError
from featreg.featureset import FeatureSet, flatten_features, pool_features
from featreg.fields import as_pair
from featreg.identity import identify_path
from featreg.plugin import BackendExtractor
from featreg.pooling import described
from featreg.registry import Registry, default_registry, guarded
from featreg.spec import ExtractionRequest, FeatureInfo, Layer, ModelInfo, NodeInfo, Preprocess, Size
from featreg.synthetic import synthetic_seed

__all__ = [
    "Extractor",
    "create_extractor",
    "describe",
    "from_module",
    "list_backends",
    "list_models",
    "list_nodes",
]


T = TypeVar("T")


def list_backends() -> tuple[str, ...]:
    """The names of the installed backends, sorted. Runs no plugin code and imports no framework."""
    return default_registry().names()


def list_models(backend: str, pattern: str = "*", *, registry: Registry | None = None) -> tuple[str, ...]:
    """The models of a backend whose names match a shell-style pattern (case matters), sorted."""
    import fnmatch

    if not isinstance(pattern, str):
        raise SpecError("a pattern is a string", "as in 'resnet*'", repr(pattern))
    registry = registry or default_registry()
    return tuple(name for name in registry.models(backend) if fnmatch.fnmatchcase(name, pattern))


def list_nodes(
    model: str, input_size: Size | None = None, *, train: bool = False, registry: Registry | None = None
) -> tuple[NodeInfo, ...]:
    """Every native name that can be asked for as a layer of a model, in the library's order, with its output's shape.

    Shapes are those at an input size (height, width), the model's own where None. ``train`` gives the names in training
    mode, where they differ. Loads no weights. Raises as :func:`describe` does.
    """
    registry = registry or default_registry()
    backend, name = registry.resolve(model)
    size = None if input_size is None else _size(input_size)
    return tuple(guarded(f"{backend}:{name}", registry.backend(backend).nodes, name, size, train))


def describe(model: str, input_size: Size | None = None, *, registry: Registry | None = None) -> ModelInfo:
    """Every level, index and head of a model at an input size (height, width); its own size where None.

    Loads no weights. Raises UnknownBackendError, UnknownModelError, or InputError for a size the model does not take.
    """
    registry = registry or default_registry()
    backend, name = registry.resolve(model)
    size = None if input_size is None else _size(input_size)
    info = guarded(f"{backend}:{name}", registry.backend(backend).info, name, size)
    checked_info(f"{backend}:{name}", info)
    if size is not None:
        info.input_rule.check(*size)
    return info


def create_extractor(
    model: str | ExtractionRequest,
    layers: Sequence[Layer] | Layer | None = None,
    *,
    registry: Registry | None = None,
    **fields: Any,
) -> Extractor:
    """Open a model by name, ready to extract ``layers``.

    ``fields`` are those of :class:`~featreg.ExtractionRequest`; a request can also be given whole, in place of the
    name. Raises UnknownBackendError, UnknownModelError, LayerError, CapabilityError, WeightsError, DeviceError or
    PluginError.
    """
    registry = registry or default_registry()
    request = _request(model, layers, fields)
    backend, name = registry.resolve(request.model)
    check_capabilities(request, registry.spec(backend).capabilities, backend)
    request = attrs.evolve(request, model=f"{backend}:{name}")
    opened = guarded(request.model, registry.backend(backend).open, attrs.evolve(request, model=name))
    return _checked(request, opened)


def from_module(
    module: Any,
    layers: Sequence[Layer] | Layer,
    *,
    preprocess: Preprocess | None = None,
    input_size: Size | None = None,
    name: str | None = None,
    registry: Registry | None = None,
    **fields: Any,
) -> Extractor:
    """A module of your own (``torch.nn.Module``, ``mindspore.nn.Cell``) as an extractor of ``layers``.

    Levels, heads and native names are found as for a library's model. ``input_size`` (height, width) is the size that
    the module is made for, 224x224 where None; ``preprocess`` says how images become its input: where None, uint8 is
    scaled to [0, 1] and no more. ``name`` stands for it in messages and stores, its class where None. ``fields`` are
    those of :class:`~featreg.ExtractionRequest`, without ``weights`` and ``output_stride``: the module stays as it is,
    and its own parameters are used. Raises CapabilityError for an object that no backend wraps, and as
    :func:`create_extractor` does.
    """
    registry = registry or default_registry()
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise SpecError("preprocess says how images become the input", "featreg.Preprocess(...)", repr(preprocess))
    backend, name = registry.wrapper(module), name or type(module).__name__
    request = _request(f"{backend}:{name}", layers, fields)
    for field in ("weights", "output_stride"):
        if getattr(request, field) is not None:
            raise SpecError(f"{field} changes a module, and from_module takes it as it is", "None")
    check_capabilities(request, registry.spec(backend).capabilities, backend)
    size = None if input_size is None else _size(input_size)
    wrapped = attrs.evolve(request, model=name)
    opened = guarded(request.model, registry.backend(backend).wrap, module, wrapped, preprocess, size)
    return _checked(request, opened)


def _checked(request: ExtractionRequest, opened: Any) -> Extractor:
    if not isinstance(opened, BackendExtractor):
        raise broken_contract(request.model, "the backend gives a BackendExtractor", type(opened).__name__)
    try:
        return Extractor(request, opened)
    except BaseException:
        opened.close()
        raise


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

        Two extractors of one model that have other weights have other identities.
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

    def __call__(self, inputs: Array | Sequence[str]) -> FeatureSet:
        """The features of a batch.

        Raises InputError for a batch of another rank, type, channel count or size than the model takes, BackendError
        where the framework fails, and CapabilityError while another thread is in a call, unless ``thread_safe`` is
        among the capabilities.
        """
        if "thread_safe" in self.info.capabilities:
            return self._extract(inputs)
        if not self._turn.acquire(blocking=False):
            raise CapabilityError(
                f"the extractor of {self.request.model} is in use by another thread",
                "one call at a time: thread_safe is not declared",
                remedy="open an extractor in each thread",
            )
        try:
            return self._extract(inputs)
        finally:
            self._turn.release()

    def _extract(self, inputs: Array | Sequence[str]) -> FeatureSet:
        opened = self._open()
        batch = as_texts(inputs) if self._takes_text else self._images(opened, inputs)
        outputs = self._run(opened, batch)
        check_outputs(self.request, self._features, outputs, batch)
        size = None if isinstance(batch, list) else (int(batch.shape[2]), int(batch.shape[3]))
        features = FeatureSet(self._keyed(outputs), self._keyed(self._features), size)
        features = pool_features(features, self.request.pools, self._guard(opened.pool))
        if self.request.flatten:
            features = flatten_features(features, self._guard(opened.flatten))
        return features.map(self._guard(opened.to_numpy)) if self.request.array == "numpy" else features

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
        opened, size = self._open(), _size(input_size)
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

    def __repr__(self) -> str:
        state = "" if self._opened is not None else ", closed"
        return f"Extractor({self.request.model!r}, layers={list(self.request.layers)!r}{state})"

    def _with_rule(self, infos: Sequence[FeatureInfo]) -> tuple[FeatureInfo, ...]:
        check_features(self.request, infos)
        return tuple(attrs.evolve(info, input_rule=self.info.input_rule) for info in infos)

    def _guard(self, method: Callable[..., Any]) -> Callable[..., Any]:
        return functools.partial(guarded, self.request.model, method)

    def _keyed(self, values: Sequence[T]) -> Mapping[Layer, T]:
        return MappingProxyType(dict(zip(self.request.layers, values, strict=True)))

    def _described(self, infos: Sequence[FeatureInfo], size: Size) -> list[FeatureInfo]:
        pools, flatten = self.request.pools, self.request.flatten
        return [
            described(info, pools.get(layer), flatten, size)
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
            return guarded(self.request.model, forward)
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


def _size(value: Any) -> Size:
    size = as_pair(value)
    if not isinstance(size, tuple) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise InputError("not the size of an image", "(height, width), two positive whole numbers", repr(value))
    return size[0], size[1]


def _request(model: str | ExtractionRequest, layers: Any, fields: dict[str, Any]) -> ExtractionRequest:
    if isinstance(model, ExtractionRequest):
        if layers is not None or fields:
            raise SpecError("a request is given whole", "create_extractor(request)", "a request and further arguments")
        return model
    known = {field.name for field in attrs.fields(ExtractionRequest)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise SpecError(f"no such argument: {', '.join(unknown)}", f"some of {', '.join(sorted(known))}")
    return ExtractionRequest(model, () if layers is None else layers, **fields)
