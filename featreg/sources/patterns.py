"""Several files as one: a folder of them, a glob pattern, or braces as in ``shards/{000..123}.tar``."""

from __future__ import annotations

import glob
import os
import re

from featreg.errors import SourceError
from featreg.extras import data_extra
from featreg.sources.files import check_exists, entries, exists, file_errors, file_system, is_folder
from featreg.sources.order import natural_order
from featreg.sources.uris import file_name, join, local_path, path_uri, shown, split_chain, suffix

__all__ = ["check_files", "expand", "find_files"]

_MAGIC = re.compile(r"[*?\[{]")

SHOWN = 5
"""How many missing files an error names."""


def check_files(uri: str, end: str) -> None:
    """Raise SourceError unless a file, a folder or a pattern of files stands at this URI; ``end`` is their suffix."""
    if not is_folder(uri):
        check_exists(expand(uri)[0], folder=False)
    elif not find_files(uri, end):
        raise SourceError(
            f"the folder {shown(uri)!r} holds no {end} file", f"at least one {end}", "none directly in it"
        )


def find_files(uri: str, end: str) -> list[tuple[str, str]]:
    """The name and the URI of every file, in natural order.

    A name is the path below the folder, or below the part of a pattern that has no wildcard; it does not depend on how
    many files there are. Raises SourceError where there is none, and where alternatives in braces are missing.
    """
    if is_folder(uri):
        names = [entry.name for entry in entries(uri) if not (entry.folder or entry.name.startswith("."))]
        return [(name, join(uri, name)) for name in sorted(names, key=natural_order) if suffix(name) == end]
    if _is_literal(uri):
        return [(file_name(uri), uri)]
    fixed = _inside(uri)[: _first_magic(_inside(uri))].count("/")
    files = expand(uri)
    _check_all_there(uri, files)
    return [("/".join(_inside(found).split("/")[fixed:]), found) for found in files]


def expand(uri: str) -> list[str]:
    """The files that a pattern stands for, in natural order; the URI of something that is there, as it is.

    An alternative in braces stands for a file, there or not, so that a missing one is noticed. Raises SourceError
    where a wildcard fits nothing.
    """
    if _is_literal(uri):
        return [uri]
    found = sorted({name for pattern in _braces(uri) for name in _glob(pattern)}, key=natural_order)
    if not found:
        raise SourceError("no file fits the pattern", "at least one file", repr(shown(uri)))
    return found


def _check_all_there(uri: str, files: list[str]) -> None:
    """Raise SourceError for alternatives that are missing on this machine; elsewhere, opening each tells."""
    paths = [local_path(file) for file in files]
    missing = [file for file, path in zip(files, paths, strict=True) if path is not None and not os.path.exists(path)]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise SourceError(
            f"{len(missing)} of the {len(files)} files of the pattern {shown(uri)!r} are missing",
            "a file for each alternative in braces",
            f"without {', '.join(repr(file_name(file)) for file in missing[:SHOWN])}{more}",
        )


def _is_literal(uri: str) -> bool:
    return not _MAGIC.search(_inside(uri)) or exists(uri)


def _first_magic(path: str) -> int:
    match = _MAGIC.search(path)
    return match.start() if match else len(path)


def _inside(uri: str) -> str:
    """The path of a URI within its file system."""
    path = local_path(uri)
    return path if path is not None else file_system(uri)[1]


def _braces(uri: str) -> list[str]:
    """A pattern without braces for each of their alternatives."""
    with data_extra():
        from braceexpand import braceexpand
    path = local_path(uri)
    try:
        found = list(braceexpand(uri if path is None else path, escape=False))
    except ValueError as error:  # its UnbalancedBracesError, which its type stubs do not know
        raise SourceError("the braces of a pattern do not close", "as in shards/{000..123}.tar", shown(uri)) from error
    return found if path is None else [path_uri(name) for name in found]


def _glob(uri: str) -> list[str]:
    path = local_path(uri)
    if not glob.has_magic(path if path is not None else uri):
        return [uri]
    if path is not None:
        return [path_uri(name) for name in glob.glob(path, recursive=True)]
    fs, inside = file_system(uri)
    with file_errors(uri):
        names = fs.glob(inside)
    first, chain = split_chain(uri)
    scheme = first.partition("://")[0]
    return [name if "://" in name else f"{scheme}://{name}{chain}" for name in names]
