"""A folder of images, flat or with one sub-folder per class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property

import attrs

from featreg.errors import SourceError
from featreg.images import is_image_name, suffixes
from featreg.sources.base import Sample, Source
from featreg.sources.files import Entry, check_exists, entries, exists, identity, read_file, size_of
from featreg.sources.order import natural_order
from featreg.sources.uris import file_uri, join, readable, shown

__all__ = ["FolderSource"]


class FolderSource(Source):
    r"""The images below a folder, in the natural order of their paths, folder by folder.

    The key of an image is its POSIX path below the folder. A file is an image by its suffix; one that is no image
    inside becomes a row with an error. Other files and whatever is hidden are left out and counted in ``skipped``, and
    so are Zarr groups. Where no image lies in the folder itself, its sub-folders are the classes and the targets
    their places in code point order, as in ``torchvision.datasets.ImageFolder``. A single image outside of them makes
    the folder a flat one without classes; ``stray`` counts such images. Links are followed, but never back into a
    folder that is being walked. A name that is not valid Unicode shows its bytes as ``\xNN``. The walk holds
    one listing for every level that it is in.

    Raises SourceError for a path that is empty, missing or no folder; ``index()`` does for a folder that cannot be
    listed, and where there is no image.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.uri = file_uri(path)
        check_exists(self.uri, folder=True)

    @cached_property
    def classes(self) -> tuple[str, ...] | None:
        names = self._class_folders
        return None if names is None else tuple(map(readable, names))

    @cached_property
    def kind(self) -> str:  # type: ignore[override]  # listing the folder tells it
        return "folder" if self._class_folders is None else "imagefolder"

    @cached_property
    def skipped(self) -> int:
        return self._survey().skipped

    @cached_property
    def stray(self) -> int:
        return self._survey().stray

    def index(self) -> Iterator[Sample]:
        tally = _Tally()
        targets = {name: place for place, name in enumerate(self._class_folders or ())}
        for parts, size in _walk(self.uri, tally):
            target = targets.get(parts[0]) if len(parts) > 1 else None
            yield Sample("/".join(map(readable, parts)), join(self.uri, *parts), target, size)
        self._keep(tally)
        if not tally.images:
            raise SourceError(
                f"no images found in {shown(self.uri)!r}",
                f".jpg, .png, .webp or another of the {len(suffixes())} suffixes that Pillow reads",
                f"{tally.skipped} other or hidden files" if tally.skipped else "an empty folder",
                remedy="kind='tar', 'parquet', ... where the images lie inside of files",
            )

    def read(self, sample: Sample) -> bytes:
        return read_file(sample.uri, sample.key)

    @cached_property
    def _class_folders(self) -> tuple[str, ...] | None:
        folders = []
        for entry in entries(self.uri):
            if entry.name.startswith("."):
                continue
            if entry.file and is_image_name(entry.name):
                return None
            if entry.folder and not _is_store(join(self.uri, entry.name)):
                folders.append(entry.name)
        return tuple(sorted(folders))

    def _keep(self, tally: _Tally) -> None:
        self.skipped, self.stray = tally.skipped, tally.stray

    def _survey(self) -> _Tally:
        tally = _Tally()
        for _ in _walk(self.uri, tally):
            pass
        return tally


@attrs.define
class _Tally:
    """What a walk has met so far: entries that it left out, images, and those directly in the first folder."""

    skipped: int = 0
    images: int = 0
    outside: int = 0

    @property
    def stray(self) -> int:
        return self.outside if self.outside < self.images else 0


@attrs.define
class _Level:
    """A folder that the walk is in: what is left of its listing, and the folders that lead to it, itself included."""

    uri: str
    parts: tuple[str, ...]
    above: frozenset[tuple[int, int]]
    left: Iterator[Entry]


def _walk(root: str, tally: _Tally) -> Iterator[tuple[tuple[str, ...], int | None]]:
    """The path below the root and the size of every image, depth first."""
    stack = [_enter(root, (), frozenset())]
    while stack:
        level = stack[-1]
        entry = next(level.left, None)
        if entry is None:
            stack.pop()
            continue
        uri, parts = join(level.uri, entry.name), (*level.parts, entry.name)
        if entry.folder and _is_open(uri, entry, level):
            stack.append(_enter(uri, parts, level.above))
        elif entry.file and not entry.name.startswith(".") and is_image_name(entry.name):
            tally.images += 1
            tally.outside += not level.parts
            yield parts, size_of(uri) if entry.size is None else entry.size
        else:
            tally.skipped += 1


def _enter(uri: str, parts: tuple[str, ...], above: frozenset[tuple[int, int]]) -> _Level:
    here = identity(uri)
    listed = sorted(entries(uri), key=lambda entry: natural_order(entry.name))
    return _Level(uri, parts, above if here is None else above | {here}, iter(listed))


def _is_open(uri: str, entry: Entry, level: _Level) -> bool:
    return not entry.name.startswith(".") and not _is_store(uri) and identity(uri) not in level.above


def _is_store(folder: str) -> bool:
    """Whether this is a folder of features, which people like to keep beside the images."""
    return exists(join(folder, "zarr.json"))
