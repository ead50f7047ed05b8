"""Reading local files and, through fsspec, remote ones, by their URIs."""

from __future__ import annotations

import difflib
import functools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeAlias

import attrs

from featreg.errors import FeatregError, MissingDependencyError, SourceError, near_matches
from featreg.extras import extra
from featreg.sources.uris import file_name, local_path, parent, shown, split_chain

__all__ = [
    "MAX_BYTES",
    "Entry",
    "Identity",
    "check_exists",
    "check_unchanged",
    "entries",
    "exists",
    "file_errors",
    "file_system",
    "identity",
    "is_folder",
    "open_file",
    "read_file",
    "read_range",
    "size_of",
]

MAX_BYTES = 2**31
"""The most bytes of one sample: two GiB hold any image that :data:`featreg.images.MAX_PIXELS` allows."""


LIKENESS = 0.7
"""How alike two names are, as difflib counts, of which one may be meant by the other."""


@attrs.frozen
class Entry:
    """One name in a folder; what is no folder may be anything else. ``size`` is None where listing does not tell it."""

    name: str
    folder: bool
    size: int | None = None
    link: bool = False


Identity: TypeAlias = tuple[int, int]
"""The device and the number of a local folder, however it was reached."""


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path within; raises SourceError and MissingDependencyError."""
    first, chain = split_chain(url)
    scheme, mark, path = first.partition("://")
    if chain and mark:
        fs = _archive(scheme, chain.removeprefix("::"))
        return fs, str(fs._strip_protocol(path))
    if "::" in path:  # which fsspec would take for a chain
        fs, above = file_system(parent(url))
        return fs, f"{above.rstrip('/')}/{file_name(url)}"
    with extra("remote", "URLs"):
        import fsspec
    with file_errors(url):
        options = {} if chain else {"use_listings_cache": False}  # which would hold every name of a walk
        fs, inside = fsspec.url_to_fs(url, **options)
    return fs, inside


@functools.lru_cache(maxsize=8)
def _archive(scheme: str, url: str) -> Any:
    """The file system inside of a file, such as a .zip; fsspec itself would read its directory for every member."""
    with extra("remote", "URLs"):
        import fsspec
    with file_errors(url):
        return fsspec.url_to_fs(f"{scheme}://::{url}")[0]


@contextmanager
def file_errors(uri: str, key: str = "", among: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """What a file system raises, as SourceError; remote ones raise anything. What is ``among`` these stays itself."""
    try:
        yield
    except (FeatregError, MemoryError):
        raise
    except among:
        raise
    except ImportError as error:  # the file system's own package
        raise MissingDependencyError(
            f"{uri!r} needs a package of its own",
            "an installed fsspec file system",
            str(error),
            remedy="install with pip what is named here",
        ) from error
    except OSError as error:
        said = error.strerror or f"{type(error).__name__}: {error}"
        raise SourceError(f"the file cannot be read: {said}", got=repr(key or uri)) from error
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise SourceError(f"the file cannot be read: {said}", got=repr(key or uri)) from error


def exists(uri: str) -> bool:
    """Whether anything is there; raises SourceError where that cannot be told."""
    path = local_path(uri)
    if path is not None:
        return os.path.lexists(path)
    fs, inside = file_system(uri)
    with file_errors(uri):
        return bool(fs.exists(inside))


def is_folder(uri: str) -> bool:
    """Whether a folder is there; raises SourceError where that cannot be told."""
    path = local_path(uri)
    if path is not None:
        return os.path.isdir(path)
    fs, inside = file_system(uri)
    with file_errors(uri):
        return bool(fs.isdir(inside))


def check_exists(uri: str, *, folder: bool) -> None:
    """Raise SourceError unless there is a folder (or a file) at this URI, naming what lies beside it."""
    wanted, other = ("a folder", "a file") if folder else ("a file", "a folder")
    if not exists(uri):
        raise SourceError(
            f"there is no {wanted[2:]} {file_name(uri)!r}",
            wanted,
            f"nothing at {shown(uri)!r}",
            _beside(uri),
        )
    if is_folder(uri) != folder:
        raise SourceError(f"{shown(uri)!r} is not {wanted}", wanted, other)


def entries(folder: str) -> list[Entry]:
    """Everything in a folder, in no order; a broken link counts as a file. Raises SourceError."""
    path = local_path(folder)
    if path is None:
        return _remote_entries(folder)
    try:
        with os.scandir(path) as found:
            return [_local_entry(entry) for entry in found]
    except OSError as error:
        raise SourceError(f"the folder {path!r} cannot be listed: {error.strerror}") from error


def identity(folder: str) -> Identity | None:
    """What tells a local folder from every other; None elsewhere, where nothing links."""
    path = local_path(folder)
    if path is None:
        return None
    with file_errors(folder):
        status = os.stat(path)
    return status.st_dev, status.st_ino


def size_of(uri: str) -> int | None:
    """The bytes of a file; None where that cannot be told."""
    path = local_path(uri)
    try:
        return os.stat(path).st_size if path is not None else int(_info(uri)["size"])
    except (OSError, SourceError, KeyError, TypeError):
        return None


def read_file(uri: str, key: str, size: int | None = None) -> bytes:
    """All bytes of a file; raises SourceError, which names ``key``, also where ``size`` is said to be too large."""
    _check_size(size or 0, key)
    if local_path(uri) is None:
        fs, inside = file_system(uri)
        with file_errors(uri, key):
            return bytes(fs.cat_file(inside))
    with open_file(uri, key) as file, file_errors(uri, key):
        there = os.fstat(file.fileno()).st_size
        _check_size(there, key)
        return file.read(there)  # and no more: files as in /proc are said to be empty, and some never end


def check_unchanged(data: bytes, size: int | None, key: str) -> None:
    """Raise SourceError for a file of another size than the index has taken down, if it has."""
    if size is not None and len(data) != size:
        raise SourceError(
            "the file has changed since it was indexed",
            f"{size} bytes",
            f"{len(data)} bytes for {key!r}",
            remedy="put the file back as it was; featreg repair STORE --retry-failed takes it as it is by now",
        )


def read_range(uri: str, offset: int, size: int, key: str) -> bytes:
    """``size`` bytes of a file from ``offset``; raises SourceError, also where the file ends before."""
    _check_size(size, key)
    if local_path(uri) is None:
        fs, inside = file_system(uri)
        with file_errors(uri, key):
            data = bytes(fs.cat_file(inside, start=offset, end=offset + size)) if size else b""
    else:
        with open_file(uri, key) as file, file_errors(uri, key):
            there = max(os.fstat(file.fileno()).st_size - offset, 0)  # before memory is taken for what is not there
            file.seek(offset)
            data = file.read(min(size, there))
    if len(data) != size:
        raise SourceError("the file ends before the sample does", f"{size} bytes", f"{len(data)} bytes for {key!r}")
    return data


def open_file(uri: str, key: str = "") -> IO[bytes]:
    """A file to read from; what is no file of its own, such as a pipe, is refused. Raises SourceError."""
    path = local_path(uri)
    if path is None:
        fs, inside = file_system(uri)
        with file_errors(uri, key):
            opened: IO[bytes] = fs.open(inside, "rb")
            return opened
    with file_errors(uri, key):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # reading a pipe or a device may never end
            raise SourceError(
                "this is no file", "a file", f"{'a folder' if stat.S_ISDIR(mode) else 'a pipe or device'} at {path!r}"
            )
        return open(path, "rb")


def _check_size(size: int, key: str) -> None:
    if not 0 <= size <= MAX_BYTES:
        raise SourceError("too large to be a sample", f"at most {MAX_BYTES} bytes", f"{size} bytes for {key!r}")


def _beside(uri: str) -> tuple[str, ...]:
    """What lies there under a name that somebody may have meant: a folder holds all sorts of other names."""
    name = file_name(uri)
    return tuple(near for near in near_matches(name, _siblings(uri)) if _looks_like(name, near))


def _looks_like(name: str, near: str) -> bool:
    one, other = name.casefold(), near.casefold()
    return one in other or difflib.SequenceMatcher(a=one, b=other).ratio() >= LIKENESS


def _siblings(uri: str) -> list[str]:
    try:
        return [entry.name for entry in entries(parent(uri))]
    except SourceError:
        return []


def _info(uri: str) -> dict[str, Any]:
    fs, inside = file_system(uri)
    with file_errors(uri):
        return dict(fs.info(inside))


def _local_entry(entry: os.DirEntry[str]) -> Entry:
    try:
        return Entry(entry.name, entry.is_dir(), link=entry.is_symlink())
    except OSError:  # a link that leads in a circle, or to where nobody may look
        return Entry(entry.name, folder=False)


def _remote_entries(folder: str) -> list[Entry]:
    fs, inside = file_system(folder)
    with file_errors(folder):
        listed = fs.ls(inside, detail=True)
    found = []
    for info in listed:
        path = info["name"].rstrip("/")
        if path.strip("/") != inside.strip("/"):  # object stores may list the folder itself
            found.append(Entry(path.rpartition("/")[2], info["type"] == "directory", info.get("size")))
    return found
