"""Hugging Face datasets as ``save_to_disk`` writes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from featreg.errors import SourceError, near_matches
from featreg.extras import extra
from featreg.sources.base import Sample, Source
from featreg.sources.files import check_exists, file_errors
from featreg.sources.options import plain_options
from featreg.sources.parquet import image_content
from featreg.sources.targets import Targets
from featreg.sources.uris import file_uri, local_path, shown, split_part, with_part

__all__ = ["HuggingFaceSource"]

BLOCK_ROWS = 8192


class HuggingFaceSource(Source):
    """The images of a dataset in a local folder, read from its memory-mapped Arrow files.

    ``split`` is the one of a dataset that has several; ``image`` is the column, by default the only one of the feature
    ``Image`` or of bytes; ``target`` is by default the column ``label`` or ``target``, where there is one. The
    ``classes`` are those of a ``ClassLabel``, in which -1 is no target. The key is the row, behind the split where
    there is one, or what the column ``key`` holds.

    Raises SourceError for a folder that is missing or no such dataset, and for a URL; MissingDependencyError without
    the package datasets.
    """

    kind = "huggingface"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: str | None = None,
        image: str | None = None,
        target: str | None = None,
        key: str | None = None,
    ) -> None:
        self.uri = file_uri(path)
        if local_path(self.uri) is None:
            raise SourceError(
                "datasets on disk are read where they lie", "a local folder", self.uri, remedy="its Parquet files"
            )
        check_exists(self.uri, folder=True)
        self.options = plain_options(split=split, image=image, target=target, key=key)

    @cached_property
    def classes(self) -> tuple[str, ...] | None:
        return self._targets.classes

    def index(self) -> Iterator[Sample]:
        data, image, target = self._data, self._image, self._target
        key = _one(data.column_names, self.options.get("key"), (), "key") if "key" in self.options else None
        prefix = f"{self._split}/" if self._split else ""
        if not len(data):
            raise SourceError(f"no images found in {shown(self.uri)!r}", "at least one row", "none")
        wanted = data.select_columns([name for name in (target, key) if name is not None]) if target or key else None
        for start in range(0, len(data), BLOCK_ROWS):
            rows = range(start, min(start + BLOCK_ROWS, len(data)))
            with file_errors(self.uri):
                block = {} if wanted is None else wanted[rows.start : rows.stop]
            for place, row in enumerate(rows):
                given = None if key is None else block[key][place]
                named = f"{prefix}{row}" if given in (None, "") else str(given)
                value = None if target is None else block[target][place]
                part: dict[str, str | int] = {"row": row, "column": image}
                part |= {"split": self._split} if self._split else {}
                yield Sample(named, with_part(self.uri, **part), self._targets.number(value, named))

    def read(self, sample: Sample) -> bytes:
        _, part = split_part(sample.uri)
        with file_errors(self.uri, sample.key):
            value = self._encoded[int(part["row"])][part["column"]]
        return image_content(value, self.uri, sample.key)

    @cached_property
    def _all(self) -> Any:
        with extra("huggingface", "Hugging Face datasets"):
            import datasets
        try:
            return datasets.load_from_disk(local_path(self.uri))
        except Exception as error:  # it raises whatever its parts do
            raise SourceError(
                f"{shown(self.uri)!r} is no dataset on disk",
                "what datasets.save_to_disk wrote",
                f"{type(error).__name__}: {error}",
            ) from error

    @cached_property
    def _split(self) -> str | None:
        splits = list(self._all) if isinstance(self._all, dict) else []
        if not splits:
            return None
        given = self.options.get("split")
        if given in splits or (given is None and len(splits) == 1):
            return str(given or splits[0])
        raise SourceError(
            f"which split of {shown(self.uri)!r} is it?",
            "one of its splits",
            repr(given),
            near_matches(str(given), splits) or tuple(splits),
            "split='...'",
        )

    @cached_property
    def _data(self) -> Any:
        return self._all if self._split is None else self._all[self._split]

    @cached_property
    def _image(self) -> str:
        kinds = {name: type(feature).__name__ for name, feature in self._data.features.items()}
        found = [name for name, kind in kinds.items() if kind == "Image"]
        found = found or [name for name in kinds if getattr(self._data.features[name], "dtype", "") == "binary"]
        return _one(list(kinds), self.options.get("image"), found, "image")

    @cached_property
    def _encoded(self) -> Any:
        """The dataset with images as their bytes, and with nothing else."""
        with extra("huggingface", "Hugging Face datasets"):
            import datasets
        data = self._data.select_columns([self._image]).with_format(None)
        kind = self._data.features[self._image]
        return data.cast_column(self._image, datasets.Image(decode=False)) if type(kind).__name__ == "Image" else data

    @cached_property
    def _target(self) -> str | None:
        given, names = self.options.get("target"), self._data.column_names
        if given is not None:
            return _one(names, given, (), "target")
        return next((name for name in ("label", "target") if name in names), None)

    @cached_property
    def _targets(self) -> Targets:
        if self._target is None:
            return Targets()
        names = getattr(self._data.features[self._target], "names", None)
        if names is not None:
            return Targets(tuple(names), unknown=-1)
        column = self._data.select_columns([self._target])
        blocks = (column[start : start + BLOCK_ROWS][self._target] for start in range(0, len(column), BLOCK_ROWS))
        return Targets.of(value for block in blocks for value in block)


def _one(names: list[str], given: str | None, found: list[str] | tuple[str, ...], what: str) -> str:
    """The column that is meant; raises SourceError where it is not there, or where several could be."""
    if given in names or (given is None and len(found) == 1):
        return str(given or found[0])
    raise SourceError(
        f"there is no column {given!r}" if given else f"which column is the {what}?",
        "one of the columns",
        ", ".join(map(repr, names)),
        near_matches(given, names) if given else tuple(found),
        f"{what}='...' with the name of the column",
    )
