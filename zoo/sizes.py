"""Which input sizes are tried on a model, from its own size and its rule."""

from __future__ import annotations

from typing import Protocol

__all__ = ["ODD", "OBLONG", "Rule", "allows", "plan"]

Size = tuple[int, int]
OBLONG: Size = (193, 257)
ODD: Size = (225, 225)


class Rule(Protocol):
    """The fields of featreg's InputRule; its own check is not used."""

    @property
    def fixed(self) -> Size | None: ...
    @property
    def multiple_of(self) -> int: ...
    @property
    def minimum(self) -> Size: ...


def allows(rule: Rule, size: Size) -> bool:
    """Whether an image of this size may go in, by the words of the specification."""
    if rule.fixed is not None:
        return size == rule.fixed
    least = all(side >= bound for side, bound in zip(size, rule.minimum, strict=True))
    return least and all(side % rule.multiple_of == 0 for side in size)


def plan(native: Size, rule: Rule) -> list[Size]:
    """The native size, an oblong one and an odd one, and where the rule excludes these some at its own edges.

    Beyond those three: the oblong size rounded up to the rule's multiple, the least size that the rule allows,
    and one size that breaks the rule where none of the others does.
    """
    sizes = [native, OBLONG, ODD]
    if rule.fixed is None and rule.multiple_of > 1:
        sizes.append(_rounded_up(OBLONG, rule))
    if rule.fixed is None and min(rule.minimum) > 1:
        sizes.append(_rounded_up((1, 1), rule))
    if all(allows(rule, size) for size in sizes):
        sizes += _outside(native, rule)
    return list(dict.fromkeys(sizes))


def _rounded_up(size: Size, rule: Rule) -> Size:
    height, width = (max(side, bound) for side, bound in zip(size, rule.minimum, strict=True))
    step = rule.multiple_of
    return -(-height // step) * step, -(-width // step) * step


def _outside(native: Size, rule: Rule) -> list[Size]:
    if rule.multiple_of > 1:
        return [(native[0] + 1, native[1])]
    if min(rule.minimum) > 1:
        return [(rule.minimum[0] - 1, native[1])]
    return []
