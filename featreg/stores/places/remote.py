"""Stores at any URL that fsspec opens: object stores, above all."""

from __future__ import annotations

import inspect
import posixpath
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import IO, Any

from featreg.errors import CapabilityError, StoreError
from featreg.extras import data_extra, extra
from featreg.stores.places.place import Incoming, Place

__all__ = ["FsspecPlace"]


AT_ONCE = 16
"""How many files are asked for at once: one after the other, each costs the way there and back."""


class FsspecPlace(Place):
    """A folder of a file system behind fsspec, whose writes appear whole, as those of every object store do.

    A file system that cannot create a file exclusively is for reading: nothing could tell which of two workers was the
    first, so that whatever writes raises CapabilityError.
    """

    def __init__(self, url: str, filesystem: Any = None) -> None:
        self.uri = url.rstrip("/")
        self._fs, self._root = (filesystem, self.uri) if filesystem is not None else _opened(self.uri)
        self._is_local = _is_local(self._fs)
        self.is_private = "memory" in _protocols(self._fs)
        self._is_writable = self._is_local or _creates(self._fs)

    def read(self, name: str) -> bytes:
        content: bytes = self._fs.cat_file(self._path(name))
        return content

    def open(self, name: str) -> IO[bytes]:
        file: IO[bytes] = self._fs.open(self._path(name), "rb")
        return file

    def read_all(self, names: Iterable[str]) -> Iterator[bytes | OSError]:
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="featreg-read") as pool:
            yield from pool.map(self._read_or_error, names)

    def write(self, name: str, data: bytes) -> None:
        self._check_writable()
        self._make_folder(name)
        self._fs.pipe_file(self._path(name), data)

    def create(self, name: str, data: bytes) -> None:
        self._check_writable()
        self._make_folder(name)
        if self._is_local:  # its pipe_file looks first and writes then
            with self._fs.open(self._path(name), "xb") as file:
                file.write(data)
        else:
            self._fs.pipe_file(self._path(name), data, mode="create")

    def move(self, source: str, target: str) -> None:
        self._check_writable()
        self._make_folder(target)
        if not self.exists(source):
            raise FileNotFoundError(f"there is no {source}")
        if self._is_local:
            self._fs.mv(self._path(source), self._path(target))
        else:  # its mv takes ? * [ in a path for patterns
            self._fs.cp_file(self._path(source), self._path(target))
            self._fs.rm_file(self._path(source))

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def names(self, folder: str) -> list[str]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._path(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(posixpath.basename(path.rstrip("/")) for path in found)

    def walk(self) -> Iterator[str]:
        self._fs.invalidate_cache()
        above = len(self._fs._strip_protocol(self._root)) + 1
        return (path[above:] for path in self._fs.find(self._root))

    def size(self, name: str) -> int | None:
        self._fs.invalidate_cache()
        try:
            entry = self._fs.info(self._path(name))
        except FileNotFoundError:
            return None
        return int(entry["size"]) if entry["type"] == "file" else None

    def stamp(self, name: str) -> object:
        self._fs.invalidate_cache()
        with suppress(FileNotFoundError):
            return self._fs.checksum(self._path(name))
        return None

    def lost(self, names: Iterable[str]) -> Iterator[str]:
        """One listing for each array in place of one question for each shard."""
        self._fs.invalidate_cache()
        sizes: dict[str, dict[str, Any]] = {}
        for name in names:
            folder = name.partition("/")[0]
            if folder not in sizes:
                sizes[folder] = self._fs.find(self._path(folder), detail=True)
            entry = sizes[folder].get(self._fs._strip_protocol(self._path(name)))
            if not entry or not entry["size"]:
                yield name

    def zarr_store(self) -> Any:
        with data_extra():
            from zarr.storage import FsspecStore
        return FsspecStore.from_url(self.uri, read_only=True)

    @contextmanager
    def incoming(self) -> Iterator[Incoming]:
        self._check_writable()
        with tempfile.NamedTemporaryFile() as file:
            yield _Upload(file, self)

    def remove_folder(self, folder: str) -> None:
        if self._is_local:  # others have no folders, or none that matter
            with suppress(OSError):
                self._fs.rmdir(self._path(folder))

    def upload(self, local: str, name: str) -> None:
        """Put a local file here."""
        self._make_folder(name)
        self._fs.put_file(local, self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _check_writable(self) -> None:
        if not self._is_writable:
            raise CapabilityError(
                f"{self.uri!r} cannot hold a store that is written to: its file system creates no file exclusively",
                "a local or shared folder, or an object store whose fsspec has pipe_file(mode='create')",
                type(self._fs).__name__,
                remedy="extract to a local folder and copy it there",
            )

    def _make_folder(self, name: str) -> None:
        if self._is_local:  # others have no folders, or none that need to be made
            self._fs.makedirs(posixpath.dirname(self._path(name)), exist_ok=True)


class _Upload(Incoming):
    def __init__(self, file: Any, place: FsspecPlace) -> None:
        super().__init__(file)
        self._place = place

    def publish(self, name: str) -> None:
        self.file.flush()
        self._place.upload(self.file.name, name)


def _opened(url: str) -> tuple[Any, str]:
    with extra("remote", "stores at URLs"):
        from fsspec.core import url_to_fs
    try:
        filesystem, root = url_to_fs(url)
    except (ValueError, ImportError, OSError) as error:
        raise StoreError(
            f"a store cannot be at {url!r}",
            "a local path, or a URL that fsspec opens",
            f"{type(error).__name__}: {error}",
            remedy="install the fsspec driver that the error names, or check the URL",
        ) from error
    return filesystem, str(root)


def _is_local(filesystem: Any) -> bool:
    return "file" in _protocols(filesystem)


def _protocols(filesystem: Any) -> Sequence[str]:
    """What a file system calls itself: one name, or several."""
    return [filesystem.protocol] if isinstance(filesystem.protocol, str) else filesystem.protocol


def _creates(filesystem: Any) -> bool:
    """Whether the file system has an exclusive ``pipe_file`` of its own; that of the base class looks, then writes."""
    with extra("remote", "stores at URLs"):
        from fsspec import AbstractFileSystem
    own = getattr(type(filesystem), "_pipe_file", None) or type(filesystem).pipe_file
    return own is not AbstractFileSystem.pipe_file and "mode" in inspect.signature(own).parameters
