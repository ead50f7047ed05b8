"""What an export holds, whatever its format: named arrays that come in blocks of rows, and a table of the samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np

import featreg
from featreg import serialize
from featreg.spec import Layer
from featreg.stores.layout import Pass
from featreg.stores.reading.npy import array_name, layer_blocks
from featreg.stores.reading.records import as_targets
from featreg.stores.reading.rows import Rows

__all__ = ["Content", "Entry", "content_of"]

Values: TypeAlias = np.ndarray[Any, Any]

TARGETS = "targets"
"""The array of the targets, -1 where a row has none; another number behind it where a layer has that name."""


@attrs.frozen
class Entry:
    """One array of an export; ``layer`` is None for the targets."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Callable[[], Iterator[Values]]
    layer: Layer | None = None

    @property
    def nbytes(self) -> int:
        """What it weighs."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@attrs.frozen
class Content:
    """All that is exported."""

    rows: Rows
    entries: tuple[Entry, ...]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The keys of the layers."""
        return tuple(entry.layer for entry in self.entries if entry.layer is not None)

    def document(self, kind: str, homes: Mapping[str, str], files: Sequence[str]) -> str:
        """``export.json``: where each array is and what it holds, and what computed it."""
        arrays = {entry.name: _describe(entry, homes[entry.name]) for entry in self.entries if entry.name in homes}
        return json.dumps(
            {
                "featreg": featreg.__version__,
                "format": kind,
                "rows": len(self.rows),
                "files": list(files),
                "arrays": arrays,
                "classes": self.rows.classes,
                "passes": [_origin(part) for part in self.rows.manifest.passes],
            },
            indent=2,
        )


def content_of(rows: Rows, layers: Sequence[Layer]) -> Content:
    """The layers, and the targets where the store has any."""
    entries = [_layer(rows, layer) for layer in layers]
    if rows.targets is not None:
        taken = {entry.name.casefold() for entry in entries}
        name = next(name for name in (TARGETS, *map(f"{TARGETS}-{{}}".format, range(2, 99))) if name not in taken)
        entries.append(Entry(name, (len(rows),), np.dtype(np.int64), lambda: _targets(rows)))
    return Content(rows, tuple(entries))


def _targets(rows: Rows) -> Iterator[Values]:
    return (as_targets(block["target"]) for block in rows.iter_samples())


def _layer(rows: Rows, layer: Layer) -> Entry:
    array = rows[layer]
    return Entry(array_name(rows, layer), array.shape, array.dtype, lambda: layer_blocks(rows, layer), array.key)


def _origin(part: Pass) -> dict[str, Any]:
    """What computed some layers of some rows."""
    recipes = {str(layer.key): str(layer.recipe) for layer in part.layers if layer.recipe is not None}
    return {
        "layers": [layer.key for layer in part.layers],
        **({"recipes": recipes} if recipes else {}),
        "rows": [part.start, part.stop],
        "request": serialize.to_dict(part.request),
        "fingerprint": serialize.to_dict(part.fingerprint),
    }


def _describe(entry: Entry, file: str) -> dict[str, Any]:
    return {"layer": entry.layer, "file": file, "shape": list(entry.shape), "dtype": str(entry.dtype)}
