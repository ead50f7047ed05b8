"""The backend ``mindspore``: mindcv's models on the CPU, and any Cell of the caller's own."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from featreg.plugin import (
    Backend,
    ExtractionRequest,
    ModelInfo,
    NodeInfo,
    Preprocess,
    Size,
    canonical_names,
    check_refused,
    errors,
    synthetic_seed,
    watch_path,
)
from featreg_mindspore import CAPABILITIES, networks, weights
from featreg_mindspore.extractor import MindsporeExtractor
from featreg_mindspore.families import Source, family_of
from featreg_mindspore.learning import Learnt, learn, learn_cell
from featreg_mindspore.libraries import mindcv
from featreg_mindspore.likeness import add_biases, deviations, imitate
from featreg_mindspore.onednn import cap_instruction_set
from featreg_mindspore.reading import Checkpoint, read_checkpoint
from featreg_mindspore.runtime import TURN, check_device, evaluating, quieten_exit
from featreg_mindspore.taps import drop, find_unused

__all__ = ["MindsporeBackend"]

_REMEMBERED = 8
"""Models whose shapes are kept: a sweep over all of mindcv is not to fill the memory."""

_NATIVE = (224, 224)
_OPTIONS = ("ema", "padding")


class MindsporeBackend(Backend):
    """The models of mindcv on the CPU, in float32.

    Making one caps MindSpore's oneDNN (see :mod:`featreg_mindspore.onednn`) and keeps its cells quiet at exit.
    """

    def __init__(self) -> None:
        self.cap = cap_instruction_set()
        quieten_exit()
        self._learnt: OrderedDict[tuple[str, str | None], Learnt] = OrderedDict()

    def models(self) -> Sequence[str]:
        return tuple(sorted(mindcv.list_models()))

    def has(self, model: str) -> bool:
        return bool(mindcv.is_model(model))

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        """The model described, from fake images (real ones where MindSpore has no fake ones), without its weights.

        Raises InputError for a size that it does not take, CapabilityError where it cannot be built or run.
        """
        learnt = self._learn(model)
        size = input_size or learnt.survey.size
        learnt.survey.rule.check(*size)
        if not learnt.survey.follows_formula(size):
            learnt.see(size)
        deviating = _deviations(model, learnt.network)
        return _info(model, learnt, networks.preprocess(model, learnt.survey.size), size, deviating)

    def nodes(self, model: str, input_size: Size | None = None, train: bool = False) -> Sequence[NodeInfo]:
        """Every cell that runs, in the order in which they finish; their names are the same in training mode."""
        learnt = self._learn(model)
        learnt.see(input_size or learnt.survey.size)
        return learnt.survey.nodes(input_size)

    def open(self, request: ExtractionRequest) -> MindsporeExtractor:
        """A model with its weights; ``options={"padding": "torch"}`` makes it compute as torch's network does.

        That is the library whose names the checkpoint has, torchvision where it has none of theirs.
        """
        with TURN:
            return self._open(request)

    def _open(self, request: ExtractionRequest) -> MindsporeExtractor:
        check_device(request.device)
        model, options, seed = request.model, request.options, synthetic_seed(request.weights)
        _check_options(model, options)
        checkpoint = _checkpoint(request)
        network = networks.build(model)
        family = family_of(model)
        source = None if checkpoint is None else weights.find_source(checkpoint, network, family)
        alike = (source or family.sources[0]) if family is not None and "padding" in options else None
        if alike is not None:
            imitate(network, alike)
            if seed is not None:  # which has numbers for the biases that mindcv leaves out, too
                add_biases(network, alike)
        if checkpoint is not None and source is not None:
            checkpoint = weights.prepare(network, checkpoint, source)
        learnt = self._learn(model, alike)
        preprocess = networks.preprocess(model, learnt.survey.size)
        info = _info(model, learnt, preprocess, None, _deviations(model, network, alike))
        opened = MindsporeExtractor(network, info, learnt, request.layers)
        if request.weights == "default":
            weights.load_default(model, network)
        own = weights.parameters(network)
        drop(network, find_unused(learnt.network, opened.taps, info.input_size, learnt.fake))
        if seed is not None:
            weights.draw_into(own, seed, canonical_names("featreg_mindspore", model))
        if checkpoint is not None:
            spare = own.keys() - weights.parameters(network).keys()
            opened.weights_report = weights.load_into(own, checkpoint, source, family, spare)
            opened.identify = watch_path(str(request.weights))
        return opened

    def wrap(
        self, module: Any, request: ExtractionRequest, preprocess: Preprocess | None, input_size: Size | None
    ) -> MindsporeExtractor:
        """A Cell that takes images (N, 3, H, W), run on small black ones to learn what it does.

        Raises InputError where it does not run at its size, and SpecError for a ``feature_info`` that does not hold.
        """
        check_device(request.device)
        if request.options:
            raise errors.CapabilityError("a Cell of your own takes no options", got=", ".join(sorted(request.options)))
        size = input_size or _NATIVE
        with evaluating(module):
            learnt = learn_cell(module, size)
        plain = Preprocess(size, size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        info = _info(request.model, learnt, preprocess or plain)
        opened = MindsporeExtractor(module, info, learnt, request.layers)
        opened.identify = functools.partial(weights.identify_cell, module)
        return opened

    def _learn(self, model: str, alike: Source | None = None) -> Learnt:
        """What is known of a model, or of its imitation of a torch library's."""
        check_refused("featreg_mindspore", model)
        key = (model, None if alike is None else alike.library)
        with TURN:
            if key not in self._learnt:
                self._learnt[key] = learn(model, lambda: _unfilled(model, alike), networks.default_size(model))
            self._learnt.move_to_end(key)
            while len(self._learnt) > _REMEMBERED:
                self._learnt.popitem(last=False)
            return self._learnt[key]


def _unfilled(model: str, alike: Source | None) -> Any:
    network = networks.build(model, filled=False)
    if alike is not None:
        imitate(network, alike)
    return network


def _check_options(model: str, options: Mapping[str, Any]) -> None:
    for option in options:
        if option not in _OPTIONS:
            raise errors.CapabilityError(
                f"the backend 'mindspore' has no option {option!r}",
                f"some of {', '.join(_OPTIONS)}",
                option,
                errors.near_matches(option, _OPTIONS),
            )
    if options.get("padding", "torch") != "torch":
        raise errors.SpecError("the option 'padding' has one value", "'torch'", repr(options["padding"]))
    if not isinstance(options.get("ema", True), bool):
        raise errors.SpecError("the option 'ema' is a switch", "true or false", repr(options["ema"]))
    if "padding" in options and family_of(model) is None:
        raise errors.CapabilityError(
            f"no torch library is known to have mindcv's {model!r}, to compute alike",
            "a model whose names torch_names.toml holds",
            model,
            remedy="leave options={'padding': 'torch'} out",
        )


def _checkpoint(request: ExtractionRequest) -> Checkpoint | None:
    if request.weights in (None, "default") or synthetic_seed(request.weights) is not None:
        if "ema" in request.options:
            raise errors.CapabilityError(
                "the option 'ema' is for the file of a checkpoint", "its path, as weights", str(request.weights)
            )
        return None
    return read_checkpoint(str(request.weights), average=request.options.get("ema", True))


def _deviations(model: str, network: Any, alike: Source | None = None) -> tuple[str, ...]:
    family = family_of(model)
    if family is None:
        return ()
    return deviations(network, family.sources if alike is None else (alike,))


def _info(
    model: str, learnt: Learnt, preprocess: Preprocess, size: Size | None = None, deviating: Sequence[str] = ()
) -> ModelInfo:
    survey = learnt.survey
    size = size or survey.size
    features, native = survey.features(size), survey.natives(size)
    return ModelInfo("mindspore", model, size, features, preprocess, survey.rule, CAPABILITIES, deviating, native)
