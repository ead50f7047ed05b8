"""Plain-text tables for the terminal."""

from __future__ import annotations

import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["format_fields", "format_table"]

_GAP = "  "
_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+%?")
_NARROWEST = 24


def format_table(headers: Sequence[str], rows: Iterable[Sequence[Any]], width: int | None = None) -> str:
    """Aligned columns under a ruled header, without a newline at the end.

    None prints as ``-``. A column of nothing but numbers is aligned to the right. Nothing is ever cut off: where the
    table is wider than ``width`` (by default the terminal; without one there is no limit) the last column wraps.
    """
    body = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *body, strict=True)]
    right = [_is_numeric(column) for column in zip(*body, strict=True)] or [False] * len(widths)
    limit = _terminal_width() if width is None else width
    indent = sum(widths[:-1]) + len(_GAP) * (len(widths) - 1)
    wrapped = [_wrap(row[-1], None if limit is None else limit - indent) for row in body]
    widths[-1] = max(map(len, [headers[-1], *itertools.chain.from_iterable(wrapped)]))
    lines = [_line(headers, widths, right), _GAP.join("-" * column for column in widths)]
    for row, (first, *more) in zip(body, wrapped, strict=True):
        lines.append(_line([*row[:-1], first], widths, right))
        lines += [" " * indent + line for line in more]
    return "\n".join(line.rstrip() for line in lines)


def format_fields(fields: Mapping[str, str], width: int | None = None) -> str:
    """One labelled value a line, the values aligned and wrapped; ``width`` as in :func:`format_table`."""
    limit = _terminal_width() if width is None else width
    label_width = max(map(len, fields), default=0)
    lines = []
    for label, value in fields.items():
        first, *more = _wrap(value, None if limit is None else limit - label_width - len(_GAP))
        lines.append(f"{label.ljust(label_width)}{_GAP}{first}")
        lines += [" " * (label_width + len(_GAP)) + line for line in more]
    return "\n".join(line.rstrip() for line in lines)


def _wrap(text: str, width: int | None) -> list[str]:
    if width is None:
        return [text]
    return textwrap.wrap(text, max(width, _NARROWEST), break_long_words=False, break_on_hyphens=False) or [""]


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    return _GAP.join(
        cell.rjust(width) if to_right else cell.ljust(width)
        for cell, width, to_right in zip(cells, widths, right, strict=True)
    )


def _is_numeric(column: Iterable[str]) -> bool:
    return all(cell == "-" or _NUMBER.fullmatch(cell) for cell in column)


def _terminal_width() -> int | None:
    """The width of the terminal; None where the output goes elsewhere, so that a pipe gets one line a row."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
