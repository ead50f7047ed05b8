"""The order of names: natural, and the same in every locale."""

from __future__ import annotations

import re
import sys

__all__ = ["natural_order"]

_DIGITS = re.compile("[0-9]+")


def natural_order(name: str) -> tuple[str, str]:
    """A sort key under which ``2.jpg`` comes before ``10.jpg``: runs of digits are numbers, the rest is code points.

    Two strings, since a sort holds the keys of all: a folder may have millions of names.
    """
    return _DIGITS.sub(_number, name), name


def _number(digits: re.Match[str]) -> str:
    """Digits as something that compares like their number, and before whatever else a name may hold in their place."""
    significant = digits[0].lstrip("0")
    return f"\0{chr(min(len(significant), sys.maxunicode))}{significant}"
