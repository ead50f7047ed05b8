"""What can be done with the rows of a store, and of a view of some of them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from featreg.errors import SpecError
from featreg.spec import FeatureInfo, Layer
from featreg.stores.layout import Manifest
from featreg.stores.reading.batches import Batch, iter_batches, read_batch
from featreg.stores.reading.identity import Identity
from featreg.stores.reading.sampling import reservoir

if TYPE_CHECKING:
    import xarray

    from featreg.stores.reading.array import LayerArray
    from featreg.stores.reading.views import LayerView, StoreView

__all__ = ["Rows", "as_layers"]

Integers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


class Rows(ABC):
    """Rows with a key, a status and the features of every layer: all of a store, or those of a view.

    Positions count from 0 here; :meth:`row_numbers` says which rows of the store they are.
    """

    manifest: Manifest
    identity: Identity

    @property
    @abstractmethod
    def path(self) -> Path:
        """The folder of the store; raises CapabilityError for one at a URL."""

    @property
    @abstractmethod
    def uri(self) -> str:
        """Where the store is: a path or a URL."""

    @property
    @abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """The keys of the layers, as they were asked for."""

    @property
    @abstractmethod
    def info(self) -> Mapping[Layer, FeatureInfo]:
        """The description of each layer."""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...] | None:
        """The names of the targets; None where the source has none."""

    @property
    @abstractmethod
    def keys(self) -> list[str]:
        """The key of every sample, in row order."""

    @property
    @abstractmethod
    def targets(self) -> Integers | None:
        """The class of every row, -1 where it has none; None where no row of the store has one."""

    @property
    @abstractmethod
    def status(self) -> np.ndarray[Any, np.dtype[np.str_]]:
        """``"ok"``, ``"error"`` or ``"pending"`` for every row, over all layers: ok where every one has it."""

    @property
    @abstractmethod
    def errors(self) -> dict[str, str]:
        """What went wrong, by the key of the sample."""

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether every row is finished, be it with an error."""

    @abstractmethod
    def iter_samples(self, layers: Layer | Sequence[Layer] | None = None) -> Iterator[Any]:
        """The sample table a block at a time, as Arrow tables: row, key, uri, target, status, error.

        Status and error are those of some layers, as far as these are computed together, or of all.
        """

    @abstractmethod
    def row_numbers(self, positions: Integers) -> Integers:
        """The rows of the store at some positions."""

    @abstractmethod
    def __getitem__(self, key: Layer) -> LayerArray | LayerView: ...

    @abstractmethod
    def __contains__(self, key: object) -> bool: ...

    @abstractmethod
    def __len__(self) -> int: ...

    def where(
        self, rows: Any = None, *, status: str | None = None, layers: Layer | Sequence[Layer] | None = None
    ) -> StoreView:
        """The rows that a mask or a list of row positions selects, and that have a status; nothing is read.

        The status is that in ``layers``, or in all of them: while a layer is being added, all rows are pending in it,
        and those that are finished in another one are ``where(status="ok", layers="pooled")``.

        The view has the same attributes and methods; its rows stay in the order of the store, each once. Raises
        IndexError for a position that is out of range, and SpecError for what are no positions (such as the one False
        that ``store.targets == 3`` is for a store without targets) and for a status that there is not.

        >>> store.where(status="ok").batches(256, shuffle=True)
        >>> store.where(store.targets == 3)["C5"]
        """
        from featreg.stores.reading.views import view_of

        return view_of(self, rows, status, layers)

    def sample(
        self, n: int, seed: int = 0, layer: Layer | Sequence[Layer] | None = None, flatten: bool = False
    ) -> Batch:
        """``n`` rows drawn at random without replacement, in row order; all of them where there are fewer.

        The draw is VISSL's reservoir (``ExtractedFeaturesLoader.sample_features``) run over the row numbers: the same
        rows for the same seed and number of rows, however the store is divided into shards. Only these rows are read,
        of one layer, several, or all. ``flatten`` gives (n, D) per layer. Raises LayerError and SpecError.
        """
        check_count("n", n)
        check_seed(seed)
        layers = as_layers(self, layer)
        return read_batch(self, reservoir(len(self), n, seed), layers, flatten=flatten)

    def batches(
        self,
        size: int,
        *,
        layers: Layer | Sequence[Layer] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        buffer: int | None = None,
        flatten: bool = False,
    ) -> Iterator[Batch]:
        """Every row once, ``size`` rows at a time (the last batch may have fewer), at the speed of the disk.

        With ``shuffle`` whole shards are read in a random order, and the rows mixed within a buffer of ``buffer`` rows
        (by default as many as 256 MiB hold, and never less than one shard): a buffer of all rows is a full shuffle. The
        order depends on the seed, the buffer and the shards; another seed for each epoch gives another order. At most
        one buffer is held in memory, beside a few batches and a shard as it is read. Raises LayerError and SpecError,
        before the first batch.
        """
        check_count("size", size)
        check_seed(seed)
        if buffer is not None:
            check_count("buffer", buffer)
        asked = as_layers(self, layers)
        return iter_batches(self, size, asked, shuffle=shuffle, seed=seed, buffer=buffer, flatten=flatten)

    def to_xarray(self) -> xarray.Dataset:
        """A dataset with a lazy variable per layer and the coordinates key, status and target; no feature is read.

        Needs the extra ``featreg[xarray]``; ``.chunk(row=1024)`` of it makes dask arrays. Raises
        MissingDependencyError, and SpecError for a layer whose array is called as a coordinate is.
        """
        from featreg.stores.reading.lazy import dataset

        return dataset(self)

    def to_torch(self, layers: Layer | Sequence[Layer] | None = None) -> Any:
        """A map-style ``torch.utils.data.Dataset`` of ``{"features", "target", "row"}``, for any DataLoader.

        ``features`` is a tensor where one layer is asked for by itself, else a dict of them; ``target`` is -1
        where a row has none, and left out where no row of the store has one. Workers open the store themselves, forked
        or spawned. Rows in random order are read chunk by chunk: for speed, shuffle with :meth:`batches`. Raises
        LayerError and MissingDependencyError.
        """
        from featreg.stores.reading.torchdata import torch_dataset

        as_layers(self, layers)
        return torch_dataset(self, layers)

    def memmap(self, layer: Layer, path: str | os.PathLike[str] | None = None) -> np.ndarray[Any, Any]:
        """One layer as a memory-mapped ``.npy`` file, read-only, which is made by streaming if it is not there yet.

        Without a path the file lies beside the store; its name holds a digest of its rows and of the shards that they
        are in, so that it is found again for as long as they stay the same. Raises StoreError where rows are pending or
        the file cannot be written, and StoreExistsError where ``path`` is taken.
        """
        from featreg.stores.reading.npy import memory_map

        return memory_map(self, layer, path)


def as_layers(rows: Rows, layers: Layer | Sequence[Layer] | None) -> tuple[Layer, ...]:
    """One layer, several or (None) all, by the names they were asked for.

    Raises LayerError for one that there is not, and SpecError for none and for one that comes twice, by any name.
    """
    if layers is None:
        return rows.layers
    asked = (layers,) if isinstance(layers, str | int | np.integer) else tuple(layers)
    if not asked or len({rows[layer].key for layer in asked}) < len(asked):
        raise SpecError("the layers to read are none, or one of them twice", "each layer once", repr(asked))
    return asked


def check_count(name: str, value: int) -> None:
    """Raise SpecError for what is no number of rows."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise SpecError(f"{name} is out of range", "a whole number of at least 1", repr(value))


def check_seed(seed: int) -> None:
    """Raise SpecError for what is no seed."""
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise SpecError("seed is out of range", "a whole number of at least 0", repr(seed))
