"""The raw network's levels and heads, from whichever source its library has, against those of a description."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zoo.completeness import Entry, check_classifier, check_declaration, check_embeddings, check_stages, stride_of
from zoo.oracles import Oracle, RawRefusal
from zoo.records import Finding
from zoo.stages import find_stages
from zoo.survey import Shape, Survey

__all__ = ["check_layers"]


def check_layers(features: Sequence[Any], survey: Survey, oracle: Oracle) -> Iterator[Finding]:
    """Levels by the library's declaration, else by the stages of the raw network, and heads by what it returns."""
    entries = oracle.declared()
    strides = _strides(entries, survey, oracle)
    if entries:
        yield from check_declaration(features, entries, strides)
    else:
        yield from check_stages(features, find_stages(survey, oracle.encoder), survey, oracle.dilated)
    check_heads = check_embeddings if oracle.has_texts else check_classifier
    yield from check_heads(features, survey)


def _strides(entries: Sequence[Entry], survey: Survey, oracle: Oracle) -> list[int | None]:
    """The stride of what each entry's module gives, else of what its other names give, which takes another pass."""
    found = [stride_of(entry, survey.outputs.get(entry.names[0], ()), survey) for entry in entries]
    open_entries = [entry for entry, stride in zip(entries, found, strict=True) if stride is None]
    seen = _seen([name for entry in open_entries for name in entry.names[1:]], survey, oracle)
    return [
        _first(stride_of(entry, seen.get(name, ()), survey) for name in entry.names[1:]) if stride is None else stride
        for entry, stride in zip(entries, found, strict=True)
    ]


def _seen(names: Sequence[str], survey: Survey, oracle: Oracle) -> Mapping[str, Shape]:
    """The shapes of what has these names, from one pass; where it fails, from a pass for each of them."""
    if not names:
        return {}
    try:
        return oracle.shapes(names, survey.size)
    except RawRefusal:
        alone = [_seen([name], survey, oracle) for name in names] if len(names) > 1 else []
        return {name: shape for shapes in alone for name, shape in shapes.items()}


def _first(strides: Iterator[int | None]) -> int | None:
    return next((stride for stride in strides if stride is not None), None)
