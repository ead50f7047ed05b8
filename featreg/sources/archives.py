"""The members of a tar archive, one after the other, and where it is damaged."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import IO, Any

from featreg.errors import SourceError
from featreg.sources.files import file_errors
from featreg.sources.uris import shown

__all__ = ["members"]

_DAMAGE = (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError)
"""What tarfile raises for headers that make no sense, such as sizes beyond any memory; OSErrors are the disk's."""

_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""How files of gzip, bzip2, xz and Zstandard begin."""


def members(file: IO[bytes], uri: str) -> Iterator[tarfile.TarInfo | int]:
    """Every member; then, where the archive is cut or damaged, the offset at which that shows.

    Raises SourceError for a compressed archive, and where the disk or the network fails.
    """
    done = 0
    try:
        with file_errors(uri, among=_DAMAGE):
            end = file.seek(0, os.SEEK_END)
            for member, done in _walk(file, end):  # noqa: B007  (what was done is told where the walk fails)
                yield member
            if done > end or _is_cut(file, done):
                yield min(done, end)
    except _DAMAGE as error:
        if done == 0:
            _check_plain(file, uri, error)
        yield min(done, end)


def _walk(file: IO[bytes], end: int) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Every member, and the offset behind it."""
    file.seek(0)
    archive: Any  # its list of members is documented, and not in the stubs
    with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as archive:
        before = 0
        while before <= end and (member := archive.next()) is not None:
            archive.members.clear()  # which would hold every one
            if member.size < 0 or archive.offset <= before:
                raise tarfile.ReadError("a member that ends before it begins")
            before = archive.offset
            yield member, before


def _is_cut(file: IO[bytes], end: int) -> bool:
    """Whether an archive stops without the block of zeros that ends one, which tarfile takes for its end as well."""
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    return len(block) < tarfile.BLOCKSIZE or bool(block.strip(b"\0"))


def _check_plain(file: IO[bytes], uri: str, error: Exception) -> None:
    file.seek(0)
    if file.read(6).startswith(_PACKED):
        raise SourceError(
            f"{shown(uri)!r} is compressed",
            "a plain .tar, which can be read by offset",
            "a compressed archive",
            remedy="uncompress it: images hardly shrink",
        ) from error
