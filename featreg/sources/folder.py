"""A folder of images, flat or with one sub-folder per class."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote_to_bytes, urlsplit

import attrs

from featreg.errors import SourceError, near_matches
from featreg.images import suffixes
from featreg.sources.base import Sample, Source

__all__ = ["FolderSource", "natural_order"]

Parts: TypeAlias = tuple[str, ...]
Identity: TypeAlias = tuple[int, int]

_DIGITS = re.compile(r"([0-9]+)")


class FolderSource(Source):
    r"""The images below a folder, in the natural order of their keys (the POSIX path below the folder).

    A file is an image by its suffix; one that is no image inside becomes a row with an error. Other files and whatever
    is hidden are left out and counted in ``skipped``, and so are Zarr groups. Where all images lie in sub-folders, the
    first-level folders are the classes and the targets their places in sorted order, as in
    ``torchvision.datasets.ImageFolder``. A single image outside of them makes the folder a flat one without classes;
    ``stray`` counts such images. Links are followed, but never back into a folder that is being walked. A name
    that is not valid Unicode shows its bytes as ``\xNN``.

    Raises SourceError for a path that is empty, missing or no folder, for a folder that cannot be listed, and for one
    that holds no image.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not os.fspath(path):
            raise SourceError("the path of a source is empty", "a folder of images", repr(path))
        root = Path(os.path.abspath(path))
        _check_folder(root, path)
        self.uri = root.as_uri()
        found = _walk(root)
        if not found.images:
            raise SourceError(
                f"no images found in {str(root)!r}",
                f".jpg, .png, .webp or another of the {len(suffixes())} suffixes that Pillow reads",
                f"{found.skipped} other or hidden files" if found.skipped else "an empty folder",
            )
        self.skipped = found.skipped
        folders = sorted(found.folders)
        outside = sum(len(parts) == 1 for parts in found.images)
        self.stray = outside if outside < len(found.images) else 0
        flat = outside > 0
        self.kind = "folder" if flat else "imagefolder"
        self.classes = None if flat else tuple(map(_readable, folders))
        targets = {} if flat else {name: place for place, name in enumerate(folders)}
        samples = (
            Sample("/".join(map(_readable, parts)), root.joinpath(*parts).as_uri(), targets.get(parts[0]))
            for parts in found.images
        )
        self.samples = tuple(sorted(samples, key=lambda sample: natural_order(sample.key)))

    def read(self, sample: Sample) -> bytes:
        path = os.fsdecode(unquote_to_bytes(urlsplit(sample.uri).path))
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise SourceError(f"the file cannot be read: {error.strerror}", got=repr(sample.key)) from error

    def __repr__(self) -> str:
        classes = f", {len(self.classes)} classes" if self.classes is not None else ""
        return f"FolderSource({self.uri!r}, {len(self)} images{classes})"


def natural_order(key: str) -> tuple[object, ...]:
    """A sort key under which ``2.jpg`` comes before ``10.jpg``: runs of digits are numbers, the rest is code points."""
    parts: list[object] = list(_DIGITS.split(key))
    parts[1::2] = [int(str(digits)) for digits in parts[1::2]]
    return (parts, key)


@attrs.define
class _Findings:
    """What a walk found: the images and the first-level folders, and how many entries it left out."""

    images: list[Parts] = attrs.field(factory=list)
    folders: list[str] = attrs.field(factory=list)
    skipped: int = 0


def _walk(root: Path) -> _Findings:
    found = _Findings()
    pending: list[tuple[Parts, frozenset[Identity]]] = [((), frozenset({_identity(root)}))]
    while pending:
        parts, above = pending.pop()
        for entry in _entries(root.joinpath(*parts)):
            here = (*parts, entry.name)
            if entry.name.startswith(".") or _is_store(entry):
                found.skipped += 1
            elif _holds(entry.is_dir):
                if not parts:
                    found.folders.append(entry.name)
                identity = _identity(entry.path)
                if identity in above:
                    found.skipped += 1
                else:
                    pending.append((here, above | {identity}))
            elif _is_image(entry):
                found.images.append(here)
            else:
                found.skipped += 1
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise SourceError(f"the folder {str(folder)!r} cannot be listed: {error.strerror}") from error


def _is_store(entry: os.DirEntry[str]) -> bool:
    """Whether this is a folder of features, which people like to keep beside the images."""
    return _holds(entry.is_dir) and os.path.isfile(os.path.join(entry.path, "zarr.json"))


def _is_image(entry: os.DirEntry[str]) -> bool:
    """By suffix; a broken link counts, so that it is reported as a row, but nothing that would block a reader."""
    if os.path.splitext(entry.name)[1].lower() not in suffixes():
        return False
    return _holds(entry.is_file) or not os.path.exists(entry.path)


def _holds(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except OSError:  # a link that leads in a circle
        return False


def _identity(path: str | os.PathLike[str]) -> Identity:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _readable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _check_folder(root: Path, given: str | os.PathLike[str]) -> None:
    if not os.path.lexists(root):
        siblings = os.listdir(root.parent) if root.parent.is_dir() else []
        raise SourceError(
            f"there is no folder {os.fspath(given)!r}",
            "a folder of images",
            f"nothing at {str(root)!r}",
            near_matches(root.name, siblings),
        )
    if not root.is_dir():
        raise SourceError(
            f"{os.fspath(given)!r} is not a folder", "a folder of images", "a file", remedy=f"give {str(root.parent)!r}"
        )
