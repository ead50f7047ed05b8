"""From the names that one library gives its weights to those of another: declared rules, or the order of registration.

A rule is data: a template of the old name and one or several of the new. ``{i}`` stands for a number, and a template
may compute with it: ``features.{i}.{k}`` becomes ``features.{i+k+2}``, and ``features.{2*s+1}`` reads ``s`` off an odd
number. Nothing here knows a framework: a weight is anything with a ``shape``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import attrs

from featreg.errors import SpecError, WeightsError

__all__ = ["KeyMap", "Rule", "map_in_order"]

Shape: TypeAlias = tuple[int, ...]

_FIELD = re.compile(r"\{([^{}]*)\}")
_FORM = re.compile(r"(?:[+-]?(?:\d+\*)?[a-z]|[+-]?\d+)+")
_TERM = re.compile(r"(?P<sign>[+-]?)(?:(?P<factor>\d+)\*)?(?P<what>[a-z]|\d+)")


@attrs.frozen
class _Form:
    """A sum of whole multiples of variables: ``2*s+1``; the number itself stands under the name ``""``."""

    factors: tuple[tuple[str, int], ...]

    @classmethod
    def parse(cls, text: str) -> _Form:
        if not _FORM.fullmatch(text):
            raise SpecError(f"{{{text}}} is no field of a name template", "as in {i}, {i+1} or {2*s+1}")
        factors: dict[str, int] = {}
        for term in _TERM.finditer(text):
            factor = int(term["factor"] or 1) * (-1 if term["sign"] == "-" else 1)
            name, factor = ("", factor * int(term["what"])) if term["what"].isdigit() else (term["what"], factor)
            factors[name] = factors.get(name, 0) + factor
        return cls(tuple(factors.items()))

    def value(self, values: Mapping[str, int]) -> int:
        return sum(factor * (values[name] if name else 1) for name, factor in self.factors)

    def solve(self, number: int, values: dict[str, int]) -> bool:
        """Whether the form gives ``number``; a variable that is not in ``values`` yet is solved for and put there."""
        unknown = [name for name, _ in self.factors if name and name not in values]
        if unknown:
            factors = dict(self.factors)
            rest = number - sum(factor * values.get(name, 0 if name else 1) for name, factor in self.factors)
            if rest % factors[unknown[0]] or rest // factors[unknown[0]] < 0:
                return False
            values[unknown[0]] = rest // factors[unknown[0]]
        return self.value(values) == number


class _Template:
    """A name, or the beginning of one, with numbers left open."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.pieces = tuple(_FIELD.split(text)[::2])
        self.forms = tuple(_Form.parse(field) for field in _FIELD.split(text)[1::2])
        self._pattern = re.compile(r"(\d+)".join(map(re.escape, self.pieces)) + r"(?=\.|$)")

    @property
    def variables(self) -> set[str]:
        return {name for form in self.forms for name, _ in form.factors if name}

    def match(self, name: str) -> tuple[dict[str, int], str] | None:
        """The numbers in a name that begins like this, and what follows; None for another name."""
        found = self._pattern.match(name)
        if found is None:
            return None
        values: dict[str, int] = {}
        if not all(form.solve(int(number), values) for form, number in zip(self.forms, found.groups(), strict=True)):
            return None
        return values, name[found.end() :]

    def fill(self, values: Mapping[str, int]) -> str:
        numbers = [str(form.value(values)) for form in self.forms]
        return "".join(piece + number for piece, number in zip(self.pieces, [*numbers, ""], strict=True))


class Rule:
    """Names that begin as ``old`` begin as ``new`` instead; several of ``new`` share one weight, cut along its rows.

    Raises SpecError for a template that cannot be read, or that uses a number which ``old`` does not give.
    """

    def __init__(self, old: str, new: str | Sequence[str]) -> None:
        self._old = _Template(old)
        self._new = tuple(map(_Template, [new] if isinstance(new, str) else new))
        if len(self._old.forms) and any(len({n for n, _ in form.factors if n}) != 1 for form in self._old.forms):
            raise SpecError(f"{old!r} does not give one number a field", "one variable in each field")
        for template in self._new:
            if template.variables - self._old.variables:
                raise SpecError(f"{template.text!r} uses numbers that {old!r} does not give")

    def __call__(self, name: str) -> tuple[str, ...] | None:
        """The new names of a weight, none where it is dropped; None for a name that the rule does not speak of."""
        found = self._old.match(name)
        if found is None:
            return None
        values, rest = found
        return tuple(template.fill(values) + rest for template in self._new)


@attrs.frozen
class KeyMap:
    """Rules in order of precedence: the first that speaks of a name decides; a name of which none speaks stays."""

    name: str
    rules: tuple[Rule, ...] = ()

    def __call__(self, name: str) -> tuple[str, ...]:
        """The new names of one weight: one, several that share it, or none where it is dropped."""
        return next((new for rule in self.rules if (new := rule(name)) is not None), (name,))

    def idle(self, names: Sequence[str]) -> int:
        """How many of the rules decide none of these names: few where they are the names of the map's library."""
        speaking = {next((k for k, rule in enumerate(self.rules) if rule(name) is not None), None) for name in names}
        return len(self.rules) - len(speaking - {None})

    def apply(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The new names of every weight; raises WeightsError where two weights would get one name."""
        mapped = {name: self(name) for name in names}
        owners: dict[str, str] = {}
        for old, news in mapped.items():
            for new in news:
                if new in owners:
                    raise WeightsError(
                        f"the name map {self.name!r} gives two weights one name",
                        "a name for each weight",
                        f"{owners[new]} and {old} both become {new}",
                    )
                owners[new] = old
        return mapped


def map_in_order(
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    kinds: Mapping[str, str] | None = None,
    spare: Collection[str] = (),
) -> dict[str, str]:
    """The name in ``target`` of every name in ``source``, where both hold the same layers in the same order.

    For checkpoints of the same architecture written by another library, whose layers only have other names. A layer is
    what stands before the last dot; layers are paired in order, and the weights of a pair by their kind (``weight``,
    ``running_mean``), other spellings of which ``kinds`` renames on both sides. Order is a weak witness, so anything
    that speaks against it refuses: another number of layers, a layer with other kinds or shapes, the weights of one
    layer scattered among others, or a layer that would get another one's name while ``target`` has its own.

    ``spare`` are names in ``target`` that are not needed, as those of a classifier: their shapes may differ, and where
    ``source`` has fewer layers, those that are spare as a whole are left out.

    Raises WeightsError that names the first layer that does not fit.
    """
    old, new = _layers(source, kinds or {}), _layers(target, kinds or {})
    if len(old) < len(new):
        new = {name: layer for name, layer in new.items() if not all(full in spare for full, _ in layer.values())}
    if len(old) != len(new):
        raise WeightsError(
            "the weights cannot be paired in order: the numbers of layers differ",
            f"{len(new)} layers, as the model has",
            f"{len(old)}",
            remedy=f"the last in common: {_last_common(old, new)}",
        )
    pairs: dict[str, str] = {}
    for (old_name, own), (new_name, wanted) in zip(old.items(), new.items(), strict=True):
        if not _fits(own, wanted, spare):
            raise _mismatch(f"the layer {old_name!r} does not fit {new_name!r}", wanted, own)
        if old_name != new_name and old_name in new:
            raise WeightsError(
                f"the order would load the layer {old_name!r} into {new_name!r}, while the model has one of its name",
                "names that agree, or names of which none agrees",
                remedy="map these weights by their names",
            )
        pairs |= {own[kind][0]: wanted[kind][0] for kind in own}
    return pairs


_Layer: TypeAlias = dict[str, tuple[str, Shape]]
"""The weights of a layer by kind: the full name and the shape of each."""


def _layers(state: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, _Layer]:
    layers: dict[str, _Layer] = {}
    last = None
    for name, weight in state.items():
        layer, _, kind = name.rpartition(".")
        if layer != last and layer in layers:
            raise WeightsError(
                "the weights cannot be paired in order: those of one layer do not lie together",
                "the weights as the model registers them",
                f"{name} comes after those of {last!r}",
            )
        last = layer
        layers.setdefault(layer, {})[kinds.get(kind, kind)] = (name, tuple(weight.shape))
    return layers


def _fits(own: _Layer, wanted: _Layer, spare: Collection[str]) -> bool:
    """Whether two layers have the same kinds of weights, in the same shapes but for those that are spare."""
    if own.keys() != wanted.keys():
        return False
    return all(own[kind][1] == shape or full in spare for kind, (full, shape) in wanted.items())


def _signature(layer: _Layer) -> dict[str, Shape]:
    return {kind: shape for kind, (_, shape) in layer.items()}


def _mismatch(problem: str, wanted: _Layer, own: _Layer) -> WeightsError:
    expected, got = (", ".join(f"{kind} {shape}" for kind, shape in _signature(one).items()) for one in (wanted, own))
    return WeightsError(f"the weights cannot be paired in order: {problem}", expected, got)


def _last_common(old: Mapping[str, _Layer], new: Mapping[str, _Layer]) -> str:
    common = "(none)"
    for (old_name, own), (new_name, wanted) in zip(old.items(), new.items(), strict=False):
        if _signature(own) != _signature(wanted):
            break
        common = f"{old_name} and {new_name}"
    return common
