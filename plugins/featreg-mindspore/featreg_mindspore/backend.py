"""The backend ``mindspore``: mindcv's models on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from featreg.plugin import Backend, ExtractionRequest, ModelInfo, Size, errors
from featreg_mindspore import CAPABILITIES, networks, weights
from featreg_mindspore.extractor import MindsporeExtractor, Tap
from featreg_mindspore.libraries import mindcv
from featreg_mindspore.onednn import cap_instruction_set
from featreg_mindspore.runtime import check_device, quieten_exit
from featreg_mindspore.survey import Survey, survey
from featreg_mindspore.trace import trace

__all__ = ["MindsporeBackend"]


class MindsporeBackend(Backend):
    """The models of mindcv on the CPU, in float32.

    Making one caps MindSpore's oneDNN (see :mod:`featreg_mindspore.onednn`) and keeps its cells quiet at exit.
    """

    def __init__(self) -> None:
        self.cap = cap_instruction_set()
        quieten_exit()
        self._surveys: dict[str, Survey] = {}
        self._lock = threading.RLock()

    def models(self) -> Sequence[str]:
        return tuple(sorted(mindcv.list_models()))

    def has(self, model: str) -> bool:
        return bool(mindcv.is_model(model))

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        """The model described; runs it on a few small images the first time, and where a grid follows no formula.

        Raises InputError for a size that it does not take, CapabilityError where it cannot be built or run.
        """
        known = self._survey(model)
        size = input_size or known.size
        known.rule.check(*size)
        if not known.follows_formula(size):
            known.add(size, trace(networks.build(model), size))
        return _info(model, known, size)

    def nodes(self, model: str) -> Sequence[str]:
        return self._survey(model).names

    def open(self, request: ExtractionRequest) -> MindsporeExtractor:
        check_device(request.device)
        if request.options:
            raise errors.CapabilityError(
                "the backend 'mindspore' takes no options", "no options", ", ".join(sorted(request.options))
            )
        network = networks.build(request.model)
        known = self._survey(request.model, network)
        info = _info(request.model, known, known.size)
        taps = [_tap(known, info, layer) for layer in request.layers]
        if request.weights is not None:
            weights.load(request.model, network, request.weights)
        return MindsporeExtractor(network, info, known, taps)

    def _survey(self, model: str, network: Any = None) -> Survey:
        with self._lock:
            if model not in self._surveys:
                network = networks.build(model) if network is None else network
                self._surveys[model] = survey(model, network, networks.default_size(model))
            return self._surveys[model]


def _info(model: str, known: Survey, size: Size) -> ModelInfo:
    return ModelInfo(
        "mindspore",
        model,
        size,
        known.features(size),
        networks.preprocess(model, known.size),
        known.rule,
        CAPABILITIES,
    )


def _tap(known: Survey, info: ModelInfo, layer: str | int) -> Tap:
    """The tap of a requested layer: a declared one, or any cell by its own name."""
    try:
        feature = info.resolve(layer)
        described = known.describe(feature.name)
    except errors.LayerError as error:
        if layer not in known.names:
            matches = errors.near_matches(str(layer), [*info.keys, *known.names])
            raise errors.LayerError(error.problem, error.expected, error.got, matches, error.remedy) from None
        described = known.describe(str(layer))
        feature = described.feature
    return Tap(feature, *known.source(feature.name), described.channels_last)
