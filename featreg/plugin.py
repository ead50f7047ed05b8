"""All that the author of a backend imports.

A backend is a class with three methods. ``models`` lists names, ``info`` describes one model without its weights, and
``open`` returns a :class:`BackendExtractor`, whose ``forward`` runs a batch. Everything else (choosing backends,
checking requests, inputs and outputs, pooling, conversion to NumPy) is done for all backends alike by
:mod:`featreg.extractor`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featreg import errors
from featreg.arrays import Array, to_numpy
from featreg.case import Case, Oracle, TextOracle
from featreg.checkpoints import Mismatch, WeightsReport, compare, is_counter, unwrap
from featreg.hookspecs import BackendSpec, hookimpl
from featreg.identity import identify_state, watch_path
from featreg.keymap import KeyMap, Rule, map_in_order
from featreg.levels import Level, Step, Transformer, find_final, find_levels, find_transformer, level_of
from featreg.pool import Pool
from featreg.pooling import flat_array, pool_array
from featreg.refused import check_refused, read_refused
from featreg.shapes import Described, Form, Shape, describe_output, stride_of
from featreg.spec import (
    SPEC_VERSION,
    ExtractionRequest,
    FeatureInfo,
    InputRule,
    Layer,
    MeasuredGrid,
    ModelInfo,
    NodeInfo,
    Preprocess,
    Size,
)
from featreg.synthetic import CanonicalNames, canonical_names, draw_weight, is_drawn_buffer, synthetic_seed
from featreg.weightfiles import SUFFIXES, is_path, read_npz, reading_weights

__all__ = [
    "SPEC_VERSION",
    "SUFFIXES",
    "Array",
    "Backend",
    "BackendExtractor",
    "BackendSpec",
    "CanonicalNames",
    "Case",
    "Described",
    "ExtractionRequest",
    "FeatureInfo",
    "Form",
    "InputRule",
    "KeyMap",
    "Layer",
    "Level",
    "MeasuredGrid",
    "Mismatch",
    "ModelInfo",
    "NodeInfo",
    "Oracle",
    "Pool",
    "Preprocess",
    "Rule",
    "Shape",
    "Size",
    "Step",
    "TextOracle",
    "Transformer",
    "WeightsReport",
    "canonical_names",
    "check_refused",
    "compare",
    "describe_output",
    "draw_weight",
    "errors",
    "find_final",
    "find_levels",
    "find_transformer",
    "hookimpl",
    "identify_state",
    "is_counter",
    "is_drawn_buffer",
    "is_path",
    "level_of",
    "map_in_order",
    "normalize",
    "read_npz",
    "read_preprocess",
    "read_refused",
    "reading_weights",
    "stride_of",
    "synthetic_seed",
    "unwrap",
    "watch_path",
]


class BackendExtractor(ABC):
    """One opened model, ready to run: what :meth:`Backend.open` returns.

    ``info`` describes the model and ``features`` the requested layers, one each, in the order of the request.
    ``weights_report`` says what was done to a checkpoint's file; None for weights of another origin.
    """

    info: ModelInfo
    features: tuple[FeatureInfo, ...]
    weights_report: WeightsReport | None = None

    def weights_identity(self) -> str | None:
        """What the weights are, where the ``weights`` of the request do not say it; None where they do.

        They do where they are None (the backend's seeded random weights), synthetic or a tag of the library. Of a file
        or a folder it is a hash of the content (:func:`watch_path`), of a module of the caller's own one of its state
        as it is now (:func:`identify_state`), of a hub's repository the revision that was loaded. Weights that were
        changed since they were loaded, as by training :attr:`module`, are no longer what the request says. Any two that
        may give other features have other identities. It is asked for where features are stored, and may take as long
        as reading the weights once more.
        """
        return None

    @property
    def module(self) -> Any:
        """The framework's own network, for those who need it; None where there is none."""
        return None

    @abstractmethod
    def forward(self, batch: Array) -> Sequence[Array]:
        """The requested features of one batch, as the framework's arrays, in the order of the request.

        ``batch`` is (N, 3, H, W): float, to be used as it is, or uint8 RGB, to be normalised by ``info.preprocess``
        (see :func:`normalize`). It is a NumPy array, or whatever :meth:`is_native` said True to. Where
        :attr:`takes_text` it is a list of strings. The arrays share no storage with the input, the weights or each
        other.
        """

    @property
    def takes_text(self) -> bool:
        """Whether a batch is a list of strings: the input of a text head, and of the layers of a text tower."""
        return any(info.head == "text_embedding" for info in self.features)

    def is_native(self, array: Array) -> bool:
        """Whether ``array`` is of the framework's own type, which :meth:`forward` then gets as it is."""
        return False

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """One of :meth:`forward`'s arrays as NumPy."""
        return to_numpy(array)

    def pool(self, array: Array, info: FeatureInfo, pool: Pool) -> Array:
        """One of :meth:`forward`'s arrays pooled, as ``info`` describes it before."""
        return pool_array(array, info, pool)

    def flatten(self, array: Array) -> Array:
        """One of :meth:`forward`'s arrays, pooled or not, as (N, D), row-major."""
        return flat_array(array)

    def to_device(self, batch: Array) -> Array:
        """A batch of images as an array of the framework's own on the device, its numbers unchanged; else as it is.

        Asked for, as :meth:`synchronize` is, where the time of copying is told apart from that of computing.
        """
        return batch

    def synchronize(self) -> None:  # noqa: B027  (most extractors compute while they are called)
        """Wait until whatever the device was given to do is done."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an exception of the framework says that memory did not suffice: then a smaller batch is tried."""
        return isinstance(error, MemoryError)

    def free_memory(self) -> None:  # noqa: B027
        """Give back what the framework keeps for later: called after a batch for which memory did not suffice."""

    def measure(self, height: int, width: int) -> tuple[FeatureInfo, ...]:
        """``features`` as they are for one input size, inferred where their grid follows no formula."""
        return self.features

    def close(self) -> None:  # noqa: B027  (most extractors hold nothing)
        """Release what the extractor holds; called once."""


class Backend(ABC):
    """A named provider of models. Made without arguments, once per process; methods may be called from any thread."""

    @abstractmethod
    def models(self) -> Sequence[str]:
        """Every model name, sorted; imports the framework at most."""

    def has(self, model: str) -> bool:
        """Whether :meth:`info` and :meth:`open` take this name (a library's tags, say, that ``models`` leaves out)."""
        return model in self.models()

    def suggest(self, model: str) -> tuple[Sequence[str], str]:
        """The nearest names to one that :meth:`has` does not know, and what to do next, empty where that is to list
        ``models``: for a backend that also takes what it does not list, such as files.
        """
        return errors.near_matches(model, self.models()), ""

    @abstractmethod
    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        """The model described at an input size (its own where None); no weights are loaded.

        Raises InputError for a size that the model does not take.
        """

    def info_for(self, request: ExtractionRequest, input_size: Size | None = None) -> ModelInfo:
        """The model as :meth:`open` makes it with the ``weights``, ``output_stride`` and ``options`` of a request.

        As :meth:`info`, no weights are loaded; the layers of the request do not count. A backend where none of these
        change what is described need not have it.
        """
        raise errors.CapabilityError(
            f"this backend describes {request.model!r} by its name alone",
            "no weights, output_stride or options",
            remedy="open the model: the info of the extractor that featreg.create_extractor gives is what was opened",
        )

    def nodes(self, model: str, input_size: Size | None = None, train: bool = False) -> Sequence[NodeInfo]:
        """Every native name of a model in the library's order, with the shape that asking for it as a layer gives.

        None is the shape of those that cannot be asked for. ``train`` asks for the names in training mode, where they
        differ.
        """
        info = self.info(model, input_size)
        named = {feature.name: feature for feature in (*reversed(info.features), *info.native)}
        return tuple(
            NodeInfo(name, shape=named[name].shape(1, *info.input_size)[1:])
            for name in dict.fromkeys(feature.name for feature in info.features)
        )

    @abstractmethod
    def open(self, request: ExtractionRequest) -> BackendExtractor:
        """The model of a request, built and loaded; ``request.model`` is the name without the backend.

        Raises LayerError, CapabilityError, WeightsError, DeviceError.
        """

    def wrap(
        self, module: Any, request: ExtractionRequest, preprocess: Preprocess | None, input_size: Size | None
    ) -> BackendExtractor:
        """A module of the caller's own, of a class that ``BackendSpec.wraps`` names, as an opened model.

        ``input_size`` is the size that it is made for. The module keeps its parameters and its mode, and the extractor
        says by :meth:`BackendExtractor.weights_identity` what they are.
        """
        raise errors.CapabilityError(f"this backend wraps no modules, such as {type(module).__name__}")


def read_preprocess(document: Mapping[str, Any]) -> Preprocess:
    """A Preprocess from its JSON form (``specs/preprocess.md``); raises SpecError that names every wrong field."""
    from featreg.serialize import from_dict  # imports cattrs, which listing backends does without

    return from_dict(Preprocess, document)


def normalize(batch: np.ndarray[Any, Any], preprocess: Preprocess) -> np.ndarray[Any, Any]:
    """A NumPy batch (N, 3, H, W) as the model wants it, in float32: uint8 RGB scaled and normalised, floats kept."""
    if batch.dtype != np.uint8:
        return np.asarray(batch, dtype=np.float32)
    ordered = batch if preprocess.color == "RGB" else batch[:, ::-1]
    mean = np.asarray(preprocess.mean, dtype=np.float32).reshape(3, 1, 1)
    std = np.asarray(preprocess.std, dtype=np.float32).reshape(3, 1, 1)
    normalized: np.ndarray[Any, Any] = (ordered.astype(np.float32) / np.float32(255) - mean) / std
    return normalized
