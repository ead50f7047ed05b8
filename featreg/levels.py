"""The one rule for canonical levels where a library declares none (``specs/levels.md``), in plain Python.

A backend watches one forward pass and tells it as :class:`Step` objects in the order in which modules and operations
finish, children before the modules that contain them. What is a module, and how it is watched, is the backend's matter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence

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
    - ``learned``: it, or what lies inside, multiplies by weights (convolutions and linear layers; no norms, no scales).
    - ``kernel`` and ``channels``: kernel size and output channels of a convolution, None for all else. Where one step
      stands for several convolutions, ``channels`` is None.
    - ``tokens``: length and channels where it gives a sequence of tokens, prefix tokens included.
    - ``vector``: it gives one vector per image.
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
    learned: bool = False
    vector: bool = False


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
    steps = _usual(steps)
    heads, opaque = _without_map(steps)
    units = [unit for unit in _units(steps) if _around(unit.step.name).isdisjoint(heads)]
    units = _encoder(_without_closing(units, width), opaque)
    last = {unit.stride: unit.step for unit in units}
    found = [last[stride] for stride in sorted(last) if not _is_part(last[stride], opaque)]
    whole = [(step.stride, step.name) for step in found if step.stride and not _is_left(steps, step)]
    return list({level_of(stride): Level(level_of(stride), name, stride) for stride, name in whole}.values())


def find_final(steps: Sequence[Step]) -> str | None:
    """The last map of a network, under the name of the outermost module that gives it.

    None where there is no map, and where the network goes on from what a module made of it that is no map.
    """
    steps = _usual(steps)
    final = next((step for step in reversed(steps) if step.stride is not None), None)
    if final is None or _is_left(steps, final):
        return None
    _, opaque = _without_map(steps)
    opaque &= _around(final.name)
    later = steps[steps.index(final) + 1 :]
    goes_on = any(step.learned and opaque - _around(step.name) - {step.name} for step in later)
    return None if goes_on else final.name


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


def _around(name: str) -> set[str]:
    """The names of all that a module or an operation lies inside."""
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}


def _without_map(steps: Sequence[Step]) -> tuple[set[str], set[str]]:
    """Heads, which make a vector or a pyramid of maps, and opaque stages and blocks, which make a list or tokens.

    In a pyramid the resolution only grows. What halves the resolution more than once, or holds every map that there is,
    is neither, but the network.
    """
    without = {step.name: step for step in steps if step.stride is None}
    strides = [step.stride for step in steps if step.stride is not None]
    inside: dict[str, list[int]] = {}
    for position, step in enumerate(step for step in steps if step.stride is not None):
        for name in _around(step.name) & without.keys():
            inside.setdefault(name, []).append(position)
    parts = {
        name
        for name, found in inside.items()
        if len(found) < len(strides)
        and max(strides[position] for position in found) <= 2 * (strides[found[0] - 1] if found[0] else 1)
    }
    heads = {name for name in parts if without[name].vector or _only_grows([strides[place] for place in inside[name]])}
    return heads, parts - heads


def _only_grows(strides: Sequence[int]) -> bool:
    return strides[0] > strides[-1] and all(one >= other for one, other in itertools.pairwise(strides))


def _is_left(steps: Sequence[Step], unit: Step) -> bool:
    """Whether blocks go on with a map's positions as tokens, at its stride, and no module makes a map of them again."""
    ran = {step.name: step for step in steps}
    mapped = {name for step in steps if step.stride is not None for name in _around(step.name)}
    holders = _holders(steps)
    later = itertools.takewhile(lambda step: (step.stride or 0) <= (unit.stride or 0), steps[steps.index(unit) + 1 :])
    for step in later:
        length = 0 if step.tokens is None else step.tokens[0]
        if step.name in holders and length > 1 and step.stride is None and not step.passive:
            around = [ran[name] for name in _around(step.name) & ran.keys()]
            if not any(one.stride is not None or (one.vector and one.name not in mapped) for one in around):
                return True
    return False


def _holders(steps: Sequence[Step]) -> set[str]:
    """The names of what holds parts that compute."""
    return {name for step in steps if step.learned for name in _around(step.name)}


def _usual(steps: Sequence[Step]) -> list[Step]:
    """The steps, without the maps of odd strides (a fixed grid, another branch) where the network has powers of two."""
    strides = {step.stride for step in steps if step.stride is not None}
    if not any(_is_power(stride) and stride > 1 for stride in strides):
        return list(steps)
    return [
        attrs.evolve(step, stride=None, tokens=None) if step.stride and not _is_power(step.stride) else step
        for step in steps
    ]


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
    blocks = any(_is_block(child) for child, one in zip(children, strides, strict=True) if one == before)
    return blocks and stride > before and given[-1] == stride and set(given[:-1]) == {before}


def _is_block(child: Sequence[Step]) -> bool:
    """Whether something holds parts that compute, and is no norm with its activation."""
    return any(step.learned for step in child[:-1])


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


def _encoder(units: Sequence[_Unit], opaque: set[str]) -> list[_Unit]:
    """The units until the resolution grows again: a decoder repeats strides that the encoder's levels have.

    Opaque stages that work at several resolutions side by side, the deepest among them, go on at all of these.
    """
    deepest = max((unit.stride for unit in units), default=0)
    first = next((position for position, unit in enumerate(units) if unit.stride == deepest), 0)
    last = list(itertools.takewhile(lambda unit: unit.stride == deepest, units[first:]))
    deep = [unit.step for unit in units[first:] if unit.stride == deepest]
    parts = [unit for unit in units if _is_part(unit.step, opaque)]
    strides = {name: {unit.stride for unit in parts if name in _around(unit.step.name)} for name in opaque}
    beside = {
        name
        for step in deep
        if _is_part(step, opaque)
        for name in _around(step.name) & opaque
        if len(strides[name]) > 1
    }
    later = units[first + len(last) :]
    return [*units[:first], *last, *(unit for unit in later if _is_part(unit.step, beside))]


def _is_part(step: Step, opaque: set[str]) -> bool:
    """Whether a map is a part of an opaque stage; tokens that are a map, where they are told as one, are a block's."""
    return step.tokens is None and not _around(step.name).isdisjoint(opaque)


def _block_groups(steps: Sequence[Step]) -> list[list[Step]]:
    """Every run of two or more blocks of one class, side by side, that give sequences of one length and width."""
    siblings: dict[tuple[str, str], list[Step]] = {}
    holders = _holders(steps)
    for step in steps:
        if step.type and step.tokens is not None and not step.passive and step.name in holders:
            parent = step.name.rpartition(".")[0]
            siblings.setdefault((parent, step.type), []).append(step)
    return [group for group in siblings.values() if len(group) > 1 and len({step.tokens for step in group}) == 1]
