"""Layers that are derived from those of a store: no model and no source is opened for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from featreg.derived import FittedRecipe, Rows, Sweep, fit_together, row_slices, width_of
from featreg.engine.loop.block import Block
from featreg.engine.loop.keeping import shapes_of
from featreg.engine.loop.options import Options
from featreg.errors import StoreError
from featreg.recipe import Recipe
from featreg.spec import Layer
from featreg.stores.layout import InputRecord, Manifest, Pass, Task
from featreg.stores.places.place import Place
from featreg.stores.reading.reader import FeatureStore
from featreg.stores.receipts import Ledger
from featreg.stores.staging import place_staged
from featreg.stores.writer import StoreWriter

__all__ = ["StoredInputs", "derive_tasks", "input_record"]

Integers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Floats: TypeAlias = np.ndarray[Any, Any]


class StoredInputs:
    """The layers of a store that recipes take, as they are read block by block."""

    def __init__(self, place: Place, keys: Collection[Layer]) -> None:
        place_staged(place)  # of tasks that have their receipts, a killed worker may have left the shards on the way
        self._store = FeatureStore(place)
        self._ledger = Ledger(place)
        self._arrays = {key: self._store[key] for key in keys}
        self.given = tuple(input_record(self._store.manifest, key) for key in self._arrays)

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(self._store)

    def fit(self, recipes: Sequence[Recipe], count: int | None = None) -> dict[str, FittedRecipe]:
        """Recipes fitted, by their names, on the first ``count`` rows, or on all."""
        count = self.count if count is None else count
        shapes = {recipe.name: shapes_of(recipe, self.given) for recipe in recipes}
        return fit_together(recipes, shapes, count, self._sweep(count))

    def read(self, rows: slice | Integers) -> dict[Layer, Floats]:
        """Some rows of every layer."""
        return {key: np.asarray(array[rows]) for key, array in self._arrays.items()}

    def has(self, start: int, stop: int) -> bool:
        """Whether the rows from ``start`` to before ``stop`` were done when this was opened."""
        pending = self._store.pending
        return not any(task in pending for part in self._passes for task in part.tasks_of(start, stop))

    def blocks(self, start: int, stop: int) -> Iterator[slice]:
        """The rows from ``start`` to before ``stop``, as many at a time as memory is meant for."""
        for block in row_slices(stop - start, self._width):
            yield slice(start + block.start, start + block.stop)

    def errors(self, start: int, stop: int) -> dict[int, str]:
        """Why rows failed in the passes that have these layers, by their numbers."""
        found: dict[int, str] = {}
        for part in self._passes:
            for task, receipt in self._ledger.over(part, start, stop):
                if receipt is None or task in self._store.pending:
                    raise _not_there(self._store.uri, part, task)
                for row, message in receipt.errors.items():
                    found.setdefault(int(row), str(message))
        return {row: message for row, message in found.items() if start <= row < stop}

    @property
    def _passes(self) -> Iterator[Pass]:
        """Those with some of these layers."""
        for part in self._store.manifest.passes:
            if not self._arrays.keys().isdisjoint(layer.key for layer in part.layers):
                yield part

    @property
    def _width(self) -> int:
        return width_of(tuple(one.shape for one in self.given))

    def _sweep(self, count: int) -> Sweep:
        infos = {one.key: one.info for one in self.given}

        def sweep(numbers: Integers | None) -> Iterable[Rows]:
            for block in self.blocks(0, count if numbers is None else len(numbers)):
                some = np.arange(block.start, block.stop) if numbers is None else numbers[block]
                yield Rows(some, self.read(block if numbers is None else some), infos)

        return sweep


def derive_tasks(
    writer: StoreWriter, part: Pass, tasks: Iterable[Task], options: Options
) -> Iterator[tuple[Task, int, bool]]:
    """Compute and commit the tasks of a pass that derives layers of a store, but those that have their receipt.

    Gives each with its failed rows and whether it was committed here. A row that failed in a layer that it is made of
    fails as well, for the same reason. Raises StoreError where the rows that it is made of are not done.
    """
    inputs: StoredInputs | None = None
    for task in tasks:
        if writer.is_finished(task):
            continue
        if inputs is None or not inputs.has(task.start, task.stop):  # others have done these rows since
            inputs = StoredInputs(writer.place, [given.key for given in part.inputs])
        block = Block(part, task, options, writer.fitted(part))
        failed = inputs.errors(task.start, task.stop)
        for rows in inputs.blocks(task.start, task.stop):
            ours = {row - rows.start: message for row, message in failed.items() if rows.start <= row < rows.stop}
            block.put(rows.start - task.start, inputs.read(rows), ours)
        yield task, len(block.errors), writer.commit(task, block.features, block.errors)


def input_record(manifest: Manifest, key: Layer) -> InputRecord:
    """What a layer of a store is to a recipe that takes it."""
    record = next(layer for layer in manifest.layers if layer.key == key)
    return InputRecord(key, record.info, record.shape)


def _not_there(uri: str, part: Pass, task: Task) -> StoreError:
    return StoreError(
        f"rows {task.start} to {task.stop - 1} of the store {uri!r} are not done, from which layers are derived",
        f"a receipt for {task.receipt!r}",
        "none",
        remedy="featreg worker STORE completes both",
    )
