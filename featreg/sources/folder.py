"""A folder of images, flat or with one sub-folder per class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from typing import Literal

import attrs

from featreg.errors import SourceError
from featreg.images import is_image_name, suffixes
from featreg.sources.base import Sample, Source
from featreg.sources.files import (
    Entry,
    Identity,
    check_exists,
    check_unchanged,
    entries,
    exists,
    identity,
    read_file,
    size_of,
)
from featreg.sources.order import natural_order
from featreg.sources.uris import file_uri, join, readable, shown

__all__ = ["FolderSource"]


class FolderSource(Source):
    r"""The images below a folder, in the natural order of their paths, folder by folder.

    The key of an image is its POSIX path below the folder. What has the suffix of an image is a row, whatever it is:
    one that is no image inside, a broken link, a pipe, or a folder without images fails when it is read. Other files
    and whatever is hidden are left out and counted in ``skipped``, and so are Zarr groups.

    In an ``imagefolder`` the sub-folders are the classes and the targets their places in code point order, as in
    ``torchvision.datasets.ImageFolder``; images beside them have no target. A ``folder`` has no classes. Without
    ``kind`` it is an ``imagefolder`` where it holds no image itself; a single one makes it a flat folder, and
    ``stray`` counts such images where others lie in sub-folders.

    Links are followed, but never back into a folder that is being walked, and below a link only to where no other has
    led before. A name that is not valid Unicode shows its bytes as ``\xNN``. The walk holds one listing for every level
    that it is in.

    Raises SourceError for a path that is empty, missing or no folder; ``index()`` does for a folder that cannot be
    listed, for an ``imagefolder`` without sub-folders, and where there is no image.
    """

    def __init__(self, path: str | os.PathLike[str], *, kind: Literal["folder", "imagefolder"] | None = None) -> None:
        self.uri = file_uri(path)
        self._kind = kind
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
        walk = _Walk(self.uri)
        targets = {name: place for place, name in enumerate(self._class_folders or ())}
        for parts, size in walk.images():
            yield Sample("/".join(map(readable, parts)), join(self.uri, *parts), targets.get(parts[0]), size)
        self.skipped, self.stray = walk.skipped, walk.stray
        if not walk.found:
            raise SourceError(
                f"no images found in {shown(self.uri)!r}",
                f".jpg, .png, .webp or another of the {len(suffixes())} suffixes that Pillow reads",
                f"{walk.skipped} other or hidden files" if walk.skipped else "an empty folder",
                remedy="kind='tar', 'parquet', ... where the images lie inside of files",
            )

    def read(self, sample: Sample) -> bytes:
        """The bytes of an image; raises SourceError also where they are not as many as when it was indexed."""
        data = read_file(sample.uri, sample.key, sample.size)
        check_unchanged(data, sample.size, sample.key)
        return data

    @cached_property
    def _class_folders(self) -> tuple[str, ...] | None:
        if self._kind == "folder":
            return None
        visible = [entry for entry in entries(self.uri) if not entry.name.startswith(".")]
        if self._kind is None and any(not entry.folder and is_image_name(entry.name) for entry in visible):
            return None
        folders = [entry.name for entry in visible if entry.folder and not _is_store(join(self.uri, entry.name))]
        if self._kind is not None and not folders:
            raise SourceError(f"{shown(self.uri)!r} has no classes", "a sub-folder for each of them", "no sub-folder")
        return tuple(sorted(folders))

    def _survey(self) -> _Walk:
        walk = _Walk(self.uri)
        for _ in walk.images():
            pass
        return walk


@attrs.frozen
class _Level:
    """A folder that the walk is in.

    ``above`` are the folders that lead to it, itself included, ``left`` is the rest of its listing, ``before`` how many
    images came before it. ``linked`` says that a link leads to it, or to a folder above.
    """

    uri: str
    parts: tuple[str, ...]
    above: frozenset[Identity | None]
    left: Iterator[Entry]
    before: int
    linked: bool


class _Walk:
    """One walk through a folder, depth first, and what it has met so far.

    ``skipped`` is what it left out, ``found`` the images, ``outside`` those of them directly in the first folder. A
    link is followed unless it leads into a folder that the walk is in. Below a link, others are followed to where no
    link has led before: folders that link to each other would otherwise be walked through in every order.
    """

    def __init__(self, root: str) -> None:
        self.skipped = self.found = self.outside = 0
        self._root = root
        self._followed: set[Identity | None] = set()

    @property
    def stray(self) -> int:
        return self.outside if self.outside < self.found else 0

    def images(self) -> Iterator[tuple[tuple[str, ...], int | None]]:
        """The path below the root and the size of every image."""
        stack = [self._level(self._root, (), frozenset({identity(self._root)}), linked=False)]
        while stack:
            level = stack[-1]
            entry = next(level.left, None)
            if entry is None:
                stack.pop()
                if level.parts and is_image_name(level.parts[-1]) and self.found == level.before:
                    yield self._count(level.parts), None
                continue
            uri, parts = join(level.uri, entry.name), (*level.parts, entry.name)
            below = self._enter(uri, parts, entry, level) if entry.folder else None
            if below is not None:
                stack.append(below)
            elif not entry.name.startswith(".") and is_image_name(entry.name):
                yield self._count(parts), size_of(uri) if entry.size is None and not entry.folder else entry.size
            else:
                self.skipped += 1

    def _count(self, parts: tuple[str, ...]) -> tuple[str, ...]:
        self.found += 1
        self.outside += len(parts) == 1
        return parts

    def _enter(self, uri: str, parts: tuple[str, ...], entry: Entry, level: _Level) -> _Level | None:
        """The level below this one; None for a folder that is not walked through."""
        if entry.name.startswith(".") or _is_store(uri):
            return None
        here = identity(uri)
        if here is not None and (here in level.above or (entry.link and level.linked and here in self._followed)):
            return None
        if entry.link:
            self._followed.add(here)
        return self._level(uri, parts, level.above | {here}, linked=level.linked or entry.link)

    def _level(self, uri: str, parts: tuple[str, ...], above: frozenset[Identity | None], *, linked: bool) -> _Level:
        listed = sorted(entries(uri), key=lambda entry: natural_order(entry.name))
        return _Level(uri, parts, above, iter(listed), self.found, linked)


def _is_store(folder: str) -> bool:
    """Whether this is a folder of features, which people like to keep beside the images."""
    return exists(join(folder, "zarr.json"))
