"""What sets two runs apart, field by field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs

from featreg.engine.planning.selection import Selection
from featreg.errors import StoreMismatchError
from featreg.request import thaw
from featreg.sources import Source
from featreg.stores.layout import Manifest

__all__ = ["check_same_model", "check_same_run", "differences", "refuse", "same_model", "same_values"]


def differences(before: Mapping[str, Any], now: Mapping[str, Any], above: str = "") -> dict[str, tuple[Any, Any]]:
    """The fields in which two documents differ, by their dotted names: what was and what is, None where nothing is."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in [*before, *(name for name in now if name not in before)]:
        old, new, path = before.get(name), now.get(name), f"{above}{name}"
        if isinstance(old or new, Mapping) and isinstance(old, Mapping | None) and isinstance(new, Mapping | None):
            found |= differences(old or {}, new or {}, f"{path}.")
        elif old != new:
            found[path] = (old, new)
    return found


def same_values(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields of two fingerprints that may make other values; the number of a device does not."""
    return differences(_comparable(before), _comparable(now))


def same_model(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """As :func:`same_values`, of what the model gives: what is kept of it does not count."""
    return same_values(_without(before, "outputs"), _without(now, "outputs"))


def check_same_run(
    manifest: Manifest, fingerprint: Mapping[str, Any], source: Source, selection: Selection, uri: str
) -> None:
    """Raise StoreMismatchError, with every difference, unless a run would go on with what a store was begun with."""
    found = min((same_values(part.fingerprint, fingerprint) for part in manifest.groups.values()), key=len)
    record = manifest.source
    here = {"uri": source.uri, "options": thaw(source.options), **attrs.asdict(selection)}
    there = {name: value for name, value in attrs.asdict(record, recurse=False).items() if name in here}
    found |= {f"source.{name}": pair for name, pair in differences(_comparable(there), _comparable(here)).items()}
    refuse(
        found,
        f"the store {uri!r} was begun by another run, which this one cannot go on with",
        "another path, the arguments of the first run, or overwrite=True (--overwrite)",
    )


def check_same_model(before: Mapping[str, Any], now: Mapping[str, Any], uri: str) -> None:
    """Raise StoreMismatchError unless the layers of two fingerprints are those of one model, made in one way."""
    found = {name: pair for name, pair in same_model(before, now).items() if not name.startswith("request.")}
    refuse(
        found,
        f"the layers of the store {uri!r} come from another model than this machine has",
        "the weights and the versions of the store, or a store of its own",
    )


def refuse(found: Mapping[str, tuple[Any, Any]], problem: str, remedy: str) -> None:
    """Raise StoreMismatchError where there is a difference."""
    if found:
        lines = "".join(f"\n    {name}: {old!r} in the store, {new!r} now" for name, (old, new) in found.items())
        raise StoreMismatchError(
            f"{problem}:{lines}",
            "what the store was begun with",
            f"{len(found)} {'difference' if len(found) == 1 else 'differences'}",
            remedy=remedy,
        )


def _without(document: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}


def _comparable(document: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON would give it back, with the kind of device alone."""
    plain: dict[str, Any] = json.loads(json.dumps(thaw(document)))
    request = plain.get("request")
    if isinstance(request, dict) and isinstance(request.get("device"), str):
        request["device"] = request["device"].partition(":")[0]
    return plain
