"""Files and folders that are there whole or not at all, and last."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from pathlib import Path

__all__ = ["sha256", "sync_file", "sync_folder", "temporary_name", "write_atomically"]


def temporary_name(path: Path) -> Path:
    """A hidden name beside ``path`` for what will be moved there once it is whole."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def write_atomically(path: Path, data: bytes, *, exclusive: bool = False) -> None:
    """Write a file so that it is there whole or not at all, and stays after a power cut.

    With ``exclusive`` the first writer wins: raises FileExistsError where the file is there already.
    """
    aside = temporary_name(path)
    try:
        with open(aside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            _link(aside, path)
        else:
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def _link(aside: Path, path: Path) -> None:
    """Give a whole file its name unless that is taken."""
    try:
        os.link(aside, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links here (exFAT, many network drives): as good as it gets
        if path.exists():
            raise FileExistsError(f"{path} exists") from None
        os.replace(aside, path)


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


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
