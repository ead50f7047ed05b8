"""What decides the values of the features, as plain data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import featreg
from featreg import serialize
from featreg.engine.planning.outputs import Outputs
from featreg.extractor import Extractor
from featreg.hookspecs import PROJECT
from featreg.images import DECODER
from featreg.registry import Registry

__all__ = ["derived_fingerprint", "fingerprint"]


def fingerprint(extractor: Extractor, registry: Registry, outputs: Outputs | None = None) -> dict[str, Any]:
    """The request, the preprocessing, the decoder, the weights and the versions of everything that computes.

    What is kept of the ``outputs`` is part of it where that is not simply what was requested. Two runs with equal
    fingerprints over equal bytes give equal features, up to the rounding of the machine.
    """
    kept = {} if outputs is None else outputs.document
    return {**({"outputs": kept} if kept else {}), **_of_model(extractor, registry)}


def derived_fingerprint(outputs: Outputs) -> dict[str, Any]:
    """That of layers that are derived from those of a store, which no model computes."""
    return {"outputs": outputs.document, "versions": {"featreg": featreg.__version__}}


def _of_model(extractor: Extractor, registry: Registry) -> dict[str, Any]:
    return {
        "request": serialize.to_dict(extractor.request),
        "preprocess": serialize.to_dict(extractor.preprocess),
        "decoder": _plain(DECODER),
        "weights": extractor.weights_identity(),
        "versions": _versions(extractor.info.backend, registry),
    }


def _versions(backend: str, registry: Registry) -> dict[str, str]:
    """The version of featreg, of the backend's distribution, and of what is installed of all that it requires."""
    plugin = registry.plugin(backend)
    versions = {"featreg": featreg.__version__, plugin.distribution or plugin.target: plugin.version}
    required = _names(registry.spec(backend).requirements) | _required(plugin.distribution)
    for name in sorted(required - set(map(canonicalize_name, versions))):
        with contextlib.suppress(metadata.PackageNotFoundError):  # a marker that does not apply here, or an extra
            versions[name] = metadata.version(name)
    return versions


def _required(distribution: str) -> set[str]:
    """What a distribution requires, in any extra; of those that build on featreg too, what they require in turn.

    Not what the core requires: that is no part of any model.
    """
    found: set[str] = set()
    waiting = {str(canonicalize_name(distribution))} - {"", PROJECT}
    while waiting:
        try:
            names = _names(metadata.requires(waiting.pop()) or ())
        except metadata.PackageNotFoundError:
            continue
        if PROJECT in names:
            waiting |= names - found - {PROJECT}
            found |= names
    return found


def _names(requirements: Iterable[str]) -> set[str]:
    return {str(canonicalize_name(Requirement(text).name)) for text in requirements}


def _plain(value: Any) -> Any:
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value
