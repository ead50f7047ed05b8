"""Rows as a torch dataset. The only module of featreg that makes something of torch, and only when it is called."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from featreg.extras import extra
from featreg.spec import Layer
from featreg.stores.reading.identity import Identity
from featreg.stores.reading.rows import Rows, as_layers
from featreg.stores.reading.views import StoreView

__all__ = ["torch_dataset"]


def torch_dataset(rows: Rows, layers: Layer | Sequence[Layer] | None) -> Any:
    """The dataset behind :meth:`featreg.stores.reading.rows.Rows.to_torch`."""
    numbers = rows.rows if isinstance(rows, StoreView) else None
    return _dataset_class()(rows.uri, numbers, layers, rows.identity, rows)


def _reopen(uri: str, numbers: Any, layers: Any, identity: Identity) -> Any:
    return _dataset_class()(uri, numbers, layers, identity, None)


@functools.cache
def _dataset_class() -> Any:
    """The class, made when torch is first needed."""
    with extra("torch", "torch datasets"):
        torch = importlib.import_module("torch")

    class FeatureDataset(torch.utils.data.Dataset):  # type: ignore[name-defined, misc]  # torch is no dependency
        """Rows of a store by position; every process that reads has a store of its own."""

        def __init__(self, uri: str, numbers: Any, layers: Any, identity: Identity, rows: Rows | None) -> None:
            self.uri, self.numbers, self.layers = uri, numbers, layers
            self._identity, self._rows, self._process = identity, rows, os.getpid()

        def __reduce__(self) -> Any:
            return _reopen, (self.uri, self.numbers, self.layers, self._identity)

        @property
        def rows(self) -> Rows:
            """The rows, reopened where this is another process than the one that opened them."""
            if self._rows is None or self._process != os.getpid():
                self._rows, self._process = _open(self.uri, self.numbers, self._identity), os.getpid()
            return self._rows

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, position: int) -> dict[str, Any]:
            item: dict[str, Any] = self.__getitems__([position])[0]
            return item

        def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Any]]:
            """Several rows, read at once: what a DataLoader asks for a batch."""
            rows, count = self.rows, len(self)
            asked = np.asarray(positions, np.int64)
            for position in asked[(asked < -count) | (asked >= count)].tolist():
                raise IndexError(f"row {position} is out of range: there are {count} rows")
            asked = np.where(asked < 0, asked + count, asked)
            features = {layer: torch.from_numpy(rows[layer][asked]) for layer in as_layers(rows, self.layers)}
            single = isinstance(self.layers, str | int | np.integer)
            items = []
            for number, row in enumerate(rows.row_numbers(asked).tolist()):
                found = {layer: values[number] for layer, values in features.items()}
                items.append({"features": found[self.layers] if single else found, "row": row})
                if rows.targets is not None:
                    items[-1]["target"] = int(rows.targets[asked[number]])
            return items

    return FeatureDataset


def _open(uri: str, numbers: Any, identity: Identity) -> Rows:
    from featreg.stores.reading.reader import open_store

    store = open_store(uri)
    identity.check()
    return store if numbers is None else store.where(numbers)
