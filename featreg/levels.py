"""The one rule for canonical levels where a library declares none (``specs/levels.md``), in plain Python.

A backend watches one forward pass and tells it as :class:`Step` objects in the order in which modules and operations
finish, children before the modules that contain them. What is a module, and how it is watched, is the backend's matter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Sequence

import attrs

__all__ = ["Level", "Step", "Transformer", "find_final", "find_levels", "find_transformer", "level_of"]


@attrs.frozen
class Step:
    """A module or an operation that has finished, under the name by which it can be asked for.

    ``name`` is qualified, dots give the nesting: the steps before ``"layer1"`` named ``"layer1.…"`` ran inside it. A
    module that runs several times is told once, where it finishes last.

    - ``stride`` of the map that it gives, in pixels; None where it gives no single map that follows the image's size
      (a vector, a list, the output of adaptive pooling).
    - ``passive``: it only normalises, drops out, permutes or hands on; a level does not end with it alone.
    - ``kernel`` and ``channels``: kernel size and output channels of a convolution, None for all else. Where one step
      stands for several convolutions, ``channels`` is None.
    - ``tokens``: length and channels where it gives a sequence of tokens, prefix tokens included.
    - ``type``: the class of a module; blocks of one class are alike.
    - ``output``: equal for steps that give the very same tensor, such as a container and its last part; None: unknown.
    """

    name: str
    stride: int | None = None
    passive: bool = False
    kernel: tuple[int, ...] | None = None
    channels: int | None = None
    tokens: tuple[int, int] | None = None
    type: str = ""
    output: Hashable = None


@attrs.frozen
class Level:
    """A canonical level, the step whose output it is, and the stride of that output in pixels."""

    level: str
    name: str
    stride: int


@attrs.frozen
class Transformer:
    """A plain transformer: its blocks in order, the side of a patch in pixels, and how many tokens are no patches."""

    blocks: tuple[str, ...]
    stride: int
    prefix_tokens: int


@attrs.frozen
class _Unit:
    """A whole stage or block, or an operation between two of them, with all that ran inside."""

    step: Step
    stride: int
    inside: tuple[Step, ...]


def level_of(stride: int) -> str:
    """The canonical level of a stride; the nearest one where it is no power of two (a patch of 14 pixels: C4)."""
    return f"C{round(math.log2(stride))}"


def find_levels(steps: Sequence[Step], width: int | None = None) -> list[Level]:
    """The levels of a network in the order of their strides: of each the last whole unit before the next downsampling.

    ``width`` is the number of features that the final classifier takes, None where there is no classifier: a closing
    1x1 convolution to that many channels is no part of the last level.
    """
    units = _encoder(_without_closing(_units(_usual(steps)), width))
    last = {unit.stride: unit.step.name for unit in units}
    levels = {level_of(stride): Level(level_of(stride), last[stride], stride) for stride in sorted(last)}
    return list(levels.values())


def find_final(steps: Sequence[Step]) -> str | None:
    """The last map of a network, under the name of the outermost module that gives it; None where there is no map."""
    return next((step.name for step in reversed(_usual(steps)) if step.stride is not None), None)


def find_transformer(steps: Sequence[Step], size: tuple[int, int]) -> Transformer | None:
    """The blocks of a plain transformer that has run on an image of ``size`` (height, width); None for other networks.

    Its blocks are alike and lie side by side, all give sequences of one length and width, and nothing makes a map after
    them. A network with several such groups, of sequences of several lengths, is hierarchical and not plain.
    """
    groups = _block_groups(steps)
    if len({tokens[0] for group in groups if (tokens := group[0].tokens)}) != 1:
        return None
    blocks = min(groups, key=lambda group: (group[0].name.count("."), -len(group)))
    begin, end = steps.index(blocks[0]), steps.index(blocks[-1])
    strides = [step.stride for step in steps[:begin] if step.stride is not None]
    if not strides or blocks[0].tokens is None:
        return None
    stride = strides[-1]
    later = [step for step in steps[begin:] if step.stride is not None and step.stride > stride]
    if later or any(step.stride is not None and not step.passive for step in steps[end:]):
        return None
    prefix = blocks[0].tokens[0] - (size[0] // stride) * (size[1] // stride)
    return Transformer(tuple(step.name for step in blocks), stride, prefix) if prefix >= 0 else None


def _usual(steps: Sequence[Step]) -> list[Step]:
    """The steps, without the maps of odd strides (pooling to a fixed grid) where the network has powers of two."""
    strides = {step.stride for step in steps if step.stride is not None}
    if not any(_is_power(stride) and stride > 1 for stride in strides):
        return list(steps)
    return [attrs.evolve(step, stride=None) if step.stride and not _is_power(step.stride) else step for step in steps]


def _is_power(stride: int) -> bool:
    return stride.bit_count() == 1


def _units(steps: Sequence[Step], prefix: str = "", before: int = 1, *, outermost: bool = True) -> list[_Unit]:
    """The steps below a container cut into units; ``before`` is the stride of what goes in.

    Where ``outermost``, a lone child is a wrapper around the network.
    """
    children = _children(steps, prefix)
    lone = outermost and sum(any(step.stride for step in child) for child in children) == 1
    units: list[_Unit] = []
    for child in children:
        name = prefix + child[0].name[len(prefix) :].partition(".")[0]
        whole = child[-1] if child[-1].name == name else None
        parts = child[:-1] if whole else child
        if parts and (lone or _is_container(whole, parts, name, before)):
            units += [*_units(parts, f"{name}.", before, outermost=lone), *_own(whole, parts)]
        elif whole is not None and whole.stride is not None and not _is_passive(whole, parts):
            units.append(_Unit(whole, whole.stride, tuple(child)))
        before = next((step.stride for step in reversed(child) if step.stride is not None), before)
    return units


def _own(whole: Step | None, parts: Sequence[Step]) -> list[_Unit]:
    """What a container does itself to what its last part gives, where it does not just hand it on."""
    if whole is None or whole.stride is None or whole.passive:
        return []
    handed_on = whole.output is not None and whole.output in [step.output for step in parts]
    return [] if handed_on else [_Unit(whole, whole.stride, ())]


def _is_container(whole: Step | None, parts: Sequence[Step], name: str, before: int) -> bool:
    """Whether something holds several stages: it is no module that runs, gives no map, or halves more than once."""
    children = _children(parts, f"{name}.")
    holds_modules = any(len(child) > 1 for child in children)
    if whole is None:
        return True
    if whole.stride is None:
        return holds_modules or any(step.stride is not None and step.stride > 2 * before for step in parts)
    return whole.stride > 2 * before or (holds_modules and _ends_by_halving(children, whole.stride, before))


def _ends_by_halving(children: Sequence[Sequence[Step]], stride: int, before: int) -> bool:
    """Whether a stage downsamples at its end, for the next one, so that its own last block lies inside."""
    strides = [next((step.stride for step in reversed(child) if step.stride), None) for child in children]
    given = [one for one in strides if one is not None]
    blocks = any(len(child) > 1 for child, one in zip(children, strides, strict=True) if one == before)
    return blocks and stride > before and given[-1] == stride and set(given[:-1]) == {before}


def _is_passive(whole: Step, parts: Sequence[Step]) -> bool:
    return whole.passive or (bool(parts) and all(step.passive for step in parts))


def _children(steps: Sequence[Step], prefix: str) -> list[list[Step]]:
    """Runs of steps with the same next part of the name."""
    grouped = itertools.groupby(steps, key=lambda step: step.name[len(prefix) :].partition(".")[0])
    return [list(group) for _, group in grouped]


def _without_closing(units: Sequence[_Unit], width: int | None) -> list[_Unit]:
    """The units up to a closing 1x1 convolution to ``width`` channels, which goes with what follows it."""
    for position in range(len(units) - 1, 0, -1):
        convolutions = [step for step in units[position].inside if step.kernel is not None]
        if not convolutions:
            continue
        closing = (
            len(convolutions) == 1
            and set(convolutions[0].kernel or ()) == {1}
            and width is not None
            and convolutions[0].channels == width
            and units[position - 1].stride == units[position].stride
        )
        return list(units[:position] if closing else units)
    return list(units)


def _encoder(units: Sequence[_Unit]) -> list[_Unit]:
    """The units until the resolution grows again: a decoder repeats strides that the encoder's levels have."""
    deepest = max((unit.stride for unit in units), default=0)
    first = next((position for position, unit in enumerate(units) if unit.stride == deepest), 0)
    return [*units[:first], *itertools.takewhile(lambda unit: unit.stride == deepest, units[first:])]


def _block_groups(steps: Iterable[Step]) -> list[list[Step]]:
    """Every run of two or more modules of one class, side by side, that give sequences of one length and width."""
    siblings: dict[tuple[str, str], list[Step]] = {}
    for step in steps:
        if step.type and step.tokens is not None and not step.passive:
            parent = step.name.rpartition(".")[0]
            siblings.setdefault((parent, step.type), []).append(step)
    return [group for group in siblings.values() if len(group) > 1 and len({step.tokens for step in group}) == 1]
