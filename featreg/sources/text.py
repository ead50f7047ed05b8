"""A list of texts, one a line."""

from __future__ import annotations

import os
from collections.abc import Iterator

from featreg.errors import SourceError
from featreg.sources.base import Sample, Source
from featreg.sources.files import check_exists, file_errors, open_file, read_range
from featreg.sources.uris import file_uri, shown, split_part, with_part

__all__ = ["TextSource"]


class TextSource(Source):
    r"""The lines of a UTF-8 file as texts: line n is row n - 1, and its key is ``n``.

    A line ends with ``\n`` or ``\r\n``; a byte order mark is left out. An empty line, or one that is no UTF-8, keeps
    its row and fails when it is read.

    Raises SourceError for a file that is missing; ``index()`` does for an empty one.
    """

    kind = "text"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.uri = file_uri(path)
        check_exists(self.uri, folder=False)

    def index(self) -> Iterator[Sample]:
        number, start = 0, 0
        with open_file(self.uri) as file, file_errors(self.uri):
            if file.read(3) == b"\xef\xbb\xbf":
                start = 3
            file.seek(start)
            for line in file:
                number += 1
                size = len(line.removesuffix(b"\n").removesuffix(b"\r"))
                yield Sample(str(number), with_part(self.uri, offset=start, size=size), None, size)
                start += len(line)
        if not number:
            raise SourceError(f"{shown(self.uri)!r} holds no texts", "one text a line", "an empty file")

    def read(self, sample: Sample) -> str:
        file, part = split_part(sample.uri)
        data = read_range(file, int(part["offset"]), int(part["size"]), sample.key)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SourceError(f"line {sample.key} is no UTF-8", "a text in UTF-8", str(error)) from error
        if not text.strip():
            raise SourceError(f"line {sample.key} is empty", "a text", repr(text))
        return text
