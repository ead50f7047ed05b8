"""The backend ``onnx``: any file that takes images, by its path."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from onnx import TensorProto

from featreg.plugin import (
    Backend,
    ExtractionRequest,
    Layer,
    ModelInfo,
    NodeInfo,
    Preprocess,
    Size,
    errors,
    read_preprocess,
    watch_path,
)
from featreg_onnx import CAPABILITIES, catalogue
from featreg_onnx.extractor import OnnxExtractor
from featreg_onnx.graph import cut
from featreg_onnx.layout import Place
from featreg_onnx.reading import Stamp, external_files, read_model, stamp_of
from featreg_onnx.runtime import find_providers, has_cuda, open_session
from featreg_onnx.survey import Survey, make_survey

__all__ = ["OnnxBackend"]

_REMEMBERED = 8
_OPTIONS = ("preprocess", "threads")


class OnnxBackend(Backend):
    """Files are models and their own weights: ``weights`` is None, and a name is a path (see ``catalogue``)."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Path, Stamp], Survey] = OrderedDict()
        self._lock = threading.RLock()

    def models(self) -> Sequence[str]:
        """The files in the folders of ``FEATREG_ONNX_PATH``; any other file goes by its path."""
        return tuple(catalogue.listed())

    def has(self, model: str) -> bool:
        return catalogue.find(model) is not None

    def suggest(self, model: str) -> tuple[Sequence[str], str]:
        return catalogue.suggest(model)

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        """The file described, from small black images.

        Raises InputError for a size that it does not take, WeightsError for a file that cannot be read, and
        CapabilityError for one that takes no images or does not run.
        """
        survey = self._survey(catalogue.find_file(model))
        size = input_size or survey.size
        survey.rule.check(*size)
        return _info(model, survey, size)

    def nodes(self, model: str, input_size: Size | None = None, train: bool = False) -> Sequence[NodeInfo]:
        """Every tensor that is a feature; a file has no training mode."""
        return tuple(self._survey(catalogue.find_file(model)).nodes(input_size))

    def open(self, request: ExtractionRequest) -> OnnxExtractor:
        """A file, cut after the layers; ``options`` are ``preprocess`` (a Preprocess as JSON) and ``threads``."""
        providers = find_providers(request.device)
        preprocess, threads = _read_options(request.options)
        file = catalogue.find_file(request.model)
        survey = self._survey(file)
        _check_number(request, survey)
        info = _info(request.model, survey, survey.size)
        places = [_find_place(info, survey, layer) for layer in request.layers]
        model = read_model(file)
        identities = [watch_path(str(path)) for path in (file, *external_files(model, file))]
        part = cut(model, list(dict.fromkeys(place.name for place in places)))
        session = open_session(part, file, providers, threads)
        _check_types(session)
        if preprocess is not None:
            info = attrs.evolve(info, preprocess=preprocess)
        return OnnxExtractor(session, info, survey, places, lambda: " + ".join(identify() for identify in identities))

    def _survey(self, file: Path) -> Survey:
        key = (file.absolute(), stamp_of(file))
        with self._lock:
            if key not in self._known:
                self._known[key] = make_survey(file)
            self._known.move_to_end(key)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
            return self._known[key]


def _info(model: str, survey: Survey, size: Size) -> ModelInfo:
    own = {"cuda": has_cuda(), "float16": survey.number == "float16"}
    capabilities = [name for name in CAPABILITIES if own.get(name, True)]
    plain = Preprocess(survey.size, survey.size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    features, native = tuple(survey.features(size)), survey.natives(size)
    preprocess, deviations = survey.preprocess or plain, _deviations(survey)
    return ModelInfo("onnx", model, size, features, preprocess, survey.rule, capabilities, deviations, native)


def _deviations(survey: Survey) -> list[str]:
    """What a file keeps in other numbers than it takes images in; indices and shapes are no such numbers."""
    indices = (survey.graph.type, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL)
    others = {kind: count for kind, count in survey.graph.types.items() if kind not in indices}
    return [
        f"{count} of its parameters are {TensorProto.DataType.Name(kind).lower()}, while it takes {survey.number}"
        for kind, count in sorted(others.items())
    ]


def _read_options(options: Mapping[str, Any]) -> tuple[Preprocess | None, int]:
    for name in options:
        if name not in _OPTIONS:
            near = errors.near_matches(name, _OPTIONS)
            raise errors.CapabilityError(
                f"the backend 'onnx' has no option {name!r}", " or ".join(_OPTIONS), name, near
            )
    threads = options.get("threads", 0)
    if type(threads) is not int or threads < 0:
        raise errors.SpecError("the option 'threads' is a number", "1 or more, 0 for onnxruntime's own", repr(threads))
    given = options.get("preprocess")
    return (None if given is None else read_preprocess(given)), threads


def _check_number(request: ExtractionRequest, survey: Survey) -> None:
    if request.dtype != survey.number:
        raise errors.CapabilityError(
            f"{request.model} computes in {survey.number}, and a file is as it is",
            f"dtype={survey.number!r}",
            request.dtype,
        )


def _check_types(session: Any) -> None:
    for output in session.get_outputs():
        if output.type not in ("tensor(float)", "tensor(float16)", "tensor(double)"):
            raise errors.CapabilityError(f"{output.name!r} is no tensor of floats", "a feature", str(output.type))


def _find_place(info: ModelInfo, survey: Survey, layer: Layer) -> Place:
    """What a layer stands for; raises LayerError and CapabilityError as :meth:`ModelInfo.resolve` does."""
    if isinstance(layer, str) and layer not in info.keys and not info.is_block(layer) and layer in survey.graph.taps:
        return Place(layer)
    try:
        feature = info.resolve(layer)
    except errors.LayerError as error:
        matches = errors.near_matches(str(layer), [*info.keys, *survey.graph.taps])
        raise attrs.evolve(error, matches=matches) from None
    declared = survey.features().items()
    return next(place for own, place in declared if attrs.evolve(own, input_rule=info.input_rule) == feature)
