"""URIs as text: local paths as ``file://`` with percent-encoding (RFC 8089), any other URL as fsspec has it.

The part after the last ``#`` says what within a file is meant, as in ``…/shard.tar#offset=512&size=1234``. A local path
never holds a bare ``#``, since it is encoded, and only URIs that were made here are taken apart. Credentials never
stand in a URI: fsspec takes them from its own configuration and from the environment.
"""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl, quote, quote_from_bytes, unquote_to_bytes, urlencode

from featreg.errors import SourceError

__all__ = [
    "file_name",
    "file_uri",
    "is_url",
    "join",
    "local_path",
    "locate",
    "parent",
    "path_uri",
    "readable",
    "shown",
    "split_part",
    "suffix",
    "with_part",
]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::[A-Za-z][A-Za-z0-9+.-]*://)")  # one letter is a drive
_FILE = "file://"


def is_url(text: str) -> bool:
    """Whether this is a URL rather than a path."""
    return _URL.match(text) is not None


def file_uri(given: str | os.PathLike[str]) -> str:
    """The URI of a path or of a URL as a user gives it; raises SourceError for an empty one."""
    text = os.fspath(given)
    if not isinstance(text, str):
        raise SourceError("the path of a source is no text", "a string or a pathlib.Path", repr(given))
    if not text:
        raise SourceError("the path of a source is empty", "a file, a folder or a URL", repr(given))
    if is_url(text) and local_path(text) is None:
        return text if text.endswith("://") else text.rstrip("/")
    return path_uri(os.path.abspath(local_path(text) or text))


def path_uri(path: str) -> str:
    """The URI of an absolute local path."""
    return _FILE + quote_from_bytes(os.fsencode(path))


def local_path(uri: str) -> str | None:
    """The path behind a ``file://`` URI; None for any other."""
    if not uri.startswith(_FILE) or "::" in uri:
        return None
    return os.fsdecode(unquote_to_bytes(uri.removeprefix(_FILE).removeprefix("localhost")))


def shown(uri: str) -> str:
    """A URI as a message has it: the path where it is local."""
    return readable(local_path(uri) or uri)


def readable(name: str) -> str:
    r"""A name as text: bytes that are no UTF-8 are shown as ``\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def join(folder: str, *names: str) -> str:
    """The URI of something below a folder."""
    if local_path(folder) is not None:
        return "/".join((folder.rstrip("/"), *(quote_from_bytes(os.fsencode(name)) for name in names)))
    first, chain, rest = folder.partition("::")
    return f"{first}{'' if first.endswith('/') else '/'}{'/'.join(names)}{chain}{rest}"


def parent(uri: str) -> str:
    """The URI of the folder that a file lies in."""
    first, chain, rest = uri.partition("::")
    scheme, mark, path = first.partition("://")
    above = path.rpartition("/")[0]
    return f"{scheme}{mark}{above or ('/' if path.startswith('/') else '')}{chain}{rest}"


def locate(path: str, folder: str) -> str:
    """The URI of a path as it stands in a file: a URL as it is, any other relative to the folder of that file."""
    base = local_path(folder)
    if is_url(path):
        return path
    if base is None and not os.path.isabs(path):
        return join(folder, path)
    return path_uri(os.path.join(base or "", path))


def file_name(uri: str) -> str:
    """The last part of the path of a URI."""
    path = local_path(uri)
    return (path if path is not None else uri.partition("::")[0]).rpartition("/")[2]


def suffix(name: str) -> str:
    """The suffix of a file name, in lower case, with the dot; empty where there is none."""
    return os.path.splitext(name)[1].lower()


def with_part(uri: str, **parts: str | int) -> str:
    """The URI of something within a file."""
    return f"{uri}#{urlencode(parts, quote_via=quote)}"


def split_part(uri: str) -> tuple[str, dict[str, str]]:
    """The file of such a URI, and what within it is meant."""
    file, _, part = uri.rpartition("#")
    return file, dict(parse_qsl(part, keep_blank_values=True))
