"""The JSON documents of a store: sealed with a checksum, so that a single flipped bit in one is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from featreg import serialize
from featreg.errors import SpecError, StoreDamagedError

__all__ = ["damaged", "digest", "parse", "seal", "unseal"]

T = TypeVar("T")

_SEAL = "sha256"


def seal(value: Any) -> bytes:
    """A document as the bytes of its file: JSON, with the SHA-256 of its content as the last field."""
    return _sealed(serialize.to_dict(value))


def digest(value: Any) -> str:
    """The SHA-256 that is in a document: what other documents call it by."""
    return _digest(serialize.to_dict(value))


def unseal(kind: type[T], data: bytes, name: str) -> T:
    """The document in a file; raises StoreDamagedError, with its name, for anything that :func:`seal` never wrote."""
    plain = parse(data, name)
    content = {key: value for key, value in plain.items() if key != _SEAL}
    if _sealed(content) != data:
        raise damaged(name, "content that its checksum does not fit")
    try:
        return serialize.from_dict(kind, content)
    except SpecError as error:
        raise damaged(name, error.problem) from error


def parse(data: bytes, name: str) -> dict[str, Any]:
    """The fields of a document, the checksum among them and not looked at; raises StoreDamagedError."""
    try:
        plain = json.loads(data)
    except ValueError as error:
        raise damaged(name, f"{type(error).__name__}: {error}") from error
    if not isinstance(plain, dict):
        raise damaged(name, type(plain).__name__)
    return plain


def damaged(name: str, got: str, expected: str = "a document as featreg writes it") -> StoreDamagedError:
    """The error for a file of a store that is not as it was written."""
    return StoreDamagedError(f"{name!r} is damaged", expected, got, remedy="featreg repair STORE")


def _sealed(content: Mapping[str, Any]) -> bytes:
    return json.dumps({**content, _SEAL: _digest(content)}, indent=2).encode() + b"\n"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
