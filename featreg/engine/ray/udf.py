"""A model as a function of Ray Data's ``map_batches``, for pipelines that are not featreg's."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from featreg.engine.loop.batching import Batching
from featreg.engine.loop.block import extract_batch, stack_batch
from featreg.engine.loop.loader import Loaded, load_crops, load_texts
from featreg.errors import CapabilityError, FeatregError, LayerError, MissingDependencyError, SpecError
from featreg.extractor import create_extractor, describe, list_nodes
from featreg.preprocess import crop_size
from featreg.registry import default_registry
from featreg.sources import Content, Sample, Source
from featreg.spec import ExtractionRequest

__all__ = ["BatchExtractor", "extractor_udf"]

Columns = dict[str, np.ndarray[Any, Any]]


def extractor_udf(
    request: ExtractionRequest,
    *,
    column: str = "image",
    on_error: Literal["record", "raise"] = "record",
    error_column: str = "error",
    keep_input: bool = False,
    num_workers: int = 1,
) -> type[BatchExtractor]:
    """A class for ``Dataset.map_batches`` that adds the features of each row's image, or text, as columns.

    ::

        images = ray.data.read_images("photos/", mode="RGB")
        udf = extractor_udf(ExtractionRequest("timm:resnet50", ["C5", "pooled"], device="cuda"))
        features = images.map_batches(udf, concurrency=2, num_gpus=1, batch_size=32)

    Each worker opens the model of the request once, from the plugins that are installed there. ``column`` holds encoded
    images (bytes), RGB pixels (h, w, 3) in uint8 of any sizes, or texts for a text tower; it is left out of the result
    unless ``keep_input``. Each layer becomes a column with its key as the name, of (rows, ...) in float32, or float16
    where the model computes in it. Other columns stay. ``num_workers`` threads decode.

    With ``on_error="record"``, a row that fails has NaN features and its error's type and text in ``error_column``,
    which is an empty string elsewhere. With ``"raise"`` there is no such column, and the first error is raised: Ray
    Data wraps it, as whatever a function raises. Batches are those of the pipeline, so set ``batch_size`` with
    ``map_batches``; where memory does not suffice they go through the model in parts.

    Raises SpecError for what is no request, and where two columns would have one name; UnknownModelError, LayerError
    and CapabilityError where a backend that is installed here has no such model or layer. The worker raises
    CapabilityError for a model whose crops differ in size, SpecError for a batch without ``column`` or with a column of
    a layer's name, and as :func:`~featreg.create_extractor`.
    """
    if on_error not in ("record", "raise"):
        raise SpecError(f"on_error is {on_error!r}", "'record' or 'raise'", repr(on_error))
    if not isinstance(request, ExtractionRequest):
        raise SpecError("what to extract is no request", "a featreg.ExtractionRequest", repr(request))
    error = error_column if on_error == "record" else None
    names = [*map(str, request.layers), *([error] if error else []), *([column] if keep_input else [])]
    if len(set(names)) < len(names):
        raise SpecError("two columns of the result would have one name", "different names", str(names))

    _check_named(request)

    class FeatureExtractor(BatchExtractor):
        def __init__(self) -> None:
            super().__init__(request, column, error, keep_input, num_workers)

    return FeatureExtractor


def _check_named(request: ExtractionRequest) -> None:
    """Raise for a model or a layer that is not there; what is not installed here, the workers may have."""
    registry = default_registry()
    if request.model.partition(":")[0] not in registry.names():
        return
    try:
        registry.resolve(request.model)
    except MissingDependencyError:
        return
    fields = {name: getattr(request, name) for name in ("weights", "output_stride", "options")}
    try:
        info = describe(request.model, **{name: value for name, value in fields.items() if value})
    except CapabilityError:  # such a model is described by none but itself
        return
    for layer in request.layers:
        try:
            info.resolve(layer)
        except LayerError:
            if all(layer != node.name for node in list_nodes(request.model)):
                raise


class BatchExtractor:
    """What :func:`extractor_udf` gives a class of; ``error_column`` is None where errors are raised."""

    def __init__(
        self, request: ExtractionRequest, column: str, error_column: str | None, keep_input: bool, num_workers: int
    ) -> None:
        self._extractor = create_extractor(request)
        if not self._extractor.takes_text and crop_size(self._extractor.preprocess) is None:
            raise CapabilityError(f"{request.model} crops to no fixed size, and the rows of a column have one shape")
        self._column = column
        self._error_column = error_column
        self._keep_input = keep_input
        self._threads = num_workers

    def __call__(self, batch: Columns) -> Columns:
        """The batch with the features of its rows: (rows, ...) per layer."""
        kept = {name: values for name, values in batch.items() if name != self._column or self._keep_input}
        contents = self._contents(batch, kept)
        loaded = self._loaded(contents)
        model = Batching(self._extractor, len(loaded))
        if self._error_column is None:
            given = model(stack_batch(loaded, model))
        else:
            given, loaded = extract_batch(loaded, model)
        features = {str(key): _owned(values) for key, values in given.items()}
        errors = [_text(sample) for sample in loaded]
        for values in features.values():
            values[[bool(error) for error in errors]] = np.nan
        if self._error_column is not None:
            kept[self._error_column] = np.array(errors, object)
        return {**kept, **features}

    def _contents(self, batch: Columns, kept: Columns) -> list[Any]:
        if self._column not in batch:
            raise SpecError(f"there is no column {self._column!r}", "a column of images or texts", str(sorted(batch)))
        names = [*map(str, self._extractor.request.layers), *([self._error_column] if self._error_column else [])]
        taken = sorted(set(kept) & set(names))
        if taken:
            raise SpecError(f"the data set has the columns {taken} already", "other names", str(sorted(kept)))
        return list(batch[self._column])

    def _loaded(self, contents: list[Any]) -> list[Loaded]:
        """The crops or texts; raises the first error where errors are not recorded."""
        source, rows = _Column(contents), (Sample(str(row), str(row)) for row in range(len(contents)))
        if self._extractor.takes_text:
            loading = load_texts(source, rows, threads=self._threads, ahead=2 * self._threads)
        else:
            preprocess = self._extractor.preprocess
            loading = load_crops(source, rows, preprocess, threads=self._threads, ahead=2 * self._threads)
        loaded = []
        for sample in loading:
            if self._error_column is None and isinstance(sample, FeatregError):
                raise sample
            loaded.append(sample)
        return loaded


class _Column(Source):
    """The values of a column, by their row."""

    kind = uri = "column"

    def __init__(self, contents: list[Any]) -> None:
        self._values = contents

    def read(self, sample: Sample) -> Content:
        value: Content = self._values[int(sample.uri)]
        return value


def _owned(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.array(values, np.float16 if values.dtype == np.float16 else np.float32)


def _text(sample: Loaded) -> str:
    return f"{type(sample).__name__}: {sample}" if isinstance(sample, FeatregError) else ""
