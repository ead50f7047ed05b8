"""The whole stages of a raw network, found from its modules' outputs alone: what its levels must be.

Written from ``specs/levels.md``; it shares no code with featreg's own rule, and knows modules and their strides only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import attrs

from zoo.survey import Survey, level_number

__all__ = ["Stage", "find_stages"]


@attrs.frozen
class Stage:
    """A stage or block, and the k of its stride 2^k. ``inside`` are the modules that ran in it.

    One that is not ``whole`` makes maps of this stride inside, and gives none, or several.
    """

    name: str
    number: int
    inside: tuple[str, ...] = ()
    whole: bool = True


def find_stages(survey: Survey, encoder: str = "") -> list[Stage]:
    """The stages in order, up to where the resolution grows again; ``encoder`` is the module to look into.

    Of a plain transformer it is the last of its blocks alone.
    """
    tree = _Tree(survey, encoder)
    block = tree.last_block()
    if block is not None:
        return [block]
    return _until_growth(_without_closing(tree.stages(), survey))


class _Tree:
    """The modules that ran in an encoder, and which of them ran inside which."""

    def __init__(self, survey: Survey, encoder: str) -> None:
        self._survey = survey
        self._root = f"{encoder}." if encoder else ""
        self._ran = [name for name in survey.outputs if name.startswith(self._root)]
        self._holds: dict[str, list[str]] = {}
        for name in self._ran:
            for end in (position for position, letter in enumerate(name) if letter == "."):
                self._holds.setdefault(name[:end], []).append(name)

    def stages(self) -> list[Stage]:
        order = {name: position for position, name in enumerate(self._survey.outputs)}
        return sorted(self._stages(self._root, 0, outermost=True), key=lambda stage: order[stage.name])

    def last_block(self) -> Stage | None:
        """The last block of a plain transformer: alike modules side by side, whose tokens keep one length."""
        groups: dict[tuple[str, str], list[str]] = {}
        for name in self._ran:
            module, tokens = self._survey.modules[name], len(self._survey.outputs[name]) == 3
            if (
                tokens
                and not self._is_within_several(name)
                and self._survey.level(name) is not None
                and not self._passive(name)
            ):
                groups.setdefault((module.parent, module.type), []).append(name)
        alike = [group for group in groups.values() if len(group) > 1 and self._is_uniform(group)]
        if not alike or len({self._survey.level(group[0]) for group in alike}) != 1:
            return None
        blocks = min(alike, key=lambda group: (group[0].count("."), -len(group)))
        number = self._survey.level(blocks[-1])
        deeper = [name for name in self._ran if (self._survey.level(name) or 0) > (number or 0)]
        return Stage(blocks[-1], number) if number is not None and not deeper else None

    def _is_within_several(self, name: str) -> bool:
        """Whether a module around this one, in the encoder, gives something else than a single tensor."""
        ends = (position for position, letter in enumerate(name) if letter == "." and position >= len(self._root))
        return any(self._survey.outputs.get(name[:end]) == () for end in ends)

    def _is_uniform(self, group: Sequence[str]) -> bool:
        return len({self._survey.outputs[name] for name in group}) == 1

    def _stages(self, prefix: str, before: int, *, outermost: bool = False) -> Iterator[Stage]:
        children = self._children(prefix)
        lone = outermost and sum(self._deepest(child) is not None for child in children) == 1
        for child in children:
            inside = self._inside(child)
            own = self._survey.level(child)
            if self._survey.outputs.get(child) == () and not lone and (self._deepest(child) or 0) <= before + 1:
                numbers = {k for name in inside if (k := self._survey.level(name)) is not None}
                yield from (Stage(child, number, inside, whole=False) for number in sorted(numbers))
            elif inside and (lone or self._holds_stages(child, own, before)):
                yield from self._stages(f"{child}.", before, outermost=lone)
            elif own is not None and not self._passive(child):
                yield Stage(child, own, inside)
            after = self._own_or_last(child)
            before = before if after is None else after

    def _holds_stages(self, name: str, own: int | None, before: int) -> bool:
        """Whether a module is more than one stage: it gives no map, or halves more than once, or for the next stage."""
        deepest = self._deepest(name)
        if own is None:
            return deepest is not None and not self._gives_few_cells(name)
        return deepest is not None and own > before and (own > before + 1 or self._halves_last(name, own))

    def _gives_few_cells(self, name: str) -> bool:
        """Whether a module gives a map too small to tell its stride, as SSD's extra stages do."""
        survey = self._survey
        shape = survey.outputs.get(name, ())
        return len(shape) == 4 and level_number(shape, survey.size, survey.batch, survey.prefix) is not None

    def _halves_last(self, name: str, own: int) -> bool:
        """Whether blocks that keep the stride come first in a stage, and only its last child halves it."""
        children = [child for child in self._children(f"{name}.") if self._deepest(child) is not None]
        numbers = [self._own_or_last(child) for child in children]
        blocks = any(self._is_block(child) for child in children[:-1])
        return blocks and numbers[-1] == own and set(numbers[:-1]) == {own - 1}

    def _own_or_last(self, name: str) -> int | None:
        own = self._survey.level(name)
        return (
            own
            if own is not None
            else next(
                (k for inner in reversed(self._inside(name)) if (k := self._survey.level(inner)) is not None), None
            )
        )

    def _is_block(self, name: str) -> bool:
        return any(self._survey.modules[inner].kernel is not None for inner in self._inside(name))

    def _passive(self, name: str) -> bool:
        leaves = [inner for inner in (name, *self._inside(name)) if not self._inside(inner)]
        return all(self._survey.modules[leaf].is_passive for leaf in leaves)

    def _deepest(self, name: str) -> int | None:
        """The greatest stride of a map that a module gives or that is made inside it."""
        numbers = [self._survey.level(inner) for inner in (name, *self._inside(name))]
        return max((number for number in numbers if number is not None), default=None)

    def _inside(self, name: str) -> tuple[str, ...]:
        return tuple(self._holds.get(name, ()))

    def _children(self, prefix: str) -> list[str]:
        """The children of a module in the order in which they ran; a list of modules counts, though it does not run."""
        ran = self._holds.get(prefix[:-1], []) if prefix else self._ran
        first = (prefix + name[len(prefix) :].partition(".")[0] for name in ran)
        return list(dict.fromkeys(first))


def _without_closing(stages: list[Stage], survey: Survey) -> list[Stage]:
    """The stages without a 1x1 convolution that feeds the classifier or makes the scores, and what follows it."""
    widths = {survey.classes, *survey.pooled_widths}
    for position in range(len(stages) - 1, 0, -1):
        stage = stages[position]
        modules = [survey.modules[name] for name in (stage.name, *stage.inside)]
        convolutions = [module for module in modules if module.kernel is not None]
        if convolutions:
            closing = (
                len(convolutions) == 1
                and set(convolutions[0].kernel or ()) == {1}
                and convolutions[0].width in widths - {None}
                and stages[position - 1].number == stage.number
            )
            return stages[:position] if closing else stages
    return stages


def _until_growth(stages: Sequence[Stage]) -> list[Stage]:
    deepest = max((stage.number for stage in stages), default=0)
    first = next((position for position, stage in enumerate(stages) if stage.number == deepest), 0)
    return [*stages[:first], *itertools.takewhile(lambda stage: stage.number == deepest, stages[first:])]
