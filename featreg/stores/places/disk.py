"""Files and folders of a local file system that are there whole or not at all, and last."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = [
    "aside_name",
    "exchange",
    "left_aside",
    "link",
    "make_folder",
    "parents_made",
    "sync_file",
    "sync_folder",
    "write_aside",
]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def aside_name(name: str) -> str:
    """A hidden name for what will be moved to ``name`` once it is whole."""
    return f".{name}.{secrets.token_hex(8)}"


def left_aside(path: Path) -> list[Path]:
    """What lies beside a path under a name that :func:`aside_name` gave."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}")
    try:
        return sorted(path.with_name(name) for name in os.listdir(path.parent) if pattern.fullmatch(name))
    except OSError:
        return []


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

    A torn document is found by its checksum; where writing it fails, the name is free again.
    """
    data = aside.read_bytes()
    with open(path, "xb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change names in one step; False where the system or the file system cannot (renameat2(2))."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    error = ctypes.get_errno()
    if error in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(error, os.strerror(error), str(other))


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that they last."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


@contextmanager
def parents_made(path: Path) -> Iterator[None]:
    """Make the folders above a path for the block; those that were not there before go again where it raises."""
    made = [folder for folder in path.parents if not folder.exists()]
    make_folder(path.parent)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # somebody else has put something there meanwhile
            for folder in made:
                folder.rmdir()
        raise


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
