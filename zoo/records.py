"""What the sweep notes down of a model, and its JSON form."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import attrs
import cattrs
from cattrs.gen import make_dict_unstructure_fn

__all__ = ["Finding", "Layer", "Record", "SizeCheck", "Task", "ValueCheck", "from_plain", "to_plain"]

Status = Literal["exact", "wrong", "refused", "failed"]
Size = tuple[int, int]
"""(height, width) in pixels."""


@attrs.frozen
class Task:
    """One model to judge; ``real`` asks for the comparison of values too."""

    backend: str
    model: str
    real: bool = False
    seed: int = 0

    @property
    def id(self) -> str:
        """``backend:model``."""
        return f"{self.backend}:{self.model}"


@attrs.frozen
class Layer:
    """One level or head as featreg describes it at the model's own size."""

    key: str
    name: str
    kind: str
    channels: int
    reduction: int | None = None
    rounding: str | None = None
    prefix_tokens: int = 0


@attrs.frozen
class SizeCheck:
    """One input size. ``outcome`` says how the two sides compare.

    ``exact``: every layer has the predicted shape. ``wrong``: not so. ``refused``: both sides refuse the size.
    ``stricter``: featreg refuses a size outside its rule that the library takes.
    """

    size: Size
    outcome: Literal["exact", "wrong", "refused", "stricter"]


@attrs.frozen
class ValueCheck:
    """The comparison of values; ``detail`` says what differs or went wrong, or why the comparison was skipped."""

    outcome: Literal["equal", "different", "failed", "skipped"]
    detail: str = ""


@attrs.frozen
class Finding:
    """Something that does not hold: what was looked at, what was expected, and what was got."""

    what: str
    expected: str
    got: str


@attrs.frozen
class Record:
    """The outcome of one model.

    ``reason`` is that of the list for a refusal, and the error for a failure. Its ``kind`` tells who failed:
    ``featreg``, the ``oracle``, the ``judge``, the list (``unlisted``, ``stale``) or the worker (``timeout``,
    ``memory``, ``crash``). ``upstream`` is the library's error where it cannot build or run the model itself.
    ``how`` names what the library was run on: ``meta``, ``fake`` or ``real`` tensors; ``opened`` says whether featreg's
    extractor was opened and run on real ones. ``unchecked`` names layers that
    the library cannot make without files that are not here. Times are CPU seconds of one thread.
    """

    id: str
    status: Status
    kind: str = ""
    reason: str = ""
    upstream: str = ""
    input_size: Size | None = None
    input_rule: str = ""
    layers: tuple[Layer, ...] = ()
    indices: int = 0
    sizes: tuple[SizeCheck, ...] = ()
    how: str = ""
    values: ValueCheck | None = None
    opened: bool = False
    unchecked: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    featreg_seconds: float = 0.0
    oracle_seconds: float = 0.0
    opening_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """CPU seconds of all sides."""
        return self.featreg_seconds + self.oracle_seconds + self.opening_seconds

    @property
    def backend(self) -> str:
        """The backend's name."""
        return self.id.partition(":")[0]

    @property
    def model(self) -> str:
        """The model's name without the backend."""
        return self.id.partition(":")[2]

    @property
    def settled(self) -> bool:
        """Whether another run of the same code would say the same: a worker's end may have had other causes."""
        return self.kind not in ("timeout", "memory", "crash")


@functools.cache
def _converter() -> cattrs.Converter:
    """Fields that hold their default are left out: most records are short."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    for cls in (Layer, SizeCheck, ValueCheck, Finding, Record):
        converter.register_unstructure_hook(cls, make_dict_unstructure_fn(cls, converter, _cattrs_omit_if_default=True))
    return converter


def to_plain(record: Record) -> dict[str, Any]:
    """A record as what JSON has."""
    plain: dict[str, Any] = _converter().unstructure(record)
    return plain


def from_plain(plain: Mapping[str, Any]) -> Record:
    """The record that :func:`to_plain` gave; raises what cattrs raises for another form."""
    return _converter().structure(plain, Record)
