"""What a run will take, before it begins: rows, bytes, room on the disk, and a guess at the time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import attrs

from featreg.engine.planning.passes import row_bytes
from featreg.engine.planning.probe import Probe
from featreg.errors import StoreFullError
from featreg.extractor import Extractor
from featreg.spec import Layer
from featreg.steps import PCA
from featreg.stores.layout import LayerRecord, Manifest, Pass
from featreg.stores.places.place import LocalPlace, Place
from featreg.stores.receipts import finished_tasks
from featreg.stores.writer import Plan

__all__ = ["Estimate", "LayerEstimate", "estimate_addition", "estimate_plan", "estimate_store", "free_bytes"]


@attrs.frozen
class LayerEstimate:
    """One layer: the shape and the type of a row, and the bytes of all rows, before any compression.

    ``at_most`` says that a derived layer may come out narrower: a share of the variance takes what the fit tells.
    """

    key: Layer
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    at_most: bool = False


@attrs.frozen
class Estimate:
    """What a run will take. Counts are exact, bytes are those of the features alone, and seconds are a guess.

    ``rows_left`` and ``bytes_left`` are still to be done: all, or what an earlier run has left, where a row counts once
    for each pass. What ``adds`` layers or rows to a store counts these in ``rows``, ``layers`` and ``bytes``, and what
    was left there before, and rows in shards that grow, in ``rows_left`` and ``bytes_left`` as well. ``free`` is None
    where nobody knows how much room there is, as at a URL. ``seconds`` is for one worker, without what the derived
    layers ``to_fit`` have to learn first; it and ``probe`` are None where nothing was tried out.
    """

    store: str
    model: str
    rows: int
    rows_left: int
    layers: tuple[LayerEstimate, ...]
    bytes: int
    bytes_left: int
    task_rows: int
    task_bytes: int
    free: int | None
    probe: Probe | None = None
    seconds: float | None = None
    to_fit: tuple[Layer, ...] = ()
    resumed: bool = False
    adds: Literal["layers", "rows"] | None = None

    def check_room(self) -> None:
        """Raise StoreFullError where the disk has not the room for what is left."""
        if self.free is not None and self.bytes_left > self.free:
            raise StoreFullError(
                f"the disk of the store {self.store!r} has not the room for its features",
                f"{self.bytes_left:,} bytes",
                f"{self.free:,} bytes free",
                remedy=self._remedy,
            )

    @property
    def _remedy(self) -> str:
        """What helps where there is no room: the layers of a store that is there are what they are."""
        less = "fewer layers, a pooling or store_dtype='float16' (--store-dtype float16) take less"
        if self.resumed:
            return "make room and run it again: what is finished is kept"
        if self.adds is None:
            return f"make room, or another path; {less}"
        kept = "the store is as it was"
        return f"make room; {less}; {kept}" if self.adds == "layers" else f"make room; {kept}"

    def document(self) -> dict[str, Any]:
        """The same as plain data."""
        return attrs.asdict(self)


def estimate_plan(
    uri: str, plan: Plan, rows: int, *, extractor: Extractor, probed: Probe | None, free: int | None
) -> Estimate:
    """What a new store of some rows will take."""
    layers = tuple(_layer(layer, rows) for layer in plan.layers)
    total, row = sum(layer.bytes for layer in layers), row_bytes(plan.layers)
    rate = None if probed is None else probed.rate(together=extractor.request.device == "cpu")
    return Estimate(
        store=uri,
        model=plan.request.model,
        rows=rows,
        rows_left=rows,
        layers=layers,
        bytes=total,
        bytes_left=total,
        task_rows=plan.task_rows,
        task_bytes=min(plan.task_rows, rows) * row,
        free=free,
        probe=probed,
        seconds=None if rate is None else rows / rate,
        to_fit=tuple(layer.key for layer in plan.layers if _learns(layer)),
    )


def estimate_store(place: Place, manifest: Manifest, passes: Sequence[Pass] | None = None) -> Estimate:
    """What is left to do in a store that is there, or in some of its passes."""
    passes = manifest.passes if passes is None else passes
    left = {part.number: _rows_left(place, part) for part in passes}
    layers = tuple(_layer(layer, manifest.rows) for layer in manifest.layers)
    first = manifest.passes[0]
    return Estimate(
        store=place.uri,
        model=manifest.request.model,
        rows=manifest.rows,
        rows_left=sum(left.values()),
        layers=layers,
        bytes=sum(layer.bytes for layer in layers),
        bytes_left=sum(_rows_to_write(place, part) * row_bytes(part.layers) for part in passes),
        task_rows=first.task_rows,
        task_bytes=min(first.task_rows, manifest.rows) * row_bytes(first.layers),
        free=free_bytes(place),
        resumed=True,
    )


def estimate_addition(
    place: Place,
    manifest: Manifest,
    layers: Sequence[LayerRecord],
    rows: int,
    *,
    adds: Literal["layers", "rows"],
    task_rows: int,
    passes: Sequence[Pass] | None = None,
) -> Estimate:
    """What some more layers of a store take over its rows, or some more rows of its layers.

    ``passes`` are those that are completed together with it: all of the store where it is None.
    """
    before = estimate_store(place, manifest, passes)
    found = tuple(_layer(layer, rows) for layer in layers)
    total = sum(layer.bytes for layer in found)
    groups = tuple(manifest.groups.values()) if adds == "rows" and rows else ()
    again = sum(manifest.rows % part.task_rows * row_bytes(part.layers) for part in groups)  # in shards that grow
    return attrs.evolve(
        before,
        rows=rows,
        rows_left=before.rows_left + max(len(groups), 1) * rows,
        layers=found,
        bytes=total,
        bytes_left=before.bytes_left + total + again,
        task_rows=task_rows,
        task_bytes=min(task_rows, rows) * row_bytes(layers),
        to_fit=tuple(layer.key for layer in layers if _learns(layer)),
        resumed=False,
        adds=adds,
    )


def free_bytes(place: Place) -> int | None:
    """How much room there is where a store is, or would be; None where nobody knows."""
    if isinstance(place, LocalPlace):
        there = next(path for path in (place.root, *place.root.parents) if path.exists())
        return LocalPlace(there).free_bytes()
    return place.free_bytes()


def _layer(layer: LayerRecord, rows: int) -> LayerEstimate:
    steps = layer.recipe.steps if layer.recipe is not None and _learns(layer) else ()
    share = any(isinstance(step, PCA) and step.variance is not None for step in steps)
    return LayerEstimate(layer.key, layer.shape, layer.dtype, rows * row_bytes([layer]), share)


def _learns(layer: LayerRecord) -> bool:
    return layer.recipe is not None and bool(layer.recipe.passes) and layer.fit is None


def _rows_to_write(place: Place, part: Pass) -> int:
    """Those that are left, and those that lie in a shard with one of them."""
    return part.written_rows(finished_tasks(place, part))


def _rows_left(place: Place, part: Pass) -> int:
    done = finished_tasks(place, part)
    return sum(task.rows for task in part.iter_tasks() if task.number not in done)
