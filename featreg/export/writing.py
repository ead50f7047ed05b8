"""The formats, and a folder that is there whole or not at all."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from featreg.errors import SpecError, StoreError, StoreExistsError, near_matches
from featreg.export.content import Content
from featreg.stores.outside import check_outside
from featreg.stores.places.disk import aside_name, sync_file, sync_folder

__all__ = ["DOCUMENT", "FORMATS", "Writer", "new_folder", "writer_of"]

Writer: TypeAlias = Callable[[Path, Content], dict[str, str]]
"""Writes the arrays into a folder and says in which file each of them is."""

DOCUMENT = "export.json"

FORMATS = {
    "npy": "arrays:write_npy_files",
    "npz": "arrays:write_npz",
    "safetensors": "arrays:write_safetensors",
    "hdf5": "hdf5:write_hdf5",
    "parquet": "tables:write_parquet",
    "mat": "matlab:write_mat",
    "csv": "text:write_csv",
    "txt": "text:write_txt",
}
"""Where each format is written; imported on use."""

_SUFFIXES = {f".{name}" for name in FORMATS} | {".h5"}


def writer_of(name: str) -> Writer:
    """The function that writes a format; raises SpecError, and MissingDependencyError where its library is absent."""
    if name not in FORMATS:
        raise SpecError(
            f"there is no export format {name!r}", f"one of {', '.join(FORMATS)}", name, near_matches(name, FORMATS)
        )
    module, _, function = FORMATS[name].partition(":")
    writer: Writer = getattr(importlib.import_module(f"featreg.export.{module}"), function)
    return writer


@contextmanager
def new_folder(path: str | os.PathLike[str], *, overwrite: bool) -> Iterator[Path]:
    """A folder to write to, which takes its place when the block ends, its files on disk; else nothing of it is left.

    With ``overwrite`` an empty folder or an earlier export may be in the way, and stays until then. Raises SpecError
    for a path that reads like a file or lies in a store, StoreExistsError for one that is taken, StoreError for what
    cannot be written.
    """
    place = Path(os.path.realpath(path))
    if place.suffix in _SUFFIXES:
        raise SpecError(
            f"an export is a folder, and {str(path)!r} reads like a file",
            "the path of a folder, for the arrays and the table of the samples",
            repr(str(path)),
            remedy=repr(str(Path(path).with_suffix(""))),
        )
    _check_free(place, overwrite=overwrite)
    check_outside(place, "the export")
    aside = place.with_name(aside_name(place.name))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        yield aside
        for file in aside.iterdir():
            sync_file(file)
        sync_folder(aside)
        _move_in(aside, place, overwrite=overwrite)
    except OSError as error:
        got = f"{type(error).__name__}: {error}"
        raise StoreError(f"the export {str(place)!r} cannot be written", got=got) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_free(place: Path, *, overwrite: bool) -> None:
    if not os.path.lexists(place):
        return
    foreign = _foreign(place)
    if foreign or not overwrite:
        raise StoreExistsError(
            f"the path of the export is taken: {str(place)!r}",
            "an earlier export, an empty folder, or nothing" if overwrite else "a path where nothing is",
            foreign or "an earlier export, or an empty folder",
            remedy="another path" if foreign else "another path, or overwrite=True (--overwrite)",
        )


def _foreign(place: Path) -> str:
    """What speaks against deleting a path; empty where it is an export with nothing else in it, or an empty folder."""
    if not place.is_dir():
        return "a file"
    found = {entry.name for entry in os.scandir(place)}
    if not found:
        return ""
    try:
        listed = json.loads((place / DOCUMENT).read_bytes())["files"]
        others = sorted(found - {DOCUMENT, *listed})
    except (OSError, ValueError, KeyError, TypeError):
        return f"a folder without the {DOCUMENT} of an export"
    return f"an export that also holds {', '.join(map(repr, others[:5]))}" if others else ""


def _move_in(aside: Path, place: Path, *, overwrite: bool) -> None:
    """Put the finished folder in its place; what was there comes back unless that succeeds."""
    _check_free(place, overwrite=overwrite)
    old = place.with_name(aside_name(place.name))
    if os.path.lexists(place):
        os.rename(place, old)
    try:
        os.rename(aside, place)
    finally:
        if os.path.lexists(old) and not os.path.lexists(place):
            os.rename(old, place)
    sync_folder(place.parent)
    shutil.rmtree(old, ignore_errors=True)
