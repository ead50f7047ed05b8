"""Where a store lies: named files, each of which is there whole or not at all.

The commit protocol needs four things of a place: a file appears whole, :meth:`Place.create` lets the first of several
writers win, :meth:`Place.move` replaces a file whole, and a name is there for everyone once it is there for one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from featreg.errors import FeatregError, StoreDeniedError, StoreError, StoreFullError
from featreg.stores.disk import aside_name, link, make_folder, sync_file, sync_folder, write_aside

__all__ = ["STAGED", "Incoming", "LocalPlace", "Place", "write_errors"]

STAGED = "staged"
"""The folder for all that is not in its place yet; whatever a killed process leaves behind lies there."""

_ATTEMPTS = 10
"""How often a write starts anew because somebody tidied its folder away: once is rare, twice was never seen."""


class Place(ABC):
    """A folder of files that are named by their path below it, with slashes.

    Methods raise FileNotFoundError for a name that is not there, and other OSErrors as the file system does.
    """

    uri: str
    """The path or the URL, as a user writes it."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """A file to read and to seek in."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a file whole, or replace it; it stays after a power cut."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> None:
        """As :meth:`write`, but raises FileExistsError where the name is taken: of several writers one wins."""

    @abstractmethod
    def move(self, source: str, target: str) -> None:
        """Give a file another name, and replace what has it; raises FileNotFoundError where there is no source."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """The names of what lies directly in a folder, sorted; none where there is no folder."""

    @abstractmethod
    def walk(self) -> Iterator[str]:
        """The name of every file, in no order."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """The size of a file in bytes, None where there is none."""

    @abstractmethod
    def zarr_store(self) -> Any:
        """What Zarr opens to read the arrays."""

    @abstractmethod
    def incoming(self) -> contextlib.AbstractContextManager[Incoming]:
        """A file to write piece by piece, which gets its name at the end."""

    @abstractmethod
    def remove_folder(self, folder: str) -> None:
        """Delete a folder with all that is in it, if it is there."""

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        return self.size(name) is not None

    def is_taken(self) -> bool:
        """Whether anything at all is there."""
        return bool(self.names(""))

    def lost(self, names: Iterable[str]) -> Iterator[str]:
        """Those of some files that are missing or empty."""
        return (name for name in names if not self.size(name))

    def sha256(self, name: str) -> str:
        """The SHA-256 of a file, in hexadecimal digits."""
        with self.open(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # an fsspec file has no readinto in its type

    def free_bytes(self) -> int | None:
        """How much may still be written; None where nobody knows."""
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"


class Incoming(ABC):
    """A file without a name: write to ``file``, then :meth:`publish` it; else nothing of it stays."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def sha256(self) -> str:
        """The SHA-256 of what was written so far, in hexadecimal digits."""
        self.file.flush()
        self.file.seek(0)
        return hashlib.file_digest(self.file, "sha256").hexdigest()  # type: ignore[arg-type]  # as in Place.sha256

    @abstractmethod
    def publish(self, name: str) -> None:
        """Give the file its name, whole, and replace what has it."""


class LocalPlace(Place):
    """A folder of this machine, or of a file system that several machines share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    def is_taken(self) -> bool:
        return os.path.lexists(self.root)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def open(self, name: str) -> IO[bytes]:
        return open(self.root / name, "rb")

    def write(self, name: str, data: bytes) -> None:
        self._put(name, data, os.replace)

    def create(self, name: str, data: bytes) -> None:
        if (self.root / name).exists():  # spares the work; what decides is the link
            raise FileExistsError(f"{name} exists")
        self._put(name, data, link)

    def move(self, source: str, target: str) -> None:
        if not (self.root / source).exists():
            raise FileNotFoundError(f"there is no {source}")
        make_folder((self.root / target).parent)
        os.replace(self.root / source, self.root / target)
        sync_folder((self.root / target).parent)

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self.root / folder))
        except FileNotFoundError:
            return []

    def walk(self) -> Iterator[str]:
        for folder, _, files in os.walk(self.root):
            below = os.path.relpath(folder, self.root).replace(os.sep, "/")
            yield from files if below == "." else (f"{below}/{file}" for file in files)

    def size(self, name: str) -> int | None:
        try:
            return os.stat(f"{self.root}/{name}").st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def zarr_store(self) -> str:
        return str(self.root)

    @contextmanager
    def incoming(self) -> Iterator[Incoming]:
        folder = self._staged()
        descriptor, path = tempfile.mkstemp(prefix=".", dir=folder)
        try:
            with os.fdopen(descriptor, "w+b") as file:
                yield _LocalIncoming(file, Path(path), self.root)
        finally:
            Path(path).unlink(missing_ok=True)

    def remove_folder(self, folder: str) -> None:
        shutil.rmtree(self.root / folder, ignore_errors=True)

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self.root).free

    def _put(self, name: str, data: bytes, into: Any) -> None:
        """Write aside, make it last, and hand it over; anew where the folder for it was tidied away meanwhile."""
        path = self.root / name
        for attempt in range(_ATTEMPTS):
            try:
                make_folder(path.parent)
                aside = self._staged() / aside_name(path.name)
                write_aside(aside, data, path, into)
                return
            except FileNotFoundError:
                if attempt + 1 == _ATTEMPTS or not self.root.is_dir():
                    raise

    def _staged(self) -> Path:
        folder = self.root / STAGED
        make_folder(folder)
        return folder


class _LocalIncoming(Incoming):
    def __init__(self, file: IO[bytes], path: Path, root: Path) -> None:
        super().__init__(file)
        self._path = path
        self._root = root

    def publish(self, name: str) -> None:
        self.file.flush()
        sync_file(self._path)
        os.chmod(self._path, 0o666 & ~_umask())  # a temporary file is its owner's alone
        target = self._root / name
        make_folder(target.parent)
        os.replace(self._path, target)
        sync_folder(target.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def write_errors(place: Place) -> Iterator[None]:
    """Around what writes to a store: what the file system says, as an error of featreg."""
    try:
        yield
    except FeatregError:
        raise
    except OSError as error:
        raise _write_error(place, error) from error


def _write_error(place: Place, error: OSError) -> StoreError:
    problem, got = f"the store {place.uri!r} cannot be written", f"{type(error).__name__}: {error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError(
            problem, "room for the features", got, remedy="make room and run it again: what is finished is kept"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreDeniedError(problem, "a folder that may be written to", got, remedy="another path, or its rights")
    return StoreError(problem, got=got)
