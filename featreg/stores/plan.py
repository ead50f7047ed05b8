"""What is known of a pass before it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import attrs

from featreg.spec import ExtractionRequest
from featreg.stores.layout import IndexPart, InputRecord, LayerRecord, Pass, SourceRecord
from featreg.stores.places.place import Place

__all__ = ["Plan", "Planner"]


@attrs.frozen
class Plan:
    """What is known of a pass before its samples are counted; of the source some things are known after only."""

    request: ExtractionRequest
    fingerprint: Mapping[str, Any]
    layers: tuple[LayerRecord, ...]
    source: SourceRecord | Callable[[], SourceRecord]
    task_rows: int
    batch_size: int = 32
    origin: Literal["model", "store"] = "model"
    inputs: tuple[InputRecord, ...] = ()

    @classmethod
    def of(cls, part: Pass, source: SourceRecord | Callable[[], SourceRecord]) -> Plan:
        """The plan of more rows of the layers of a pass, made as those are: what they have learnt stays as it is."""
        names = {"request", "fingerprint", "layers", "task_rows", "batch_size", "origin", "inputs"}
        return cls(source=source, **{name: getattr(part, name) for name in names})


Planner: TypeAlias = Callable[[Place, Sequence[IndexPart]], Plan]
"""Makes the plan of a store whose index is written and whose first pass is not: it may learn from the samples."""
