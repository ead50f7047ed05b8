"""The raw network's levels and heads, from whichever source its library has, against those of a description."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from zoo.completeness import Entry, check_classifier, check_declaration, check_embeddings, check_stages, stride_of
from zoo.oracles import Oracle, RawRefusal
from zoo.records import Finding
from zoo.stages import find_stages
from zoo.survey import Survey

__all__ = ["check_layers"]


def check_layers(features: Sequence[Any], survey: Survey, oracle: Oracle) -> Iterator[Finding]:
    """Levels by the library's declaration, else by the stages of the raw network, and heads by what it returns."""
    entries = oracle.declared()
    strides = [_stride(entry, survey, oracle) for entry in entries]
    if entries:
        yield from check_declaration(features, entries, strides)
    else:
        yield from check_stages(features, find_stages(survey, oracle.encoder), survey, oracle.dilated)
    check_heads = check_embeddings if oracle.has_texts else check_classifier
    yield from check_heads(features, survey)


def _stride(entry: Entry, survey: Survey, oracle: Oracle) -> int | None:
    """The stride of what an entry's module gives, else of what its other names give, which takes another pass."""
    module, *others = entry.names
    found = stride_of(entry, survey.outputs.get(module, ()), survey)
    if found is not None or not others:
        return found
    try:
        seen = oracle.shapes(others, survey.size)
    except RawRefusal:
        return None
    strides = (stride_of(entry, seen.get(name, ()), survey) for name in others)
    return next((stride for stride in strides if stride is not None), None)
