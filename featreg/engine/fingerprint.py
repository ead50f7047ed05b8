"""What decides the values of the features, as plain data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import featreg
from featreg import serialize
from featreg.extractor import Extractor
from featreg.images import DECODER
from featreg.registry import Registry
from featreg.spec import ExtractionRequest
from featreg.stores.disk import sha256

__all__ = ["fingerprint"]


def fingerprint(extractor: Extractor, registry: Registry) -> dict[str, Any]:
    """The request, the preprocessing, the decoder, the weights and the versions of everything that computes.

    Two runs with equal fingerprints over equal bytes give equal features, up to the rounding of the machine.
    """
    return {
        "request": serialize.to_dict(extractor.request),
        "preprocess": serialize.to_dict(extractor.preprocess),
        "decoder": _plain(DECODER),
        "weights": _weights(extractor.request),
        "versions": _versions(extractor.info.backend, registry),
    }


def _weights(request: ExtractionRequest) -> str:
    """What the weights are; of a file the hash, since a path says nothing about its content."""
    if request.weights is None:
        return "none: seeded random init"
    if os.path.isfile(request.weights):
        return f"sha256:{sha256(Path(request.weights))}"
    return f"tag: {request.weights}"


def _versions(backend: str, registry: Registry) -> dict[str, str]:
    """The version of featreg, of the backend's distribution and of what it requires."""
    from packaging.requirements import Requirement

    plugin = registry.plugin(backend)
    versions = {"featreg": featreg.__version__, plugin.distribution or plugin.target: plugin.version}
    for text in registry.spec(backend).requirements:
        name = Requirement(text).name
        versions[name] = _version(name)
    return versions


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # a requirement whose marker does not apply here
        return "not installed"


def _plain(value: Any) -> Any:
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value
