"""Where a store lies: named files, each of which is there whole or not at all.

The commit protocol needs four things of a place: a file appears whole, :meth:`Place.create` lets the first of several
writers win, :meth:`Place.move` replaces a file whole, and a name is there for everyone once it is there for one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from featreg.stores.places.disk import aside_name, link, make_folder, sync_folder, write_aside
from featreg.stores.places.oserrors import read_errors, write_errors

__all__ = ["STAGED", "Incoming", "LocalPlace", "Place", "read_errors", "write_errors"]

T = TypeVar("T")

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

    is_private = False
    """Whether no other process can open it."""

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

    def iter_names(self, folder: str) -> Iterator[str]:
        """The same names one by one, in no order: there may be millions."""
        return iter(self.names(folder))

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
        """Delete a folder, if it is there and nothing is in it."""

    def read_all(self, names: Iterable[str]) -> Iterator[bytes | OSError]:
        """The content of several files in order, or why one cannot be read."""
        return map(self._read_or_error, names)

    def _read_or_error(self, name: str) -> bytes | OSError:
        try:
            return self.read(name)
        except OSError as error:
            return error

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        return self.size(name) is not None

    def stamp(self, name: str) -> object:
        """What differs once a file was replaced by another, None where there is none; cheap where that can be."""
        return self.sha256(name) if self.exists(name) else None

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
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.root / name)
            sync_folder((self.root / name).parent)

    def names(self, folder: str) -> list[str]:
        return sorted(self.iter_names(folder))

    def iter_names(self, folder: str) -> Iterator[str]:
        try:
            with os.scandir(self.root / folder) as entries:
                yield from (entry.name for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return

    def walk(self) -> Iterator[str]:
        for folder, _, files in os.walk(self.root):
            below = os.path.relpath(folder, self.root).replace(os.sep, "/")
            yield from files if below == "." else (f"{below}/{file}" for file in files)

    def size(self, name: str) -> int | None:
        try:
            found = os.stat(f"{self.root}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def stamp(self, name: str) -> object:
        try:
            found = os.stat(self.root / name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    def zarr_store(self) -> str:
        return str(self.root)

    @contextmanager
    def incoming(self) -> Iterator[Incoming]:
        with self._new_staged() as file:
            try:
                yield _LocalIncoming(file, self)
            finally:
                Path(file.name).unlink(missing_ok=True)

    def remove_folder(self, folder: str) -> None:
        with contextlib.suppress(OSError):
            (self.root / folder).rmdir()

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self.root).free

    def _put(self, name: str, data: bytes, into: Any) -> None:
        """Write aside, make it last, and hand it over; anew where somebody has tidied it away meanwhile."""
        path = self.root / name

        def put() -> None:
            make_folder(path.parent)
            write_aside(self._staged() / aside_name(path.name), data, path, into)

        self._persist(put)

    def _new_staged(self) -> IO[bytes]:
        return self._persist(lambda: open(self._staged() / aside_name("file"), "xb+"))

    def _persist(self, attempt: Callable[[], T]) -> T:
        """Try again where a file that is on its way, or its folder, was tidied away by somebody who finished."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return attempt()
            except FileNotFoundError:
                if not self.root.is_dir():
                    raise
        return attempt()

    def _staged(self) -> Path:
        folder = self.root / STAGED
        make_folder(folder)
        return folder


class _LocalIncoming(Incoming):
    def __init__(self, file: IO[bytes], place: LocalPlace) -> None:
        super().__init__(file)
        self._place = place

    def publish(self, name: str) -> None:
        target = self._place.root / name
        self.file.flush()
        os.fsync(self.file.fileno())
        make_folder(target.parent)
        try:
            os.replace(self.file.name, target)
        except FileNotFoundError:  # somebody who finished has tidied it away; what is open can still be read
            self._place._persist(lambda: self._copy(target))
        sync_folder(target.parent)

    def _copy(self, target: Path) -> None:
        self.file.seek(0)
        with self._place._new_staged() as copy:
            shutil.copyfileobj(self.file, copy)
            copy.flush()
            os.fsync(copy.fileno())
        try:
            os.replace(copy.name, target)
        finally:
            Path(copy.name).unlink(missing_ok=True)
