"""Request in, checked Extractor out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any

import attrs
import numpy as np

from featreg.errors import BackendError, CapabilityError, InputError, LayerError, RequestError, SpecError
from featreg.featureset import Array, FeatureSet, pool_array, pooled_info
from featreg.plugin import BackendExtractor
from featreg.registry import Registry, default_registry, guarded
from featreg.spec import ExtractionRequest, FeatureInfo, Layer, ModelInfo, Preprocess, Size

__all__ = ["Extractor", "create_extractor", "describe", "list_backends", "list_models"]


def list_backends() -> tuple[str, ...]:
    """The names of the installed backends, sorted. Runs no plugin code and imports no framework."""
    return default_registry().names()


def list_models(backend: str, pattern: str = "*") -> tuple[str, ...]:
    """The models of a backend whose names match a shell-style pattern (case matters), sorted."""
    import fnmatch

    return tuple(name for name in default_registry().models(backend) if fnmatch.fnmatchcase(name, pattern))


def describe(model: str, input_size: Size | None = None) -> ModelInfo:
    """Every level, index and head of a model at an input size (height, width); its own size where None.

    Loads no weights. Raises UnknownBackendError, UnknownModelError, or InputError for a size the model does not take.
    """
    registry = default_registry()
    backend, name = registry.resolve(model)
    size = None if input_size is None else (int(input_size[0]), int(input_size[1]))
    return guarded(f"{backend}:{name}", registry.backend(backend).info, name, size)


def create_extractor(
    model: str | ExtractionRequest,
    layers: Sequence[Layer] | Layer | None = None,
    *,
    registry: Registry | None = None,
    **fields: Any,
) -> Extractor:
    """Open a model by name, ready to extract ``layers``.

    ``fields`` are those of :class:`~featreg.ExtractionRequest`; a request can also be given whole, in place of the name.
    Raises UnknownBackendError, UnknownModelError, LayerError, CapabilityError, WeightsError, DeviceError or PluginError.
    """
    registry = registry or default_registry()
    request = _request(model, layers, fields)
    backend, name = registry.resolve(request.model)
    _check_capabilities(request, registry.spec(backend).capabilities, backend)
    request = attrs.evolve(request, model=f"{backend}:{name}")
    opened = guarded(request.model, registry.backend(backend).open, attrs.evolve(request, model=name))
    try:
        return Extractor(request, opened)
    except BaseException:
        opened.close()
        raise


class Extractor:
    """An opened model: called with a batch of images (or of texts), it returns a FeatureSet.

    ``request`` is what was asked for, ``info`` the whole model, ``feature_info`` the requested layers by key. Use it as a
    context manager, or call :meth:`close`. Images are (N, 3, H, W): floating point goes in as it is, uint8 RGB is
    normalised on the device by ``preprocess``. Extractors are made by :func:`create_extractor`.
    """

    def __init__(self, request: ExtractionRequest, opened: BackendExtractor) -> None:
        self.request = request
        self._opened: BackendExtractor | None = opened
        self._module = opened.module
        self.info = opened.info
        self._features = tuple(opened.features)
        if len(self._features) != len(request.layers):
            raise _broken(request.model, f"{len(request.layers)} features", str(len(self._features)))
        _check_capabilities(request, self.info.capabilities, request.model)
        self._takes_text = _takes_text(request, self._features)
        described = self._features if request.pool is None else tuple(map(pooled_info, self._features))
        self.feature_info: Mapping[Layer, FeatureInfo] = MappingProxyType(
            dict(zip(request.layers, described, strict=True))
        )

    @property
    def preprocess(self) -> Preprocess:
        """How an image becomes this model's input."""
        return self.info.preprocess

    @property
    def module(self) -> Any:
        """The framework's own network; None where the backend has none."""
        return self._module

    def __call__(self, inputs: Array | Sequence[str]) -> FeatureSet:
        """The features of a batch.

        Raises InputError for a batch of another rank, type, channel count or size than the model takes, and BackendError
        where the framework fails.
        """
        opened = self._open()
        batch = _texts(inputs) if self._takes_text else self._images(opened, inputs)
        outputs = self._run(opened, batch)
        self._check_outputs(outputs, batch)
        if self.request.pool is not None:
            pooled = zip(outputs, self._features, strict=True)
            outputs = [pool_array(output, info, self.request.pool) for output, info in pooled]
        if self.request.array == "numpy":
            outputs = [opened.to_numpy(output) for output in outputs]
        return FeatureSet(dict(zip(self.request.layers, outputs, strict=True)), self.feature_info)

    def output_shapes(self, input_shape: Sequence[int]) -> dict[Layer, tuple[int, ...]]:
        """The exact shape of every requested layer for an input of (N, 3, H, W); runs no forward pass on real data.

        Raises InputError for a shape that the model does not take.
        """
        opened = self._open()
        if len(input_shape) != 4:
            raise InputError("the input is a batch of images", "(N, 3, H, W)", str(tuple(input_shape)))
        batch, channels, height, width = (int(side) for side in input_shape)
        self._check_shape((batch, channels, height, width))
        infos = guarded(self.request.model, opened.measure, height, width)
        infos = infos if self.request.pool is None else tuple(map(pooled_info, infos))
        return {key: info.shape(batch, height, width) for key, info in zip(self.request.layers, infos, strict=True)}

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

    def _open(self) -> BackendExtractor:
        if self._opened is None:
            raise RequestError(f"the extractor of {self.request.model} is closed", remedy="create it again")
        return self._opened

    def _images(self, opened: BackendExtractor, images: Array) -> Array:
        batch = images if opened.is_native(images) else _as_numpy(images)
        self._check_shape(tuple(batch.shape))
        kind = str(batch.dtype).rpartition(".")[2].lower()
        if kind != "uint8" and not kind.startswith(("float", "bfloat")):
            raise InputError("images of this type are not taken", "floating point, or uint8 RGB", kind)
        return batch

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        rule = self.info.input_rule
        if len(shape) != 4:
            raise InputError("the input is a batch of images", f"(N, {rule.channels}, H, W)", str(shape))
        if shape[1] != rule.channels or 0 in shape:
            last = " (channels come second: use images.transpose(0, 3, 1, 2))" if shape[3] == rule.channels else ""
            raise InputError("wrong shape of a batch of images", f"(N, {rule.channels}, H, W){last}", str(shape))
        rule.check(shape[2], shape[3])

    def _run(self, opened: BackendExtractor, batch: Any) -> list[Array]:
        try:
            return list(guarded(self.request.model, opened.forward, batch))
        except BackendError:
            if not self._takes_text:  # was it the size? then inferring the shapes says so, as an InputError
                opened.measure(int(batch.shape[2]), int(batch.shape[3]))
            raise

    def _check_outputs(self, outputs: list[Array], batch: Any) -> None:
        ranks = {"map": 4, "tokens": 3, "vector": 2}
        if len(outputs) != len(self._features):
            raise _broken(self.request.model, f"{len(self._features)} arrays", str(len(outputs)))
        for key, output, info in zip(self.request.layers, outputs, self._features, strict=True):
            shape = tuple(output.shape)
            channels = shape[1] if info.kind == "map" else shape[-1]
            if len(shape) != ranks[info.kind] or shape[0] != len(batch) or channels != info.channels:
                expected = f"{info.kind} of {len(batch)} images with {info.channels} channels for {key!r}"
                raise _broken(self.request.model, expected, str(shape))
            if info.rounding != "measured" and not self._takes_text:
                predicted = info.shape(*(int(batch.shape[axis]) for axis in (0, 2, 3)))
                if shape != predicted:
                    raise _broken(self.request.model, f"{predicted} for {key!r}", str(shape))


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


def _check_capabilities(request: ExtractionRequest, capabilities: Sequence[str], owner: str) -> None:
    wanted = {
        "grad": request.grad,
        "native_array": request.array == "native",
        "output_stride": request.output_stride is not None,
        "weights": request.weights is not None,
        request.dtype: request.dtype != "float32",
        "cuda": request.device.startswith("cuda"),
    }
    for capability, asked in wanted.items():
        if asked and capability not in capabilities:
            raise CapabilityError(
                f"{owner} does not support {capability}",
                f"some of {', '.join(capabilities) or '(no capability beyond the minimum)'}",
                capability,
                remedy="featreg backends --json lists what each backend supports",
            )


def _takes_text(request: ExtractionRequest, features: Sequence[FeatureInfo]) -> bool:
    texts = [info.head == "text_embedding" for info in features]
    if any(texts) and not all(texts):
        raise LayerError(
            "text and image layers cannot be asked for together", got=str(list(request.layers)), remedy="open two extractors"
        )
    return all(texts)


def _texts(inputs: Any) -> list[str]:
    if isinstance(inputs, str) or not isinstance(inputs, Sequence) or not all(isinstance(text, str) for text in inputs):
        raise InputError("the text tower takes texts", "a list of strings", type(inputs).__name__)
    if not inputs:
        raise InputError("the batch is empty", "at least one text")
    return list(inputs)


def _as_numpy(images: Any) -> np.ndarray[Any, Any]:
    try:
        batch = np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)
    except Exception as error:
        raise InputError("not a batch of images", "an array (N, 3, H, W)", type(images).__name__) from error
    if batch.dtype == object or batch.dtype.kind in "US":
        raise InputError("not a batch of images", "an array (N, 3, H, W)", f"{type(images).__name__} of {batch.dtype}")
    return batch


def _broken(model: str, expected: str, got: str) -> BackendError:
    return BackendError(
        f"the backend of {model} broke its contract", expected, got, remedy="report it to the authors of the backend"
    )
