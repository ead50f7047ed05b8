"""What a file system says of a store, as errors of featreg."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from featreg.errors import FeatregError, StoreDamagedError, StoreDeniedError, StoreError, StoreFullError

__all__ = ["no_file", "read_errors", "write_errors"]


class Located(Protocol):
    """What is somewhere: a place."""

    @property
    def uri(self) -> str: ...


@contextmanager
def read_errors(place: Located, name: str | None = None) -> Iterator[None]:
    """Around what reads a store, or a file of it: what the file system says, as an error of featreg.

    A file that is not there stays a FileNotFoundError; one that the disk cannot give back is damaged.
    """
    try:
        yield
    except (FeatregError, FileNotFoundError):
        raise
    except OSError as error:
        problem = f"the store {place.uri!r} cannot be read" if name is None else f"{name!r} cannot be read"
        raise _read_error(error)(
            problem,
            "a file that may be read",
            f"{type(error).__name__}: {error}",
            remedy="look at its rights, the disk and the network, then featreg verify STORE",
        ) from error


def no_file(error: OSError) -> bool:
    """Whether something else is where a file should be: a folder, or a link that leads in a circle."""
    return error.errno in (errno.EISDIR, errno.ELOOP, errno.ENOTDIR)


def _read_error(error: OSError) -> type[StoreError]:
    if error.errno in (errno.EACCES, errno.EPERM):
        return StoreDeniedError
    return StoreDamagedError if error.errno == errno.EIO else StoreError


@contextmanager
def write_errors(place: Located) -> Iterator[None]:
    """Around what writes to a store: what the file system says, as an error of featreg."""
    try:
        yield
    except FeatregError:
        raise
    except OSError as error:
        raise _write_error(place, error) from error


def _write_error(place: Located, error: OSError) -> StoreError:
    problem, got = f"the store {place.uri!r} cannot be written", f"{type(error).__name__}: {error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError(
            problem, "room for the features", got, remedy="make room and run it again: what is finished is kept"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreDeniedError(problem, "a folder that may be written to", got, remedy="another path, or its rights")
    return StoreError(problem, "a folder that can be made and written to", got, remedy="another path")
