"""URIs as text: local paths as ``file://`` with percent-encoding (RFC 8089), any other URL as fsspec has it.

fsspec chains file systems as in ``zip://a.png::s3://bucket/x.zip``; a ``::`` that no URL follows is part of a name.

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
    "split_chain",
    "split_part",
    "suffix",
    "with_part",
]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::[A-Za-z][A-Za-z0-9+.-]*://)")  # one letter is a drive
_CHAIN = re.compile(r"::(?=(?:(?:simple|file|block)cache::)*[A-Za-z][A-Za-z0-9+.-]*://)")  # caches have no path
_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")
_FILE = "file://"


def is_url(text: str) -> bool:
    """Whether this is a URL rather than a path."""
    return _URL.match(text) is not None


def file_uri(given: str | os.PathLike[str]) -> str:
    """The URI of a path or of a URL as a user gives it; raises SourceError for an empty one or one with a password."""
    text = os.fspath(given)
    if not isinstance(text, str):
        raise SourceError("the path of a source is no text", "a string or a pathlib.Path", repr(given))
    if not text:
        raise SourceError("the path of a source is empty", "a file, a folder or a URL", repr(given))
    if _PASSWORD.search(text):
        raise SourceError(
            "the URL of a source holds a password, and every store of it would",
            "a URL without credentials",
            _PASSWORD.sub("://...@", text),
            remedy="fsspec takes them from its configuration (fsspec.config) and from the environment",
        )
    if is_url(text) and local_path(text) is None:
        return text if text.endswith("://") else text.rstrip("/")
    return path_uri(os.path.abspath(local_path(text) or text))


def path_uri(path: str) -> str:
    """The URI of an absolute local path."""
    return _FILE + quote_from_bytes(_encoded(path))


def local_path(uri: str) -> str | None:
    """The path behind a ``file://`` URI; None for any other."""
    if not uri.startswith(_FILE) or split_chain(uri)[1]:
        return None
    return os.fsdecode(unquote_to_bytes(uri.removeprefix(_FILE).removeprefix("localhost")))


def shown(uri: str) -> str:
    """A URI as a message has it: the path where it is local."""
    return readable(local_path(uri) or uri)


def readable(name: str) -> str:
    r"""A name as text: bytes that are no UTF-8 are shown as ``\xNN``."""
    return _encoded(name).decode("utf-8", "backslashreplace")


def join(folder: str, *names: str) -> str:
    """The URI of something below a folder."""
    if local_path(folder) is not None:
        return "/".join((folder.rstrip("/"), *(quote_from_bytes(_encoded(name)) for name in names)))
    first, chain = split_chain(folder)
    return f"{first}{'' if first.endswith('/') else '/'}{'/'.join(map(readable, names))}{chain}"


def parent(uri: str) -> str:
    """The URI of the folder that a file lies in."""
    first, chain = split_chain(uri)
    scheme, mark, path = first.partition("://")
    above = path.rpartition("/")[0]
    return f"{scheme}{mark}{above or ('/' if path.startswith('/') else '')}{chain}"


def locate(path: str, folder: str) -> str:
    """The URI of a path as it stands in a file: a URL as it is, any other relative to the folder of that file."""
    base = local_path(folder)
    if is_url(path):
        return readable(path)
    if base is None and not os.path.isabs(path):
        return join(folder, path)
    return path_uri(os.path.join(base or "", path))


def file_name(uri: str) -> str:
    """The last part of the path of a URI."""
    path = local_path(uri)
    return (path if path is not None else split_chain(uri)[0]).rpartition("/")[2]


def suffix(name: str) -> str:
    """The suffix of a file name, in lower case, with the dot; empty where there is none."""
    return os.path.splitext(name)[1].lower()


def split_chain(url: str) -> tuple[str, str]:
    """What lies in the first file system of a chained URL, and the rest with its ``::``, empty where there is none."""
    match = _CHAIN.search(url) if "::" in url else None
    return (url[: match.start()], url[match.start() :]) if match else (url, "")


def with_part(uri: str, **parts: str | int) -> str:
    """The URI of something within a file."""
    return f"{uri}#{urlencode(parts, quote_via=quote)}"


def split_part(uri: str) -> tuple[str, dict[str, str]]:
    """The file of such a URI, and what within it is meant."""
    file, _, part = uri.rpartition("#")
    return file, dict(parse_qsl(part, keep_blank_values=True))


def _encoded(name: str) -> bytes:
    """The bytes of a name in this file system; those of code points that no file system has are there to be shown."""
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogatepass")
