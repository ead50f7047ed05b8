"""What may be where a new store is to be, and how an old one gives way to it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featreg.errors import StoreError, StoreExistsError
from featreg.stores.names import OWN_NAMES
from featreg.stores.places.disk import aside_name, exchange, sync_folder
from featreg.stores.places.opening import place_at
from featreg.stores.places.place import LocalPlace, Place
from featreg.stores.receipts import read_manifest

__all__ = ["check_free", "move_in", "replacement", "temporary_name"]


def temporary_name(path: Path) -> Path:
    """A hidden name beside ``path`` for what will be moved there once it is whole."""
    return path.with_name(aside_name(path.name))


def check_free(path: str | os.PathLike[str], *, overwrite: bool = False) -> Place:
    """Where a new store may be made.

    With ``overwrite`` an empty folder and a feature store may be in the way, and nothing else. Raises StoreExistsError,
    SpecError for what is no path, and StoreError for a path that cannot be.
    """
    place = place_at(path)
    if not place.is_taken():
        return place
    if not isinstance(place, LocalPlace):
        raise _taken(place, "a folder", "another URL, or delete it")
    foreign = _foreign(place)
    if not overwrite:
        remedy = "another path" if foreign else "another path, or overwrite=True (--overwrite)"
        raise _taken(place, "a file" if place.root.is_file() else "a folder", remedy)
    if foreign:
        raise StoreExistsError(
            f"refused to overwrite {place.uri!r}, which is not a feature store alone",
            "a feature store, an empty folder, or nothing",
            foreign,
            remedy="another path, or delete it yourself",
        )
    return place


def _taken(place: Place, what: str, remedy: str) -> StoreExistsError:
    return StoreExistsError(
        f"the path of the store is taken: {place.uri!r}", "a path where nothing is", what, remedy=remedy
    )


@contextmanager
def replacement(place: Place, *, overwrite: bool) -> Iterator[Place]:
    """Where to write the store that shall be at ``place``: there, or aside as long as an old one is in the way.

    The new store takes the place of the old one when the block ends. Whatever stops the block leaves the old store as
    it was, says so in a note, and deletes the new one. Raises StoreError where the finished store cannot move in.
    """
    if not (overwrite and isinstance(place, LocalPlace) and place.names("")):
        yield place
        return
    root = place.root
    aside = temporary_name(root)
    try:
        yield LocalPlace(aside)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        error.add_note(f"the store {root} is as it was: a new one replaces it only when it is complete")
        raise
    try:
        check_free(root, overwrite=True)
        move_in(aside, root, overwrite=True)
    except (OSError, StoreExistsError) as error:
        raise StoreError(
            f"the finished store cannot take the place of {str(root)!r}",
            got=error.problem if isinstance(error, StoreExistsError) else f"{type(error).__name__}: {error}",
            remedy=f"move it there from {str(aside)!r}",
        ) from error


def move_in(aside: Path, root: Path, *, overwrite: bool) -> None:
    """Put a finished folder where :func:`check_free` allowed it; what was there comes back unless that succeeds."""
    if overwrite and os.path.lexists(root) and exchange(aside, root):
        sync_folder(root.parent)
        shutil.rmtree(aside, ignore_errors=True)
        return
    old = temporary_name(root)
    if overwrite and os.path.lexists(root):  # here a kill leaves both stores hidden: read_header says so
        os.rename(root, old)
    try:
        os.rename(aside, root)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise StoreExistsError(f"the path of the store was taken meanwhile: {str(root)!r}") from error
        raise
    finally:
        if os.path.lexists(old) and not os.path.lexists(root):
            os.rename(old, root)
    sync_folder(root.parent)
    shutil.rmtree(old, ignore_errors=True)


def _foreign(place: LocalPlace) -> str:
    """What speaks against deleting a path, empty where it is an empty folder or a store with nothing else in it."""
    if not place.root.is_dir():
        return "a file"
    found = place.names("")
    if not found:
        return ""
    try:
        manifest = read_manifest(place)
    except StoreError as error:
        return error.problem
    known = {*OWN_NAMES, *(layer.array for layer in manifest.layers)}
    others = [name for name in found if name not in known]
    return f"a store that also holds {', '.join(map(repr, others[:5]))}" if others else ""
