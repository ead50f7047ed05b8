"""Projection heads of self-supervised training: what follows the pooled features, as the layer ``"head"``."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import attrs
import torch
from torch import nn

from featreg.plugin import FeatureInfo, Layer, WeightsReport, errors, map_in_order
from featreg_torch.weights import Checkpoint

__all__ = ["LAYER", "Projected", "build_projection", "check_head", "check_use", "projected_info", "report_head"]

LAYER = "head"
"""The layer that the projection's output is asked for by; it is taken from the layer ``"pooled"``."""

_SWITCHES = ("relu", "bn", "bias")
_EXAMPLE = "as in options={'head': {'mlp': [2048, 2048, 128], 'relu': True}}, with 'relu', 'bn' and 'bias' as needed"


class Projected(nn.Module):
    """A tap of the pooled features, followed by the projection."""

    def __init__(self, take: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.take = take
        self.projection = projection

    def forward(self, inputs: Any, output: Any) -> torch.Tensor:
        projected: torch.Tensor = self.projection(self.take(inputs, output))
        return projected


def projected_info(pooled: FeatureInfo, projection: nn.Sequential) -> FeatureInfo:
    """The description of the layer ``"head"``."""
    widths = [part.out_features for part in projection if isinstance(part, nn.Linear)]
    return attrs.evolve(pooled, name=LAYER, channels=widths[-1], head=None)


def check_head(options: Mapping[str, Any]) -> None:
    """Raise SpecError unless ``options["head"]``, where it is given, describes a multi-layer perceptron."""
    if "head" not in options:
        return
    head = options["head"]
    if not isinstance(head, Mapping) or "mlp" not in head:
        got = repr(dict(head) if isinstance(head, Mapping) else head)
        raise errors.SpecError("the option 'head' describes a projection", "a mapping with 'mlp'", got, (), _EXAMPLE)
    fields = ("mlp", *_SWITCHES)
    for name in head:
        if name not in fields:
            near = errors.near_matches(name, fields)
            problem = f"the option 'head' has no field {name!r}"
            raise errors.SpecError(problem, f"some of {', '.join(fields)}", repr(name), near, _EXAMPLE)
    for name in _SWITCHES:
        if not isinstance(head.get(name, True), bool):
            problem = f"{name!r} of the option 'head' is a switch"
            raise errors.SpecError(problem, "true or false", repr(head[name]), (), _EXAMPLE)
    if not _are_widths(head["mlp"]):
        problem, expected = "'mlp' of the option 'head' lists widths", "two or more positive whole numbers"
        raise errors.SpecError(problem, expected, repr(head["mlp"]), (), _EXAMPLE)


def _are_widths(value: Any) -> bool:
    several = isinstance(value, list | tuple) and len(value) > 1
    return several and all(type(width) is int and width > 0 for width in value)


def check_use(options: Mapping[str, Any], layers: Sequence[Layer], names: Collection[str]) -> None:
    """Raise CapabilityError for a projection that no layer gives; ``names`` are the network's own."""
    if "head" not in options:
        return
    if LAYER in names:
        raise errors.CapabilityError(
            "the option 'head' describes a projection, and this model has a layer 'head' of its own",
            "a model without one",
            remedy="leave the option out, and apply the projection to 'pooled' yourself",
        )
    if LAYER not in layers:
        remedy = f"add {LAYER!r} to the layers, or leave the option out"
        problem = "the option 'head' is for the layer 'head'"
        raise errors.CapabilityError(problem, repr(LAYER), str(list(layers)), remedy=remedy)


def build_projection(options: Mapping[str, Any], checkpoint: Checkpoint | None, width: int) -> nn.Sequential | None:
    """The projection that a request's options describe, or else a checkpoint holds, with the checkpoint's weights.

    None where there is neither. What the options leave open is taken from the checkpoint, as far as its names tell.
    ``width`` is that of the pooled features. Raises WeightsError for a checkpoint whose head is another one, or that
    does not say by itself what its head computes.
    """
    given = checkpoint.head if checkpoint is not None else {}
    described = options.get("head")
    if described is None and not given:
        return None
    described = _settle(described, given, "" if checkpoint is None else checkpoint.report.source)
    if described["mlp"][0] != width:
        raise _misfit(described["mlp"][0], width, checkpoint if given else None)
    projection = _build(**described)
    if given:
        names = map_in_order(given, projection.state_dict())
        projection.load_state_dict({names[name]: value for name, value in given.items()})
    elif checkpoint is not None:
        raise errors.WeightsError(
            f"{checkpoint.report.source!r} holds no projection head",
            "VISSL's heads beside its trunk",
            "a trunk alone",
            remedy="leave the layer 'head' out; with weights=None the option alone gives a random one",
        )
    return projection


def _misfit(given: int, width: int, checkpoint: Checkpoint | None) -> errors.FeatregError:
    expected, got = f"{width} features going in, those of the layer 'pooled'", str(given)
    if checkpoint is None:
        problem, remedy = "the option 'head' does not fit the model", f"begin 'mlp' with {width}"
        return errors.SpecError(problem, expected, got, remedy=remedy)
    return errors.WeightsError(
        f"the projection head of {checkpoint.report.source!r} does not fit the model",
        expected,
        got,
        remedy="open the architecture that the checkpoint is of, or leave the layer 'head' out",
    )


def report_head(
    report: WeightsReport | None,
    checkpoint: Checkpoint | None,
    projection: nn.Sequential | None,
    layers: Sequence[Layer],
) -> WeightsReport | None:
    """The report, with what became of a checkpoint's projection head."""
    if report is None or checkpoint is None or not checkpoint.head:
        return report
    why = "is the model's own" if LAYER in layers else "was not asked for"
    what = f"not loaded: the layer {LAYER!r} {why}" if projection is None else "loaded"
    return attrs.evolve(report, notes=(*report.notes, f"projection head of {len(checkpoint.head)} weights {what}"))


def _build(mlp: Sequence[int], relu: bool = False, bn: bool = False, bias: bool = True) -> nn.Sequential:
    parts: list[nn.Module] = []
    for position, (wide, narrow) in enumerate(pairwise(mlp)):
        parts.append(nn.Linear(wide, narrow, bias=bias))
        if position < len(mlp) - 2:
            parts += [nn.BatchNorm1d(narrow)] if bn else []
            parts += [nn.ReLU()] if relu else []
    return nn.Sequential(*parts)


def _settle(described: Mapping[str, Any] | None, head: Mapping[str, torch.Tensor], source: str) -> dict[str, Any]:
    """What a head computes: as the options describe it, completed by the names of its weights.

    Raises WeightsError where neither says it, or where they contradict each other.
    """
    told = _read_off(head)
    if told is None and described is None:
        raise errors.WeightsError(
            f"the projection head of {source!r} does not say by itself what it computes",
            "one multi-layer perceptron: 0.clf.0, 0.clf.2, …",
            ", ".join(_layers(head)),
            remedy="describe it: options={'head': {'mlp': [2048, 2048, 128], 'relu': True}}",
        )
    settled = {**(told or {}), **(described or {})}
    if told is not None and _kinds(settled) != _kinds(told):
        raise errors.WeightsError(
            f"the projection head of {source!r} is not as the option 'head' describes it",
            str(_kinds(settled)),
            f"{_kinds(told)}, by the names {', '.join(_layers(head))}",
            remedy=f"leave the option out, or pass {told}",
        )
    return settled


def _kinds(description: Mapping[str, Any]) -> list[str]:
    with torch.device("meta"):
        return [str(part) for part in _build(**description)]


def _layers(head: Mapping[str, torch.Tensor]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in head))


def _read_off(head: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    """What a head computes, where its names tell: ``0.clf.0``, ``0.clf.2`` leave one place for an activation.

    None elsewhere: a head in several parts (``0.clf.0``, ``1.clf.0``) may have an activation at the end of each, and no
    name says so.
    """
    layers = _layers(head)
    places = [place for layer in layers if (place := re.fullmatch(r"(.+\.clf)\.(\d+)", layer))]
    linear = [head[name] for name in head if name.endswith(".weight") and head[name].ndim == 2]
    if len(places) < len(layers) or len({place[1] for place in places}) != 1 or not linear:
        return None
    silent = int(places[-1][2]) - int(places[0][2]) + 1 - len(layers)
    return {
        "mlp": [linear[0].shape[1], *(weight.shape[0] for weight in linear)],
        "relu": silent > 0,
        "bn": len(layers) > len(linear),
        "bias": f"{layers[0]}.bias" in head,
    }
