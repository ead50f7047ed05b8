"""What the passes of a store are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from featreg.recipe import Recipe
from featreg.spec import FeatureInfo, Layer
from featreg.stores.names import FITS, RECEIPTS

__all__ = ["FitRecord", "IndexPart", "InputRecord", "LayerRecord", "SourceRecord", "Task"]


@attrs.frozen
class Task:
    """A fixed range of rows, from ``start`` to before ``stop``: what one pass computes and commits at once.

    ``number`` is that of its shards, ``plan`` the SHA-256 of the pass: another store's has another one.
    """

    number: int
    start: int
    stop: int
    pass_number: int = 0
    plan: str = ""

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def receipt(self) -> str:
        """The path of its receipt within the store."""
        return f"{RECEIPTS}/{self.pass_number:04d}/{self.number:08d}.json"


@attrs.frozen
class FitRecord:
    """The file with what the steps of a recipe have learnt, by the SHA-256 of its content."""

    sha256: str

    @property
    def name(self) -> str:
        """The path of the file within the store."""
        return f"{FITS}/{self.sha256}.npz"

    @property
    def copy(self) -> str:
        """The path of its copy: making it anew may take a pass over all samples."""
        return f"{FITS}/{self.sha256}.copy.npz"


@attrs.frozen
class LayerRecord:
    """One layer: the key that was asked for, its array, and what is in it. ``shape`` is that of one row.

    A derived layer has its ``recipe``, and its ``fit`` where that learns anything.
    """

    key: Layer
    array: str
    info: FeatureInfo
    shape: tuple[int, ...]
    dtype: str
    recipe: Recipe | None = None
    fit: FitRecord | None = None

    def shard(self, task: Task) -> str:
        """The path of the shard with the rows of a task, within the store."""
        return "/".join((self.array, "c", str(task.number), *("0" for _ in self.shape)))


@attrs.frozen
class InputRecord:
    """A layer that recipes take, as it is given to them; ``shape`` is that of one row.

    ``pooled`` says that the model pools it already as the recipes say, ``info`` and ``shape`` are those after it.
    """

    key: Layer
    info: FeatureInfo
    shape: tuple[int, ...]
    pooled: bool = False


@attrs.frozen
class SourceRecord:
    """Where the samples came from; ``skipped`` and ``stray`` are those of :class:`~featreg.sources.Source`.

    ``options`` and ``kind`` are what ``open_source(uri, kind=kind, **options)`` takes, if it is ``reopenable``;
    ``limit`` is the number of samples that was asked for, ``fraction`` the share of them that was drawn with ``seed``.
    """

    uri: str
    kind: str
    classes: tuple[str, ...] | None
    skipped: int
    stray: int = 0
    options: Mapping[str, Any] = attrs.field(factory=dict)
    reopenable: bool = False
    limit: int | None = None
    fraction: float | None = None
    seed: int = 0


@attrs.frozen
class IndexPart:
    """The samples of some rows, from ``start`` to before ``stop``, and the SHA-256 of the file that holds them."""

    name: str
    start: int
    stop: int
    sha256: str
