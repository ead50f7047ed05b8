"""What a sweep's records amount to: nothing, or the list of what must be mended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from zoo.records import Record

__all__ = ["QUOTAS", "complaints", "missing"]

QUOTAS = {"mindspore": 0.05, "torchvision": 0.08}
"""The part of a zoo that may be refused; 1 % where nothing is said. What mindcv itself cannot run is not counted.

Nine of torchvision's 121 networks take clips: their maps have a time axis, for which the specification has no kind.
"""
_QUOTA = 0.01
_UPSTREAM_FREE = frozenset({"mindspore"})


def complaints(
    records: Sequence[Record], catalogue: Mapping[str, Sequence[str]], lists: Mapping[str, Mapping[str, str]]
) -> Iterator[str]:
    """One line for each thing that is wrong; none means that the sweep passes.

    ``lists`` holds the refusals of each backend. The quota is looked at in zoos that were swept whole.
    """
    for record in records:
        if record.status in ("wrong", "failed"):
            yield f"{record.id}: {record.status}: {_why(record)}"
    for backend, models in sorted(catalogue.items()):
        for model in sorted(set(lists.get(backend, {})) - set(models)):
            yield f"{backend}:{model}: on the list of refusals, but no model of the library"
        yield from _over_quota(backend, len(models), [record for record in records if record.backend == backend])


def missing(catalogue: Mapping[str, Sequence[str]], library: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """One line for each model that a library lists and its backend does not."""
    for backend, models in sorted(library.items()):
        for model in sorted(set(models) - set(catalogue.get(backend, ()))):
            yield f"{backend}:{model}: a model of the library that featreg does not list"


def _why(record: Record) -> str:
    if record.status == "failed":
        return f"{record.kind}: {record.reason}"
    if not record.findings and record.values is not None:
        return f"values {record.values.outcome}: {record.values.detail}"
    first = record.findings[0]
    more = f" (and {len(record.findings) - 1} more)" if len(record.findings) > 1 else ""
    return f"{first.what}: expected {first.expected}, got {first.got}{more}"


def _over_quota(backend: str, size: int, records: Sequence[Record]) -> Iterator[str]:
    if len(records) < size:
        return
    free = backend in _UPSTREAM_FREE
    refused = [r for r in records if r.status == "refused" and not (free and r.upstream)]
    allowed = int(QUOTAS.get(backend, _QUOTA) * size)
    if len(refused) > allowed:
        yield f"{backend}: {len(refused)} of {size} models are refused; {allowed} may be"
