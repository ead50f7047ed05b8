"""What goes into an extractor and what comes out of a backend, checked alike for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from featreg.arrays import Array, to_numpy
from featreg.errors import BackendError, CapabilityError, InputError, LayerError
from featreg.fields import as_pair
from featreg.pooling import check_pool
from featreg.spec import HEADS, LEVELS, ExtractionRequest, FeatureInfo, InputRule, ModelInfo, Size
from featreg.synthetic import synthetic_seed

__all__ = [
    "as_numpy_batch",
    "as_size",
    "as_texts",
    "broken_contract",
    "check_batch",
    "check_capabilities",
    "check_features",
    "check_outputs",
    "checked_info",
    "grid_is_known",
    "takes_text",
]

RANKS = {"map": 4, "tokens": 3, "vector": 2}


_INSTEAD = {"cuda": "device='cpu'", "float16": "dtype='float32'", "bfloat16": "dtype='float32'"}
"""What goes with every backend in place of a capability."""


def check_capabilities(request: ExtractionRequest, capabilities: Sequence[str], owner: str) -> None:
    """Raise CapabilityError for whatever is asked beyond the minimum and not declared."""
    seed = synthetic_seed(request.weights)
    wanted = {
        "grad": request.grad,
        "native_array": request.array == "native",
        "output_stride": request.output_stride is not None,
        "weights": request.weights is not None and seed is None,
        "synthetic_weights": seed is not None,
        request.dtype: request.dtype != "float32",
        "cuda": request.device.startswith("cuda"),
    }
    for capability, asked in wanted.items():
        if asked and capability not in capabilities:
            raise CapabilityError(
                f"{owner} does not support {capability}",
                _INSTEAD.get(capability, f"some of {', '.join(capabilities) or '(no capability beyond the minimum)'}"),
                capability,
                remedy="featreg backends --json lists what each backend supports",
            )


def check_features(request: ExtractionRequest, features: Sequence[FeatureInfo]) -> None:
    """Raise BackendError unless a backend describes the layers of the request, and in that order.

    Raises LayerError for texts and images together, CapabilityError for a pooling that a layer cannot have.
    """
    if not isinstance(features, tuple | list) or not all(isinstance(info, FeatureInfo) for info in features):
        raise broken_contract(request.model, "features, a tuple of FeatureInfo", repr(features))
    if len(features) != len(request.layers):
        raise broken_contract(request.model, f"{len(request.layers)} features", str(len(features)))
    for layer, info in zip(request.layers, features, strict=True):
        other = (layer in LEVELS and info.level != layer) or (layer in HEADS and info.head != layer)
        if other and info.name != layer:  # a native name may read as a level or head that the model does not have
            raise broken_contract(request.model, f"the description of {layer!r}", repr(info))
        if layer in request.pools:
            check_pool(info, request.pools[layer])
    if takes_text(features) and any(map(_is_of_images, features)):
        raise LayerError(
            "text and image layers cannot be asked for together",
            got=str(list(request.layers)),
            remedy="open two extractors",
        )


def checked_info(model: str, info: Any) -> ModelInfo:
    """What a backend says of a model; raises BackendError where that is no ModelInfo."""
    if not isinstance(info, ModelInfo):
        raise broken_contract(model, "a ModelInfo", type(info).__name__)
    return info


def takes_text(features: Sequence[FeatureInfo]) -> bool:
    """Whether the inputs are texts rather than images."""
    return any(info.head == "text_embedding" for info in features)


def as_texts(inputs: Any) -> list[str]:
    """A batch of texts; raises InputError for anything else, and for none."""
    if isinstance(inputs, str) or not isinstance(inputs, Sequence) or not all(isinstance(text, str) for text in inputs):
        raise InputError("the text tower takes texts", "a list of strings", type(inputs).__name__)
    if not inputs:
        raise InputError("the batch is empty", "at least one text")
    return list(inputs)


def as_numpy_batch(images: Any) -> np.ndarray[Any, Any]:
    """Images of any framework, or nested lists of numbers, as NumPy; raises InputError for what is no array."""
    try:
        batch = to_numpy(images) if hasattr(images, "dtype") else np.asarray(images)
    except Exception as error:
        raise InputError("not a batch of images", "an array (N, 3, H, W)", type(images).__name__) from error
    if batch.dtype == object or batch.dtype.kind in "US":
        raise InputError("not a batch of images", "an array (N, 3, H, W)", f"{type(images).__name__} of {batch.dtype}")
    return batch if batch.dtype.isnative else batch.astype(batch.dtype.newbyteorder("="))


def as_size(value: Any) -> Size:
    """The size of an image; raises InputError for anything else."""
    size = as_pair(value)
    if not isinstance(size, tuple) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise InputError("not the size of an image", "(height, width), two positive whole numbers", repr(value))
    return size[0], size[1]


def check_batch(rule: InputRule, shape: Sequence[int], dtype: Any = "float32") -> None:
    """Raise InputError unless a batch of images of this shape and type may go in."""
    if len(shape) != 4:
        raise InputError("the input is a batch of images", f"(N, {rule.channels}, H, W)", str(tuple(shape)))
    if shape[1] != rule.channels or min(shape) < 1:
        last = " (channels come second: use images.transpose(0, 3, 1, 2))" if shape[3] == rule.channels else ""
        raise InputError("wrong shape of a batch of images", f"(N, {rule.channels}, H, W){last}", str(tuple(shape)))
    rule.check(shape[2], shape[3])
    kind = str(getattr(dtype, "name", dtype)).rpartition(".")[2].lower()
    if kind == "uint8" and rule.channels != 3:
        expected = "floating point, scaled and normalised as the model wants it"
        raise InputError(f"uint8 images are RGB, and the model takes {rule.channels} channels", expected, kind)
    if kind not in ("uint8", "float16", "bfloat16", "float32", "float64"):
        raise InputError("images of this type are not taken", "floating point, or uint8 RGB", kind)


def check_outputs(
    request: ExtractionRequest, features: Sequence[FeatureInfo], outputs: Sequence[Array], batch: Any
) -> None:
    """Raise BackendError unless a backend gave what it described; ``batch`` is what went in, images or texts."""
    if len(outputs) != len(features):
        raise broken_contract(request.model, f"{len(features)} arrays", str(len(outputs)))
    size = None if isinstance(batch, list) else (int(batch.shape[2]), int(batch.shape[3]))
    for key, output, info in zip(request.layers, outputs, features, strict=True):
        shape = _shape(output)
        predicted = _predicted(info, len(batch), size)
        if shape is None or not (shape == predicted if predicted is not None else _fits(shape, info, len(batch))):
            expected = f"{info.kind} {predicted or f'of {len(batch)} with {info.channels} channels'} for {key!r}"
            raise broken_contract(request.model, expected, type(output).__name__ if shape is None else str(shape))


def broken_contract(model: str, expected: str, got: str) -> BackendError:
    """The error for a backend that does not keep the specification."""
    return BackendError(
        f"the backend of {model} broke its contract", expected, got, remedy="report it to the authors of the backend"
    )


def _is_of_images(info: FeatureInfo) -> bool:
    """Whether a layer cannot be one of a text tower, whose inner layers have native names alone."""
    return info.head not in (None, "text_embedding") or info.level is not None or info.index is not None


def _shape(output: Any) -> tuple[int, ...] | None:
    try:
        return tuple(int(side) for side in output.shape)
    except (AttributeError, TypeError):
        return None


def _predicted(info: FeatureInfo, count: int, size: tuple[int, int] | None) -> tuple[int, ...] | None:
    """The exact shape; None where it is not known without asking the backend."""
    if info.kind == "vector" or info.length is not None:
        return info.shape(count, 0, 0)
    return info.shape(count, *size) if size is not None and grid_is_known(info, size) else None


def grid_is_known(info: FeatureInfo, size: Size) -> bool:
    """Whether a layer's shape at an input size follows from its description, without asking the backend."""
    return info.rounding != "measured" or any(grid.input_size == size for grid in info.measured)


def _fits(shape: tuple[int, ...], info: FeatureInfo, count: int) -> bool:
    channels = shape[1:2] if info.kind == "map" else shape[-1:]
    return len(shape) == RANKS[info.kind] and shape[0] == count and channels == (info.channels,)
