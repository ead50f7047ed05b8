"""The order of names: natural, and the same in every locale."""

from __future__ import annotations

import re

__all__ = ["natural_order"]

_DIGITS = re.compile(r"([0-9]+)")


def natural_order(name: str) -> tuple[object, ...]:
    """A sort key under which ``2.jpg`` comes before ``10.jpg``: runs of digits are numbers, the rest is code points."""
    parts: list[object] = list(_DIGITS.split(name))
    parts[1::2] = [_number(str(digits)) for digits in parts[1::2]]
    return (parts, name)


def _number(digits: str) -> tuple[int, str]:
    """Digits as something that compares like their number; ``int`` takes only so many of them."""
    significant = digits.lstrip("0")
    return len(significant), significant
