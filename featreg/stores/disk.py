"""Files and folders of a local file system that are there whole or not at all, and last."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["aside_name", "link", "make_folder", "sync_file", "sync_folder", "write_aside"]


def aside_name(name: str) -> str:
    """A hidden name for what will be moved to ``name`` once it is whole."""
    return f".{name}.{secrets.token_hex(8)}"


def write_aside(aside: Path, data: bytes, path: Path, into: Callable[[Path, Path], Any]) -> None:
    """Write a file aside, make it last, and give it its name by ``into``: os.replace, or :func:`link` to be the first.

    Nothing stays aside. Raises FileExistsError where ``into`` does.
    """
    try:
        with open(aside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        into(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def link(aside: Path, path: Path) -> None:
    """Give a whole file its name; raises FileExistsError where the name is taken."""
    try:
        os.link(aside, path)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        _copy_exclusively(aside, path)


def _copy_exclusively(aside: Path, path: Path) -> None:
    """Where there are no hard links (exFAT, some network drives): one writer wins too, but a kill may tear the file.

    A torn document is found by its checksum.
    """
    with open(path, "xb") as file:
        file.write(aside.read_bytes())
        file.flush()
        os.fsync(file.fileno())


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that they last."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_file(path: Path) -> None:
    """Make the content of a file last."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last."""
    if os.name == "nt":  # Windows cannot open folders, and journals their entries itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network drives cannot, and need not
            raise
    finally:
        os.close(descriptor)
