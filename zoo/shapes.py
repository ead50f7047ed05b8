"""Predicted shapes against raw ones: every layer, at every size that is tried."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from featreg import errors
from zoo.arrange import Frame, Mismatch, arranged_shape, is_near
from zoo.meter import Meter
from zoo.oracles import Oracle, RawRefusal
from zoo.oracles.base import explain
from zoo.records import Finding, SizeCheck, Task
from zoo.sizes import allows
from zoo.stricter import pattern_of

__all__ = ["ShapeCheck", "key_of"]

Size = tuple[int, int]


class ShapeCheck:
    """The sizes of one model. ``findings`` grow as they are looked at; ``describe`` stands for featreg."""

    def __init__(self, task: Task, info: Any, oracle: Oracle, describe: Callable[..., Any], meter: Meter) -> None:
        self._task = task
        self._info = info
        self._oracle = oracle
        self._describe = describe
        self._meter = meter
        self._seen: dict[Size, Mapping[str, Any]] = {}
        self.findings: list[Finding] = []

    def raw(self, size: Size, thorough: bool = True) -> Mapping[str, Any]:
        """The raw shapes of the described names at a size. Raises RawRefusal."""
        if size not in self._seen:
            names = list(dict.fromkeys(feature.name for feature in self._info.features))
            self._seen[size] = self._meter.run("oracle", self._oracle.shapes, names, size, thorough)
        return self._seen[size]

    def check(self, size: Size) -> SizeCheck:
        """Compare one size."""
        try:
            described = self._described(size)
        except errors.FeatregError as error:
            return self._wrong(size, "a description or InputError", explain(error))
        inside = allows(self._info.input_rule, size)
        if not inside and described is not None:
            return self._wrong(size, "InputError, by its own rule", "a description")
        try:
            raw = self.raw(size, thorough=described is not None)
        except RawRefusal as refusal:
            if described is None:
                return SizeCheck(size, "refused")
            return self._wrong(size, f"InputError: the library raises {refusal}", "a description")
        if described is None:
            return self._stricter(size, inside)
        found = list(self._compare(described, raw, size))
        self.findings += found
        return SizeCheck(size, "wrong" if found else "exact")

    def check_reductions(self) -> Iterator[Finding]:
        """At the native size; where a grid is measured, no predicted shape depends on its reduction."""
        size = self._info.input_size
        for feature in self._info.features:
            if feature.level is None or feature.kind != "map":
                continue
            grid = feature.shape(1, *size)[2:]
            if not is_near(grid, size, feature.reduction) and not self._grows(feature.level, grid):
                yield Finding(f"reduction of {feature.level}", f"that of a grid of {grid}", str(feature.reduction))

    def _stricter(self, size: Size, inside: bool) -> SizeCheck:
        if inside:
            return self._wrong(size, "a description, by its own rule: the library runs", "InputError")
        if pattern_of(self._task.id) is None:
            try:
                self._meter.run("oracle", self._oracle.confirm, size)
            except RawRefusal:
                return SizeCheck(size, "refused")
            self._find(size, "a description: the library runs", "InputError, and stricter.toml does not say why")
        return SizeCheck(size, "stricter")

    def _described(self, size: Size) -> Any:
        try:
            return self._meter.run("featreg", self._describe, self._task.id, size)
        except errors.InputError:
            return None

    def _compare(self, info: Any, raw: Mapping[str, Any], size: Size) -> Iterator[Finding]:
        frame = Frame(self._oracle.batch, size, self._oracle.prefix_tokens)
        for feature in info.features:
            what = f"{key_of(feature)} ({feature.name}) at {size[0]}x{size[1]}"
            if feature.name in self._oracle.unknown:
                continue
            if feature.name not in raw:
                yield Finding(what, "an output of the library", "the raw forward pass makes no such tensor")
                continue
            yield from _compare_one(feature, raw[feature.name], frame, what)

    def _grows(self, level: str, grid: tuple[int, ...]) -> bool:
        """Whether the grid gains a cell for each ``reduction`` pixels: without padding it may lack several at first."""
        size = self._info.input_size
        added = 4 * self._info.resolve(level).reduction
        larger = (size[0] + added, size[1] + added)
        described = self._described(larger) if allows(self._info.input_rule, larger) else None
        if described is None:
            return False
        with contextlib.suppress(errors.InputError):
            return bool(described.resolve(level).shape(1, *larger)[2:] == (grid[0] + 4, grid[1] + 4))
        return False

    def _wrong(self, size: Size, expected: str, got: str) -> SizeCheck:
        self._find(size, expected, got)
        return SizeCheck(size, "wrong")

    def _find(self, size: Size, expected: str, got: str) -> None:
        self.findings.append(Finding(f"input size {size[0]}x{size[1]}", expected, got))


def key_of(feature: Any) -> str:
    """The level, head, index or name under which a feature is reported."""
    return str(next(key for key in (feature.level, feature.head, feature.index, feature.name) if key is not None))


def _compare_one(feature: Any, raw: Sequence[int], frame: Frame, what: str) -> Iterator[Finding]:
    try:
        predicted = feature.shape(frame.batch, *frame.size)
        real = arranged_shape(tuple(raw), feature.kind, predicted, frame)
    except errors.InputError as error:
        yield Finding(what, f"a shape, for the library gives {raw}", explain(error))
    except Mismatch as mismatch:
        yield Finding(what, f"{predicted}", f"{mismatch}")
    else:
        if predicted != real:
            yield Finding(what, f"{real}, as the library", f"{predicted}")
        elif feature.kind == "tokens" and feature.prefix_tokens not in (0, frame.prefix):
            yield Finding(f"prefix tokens of {what}", f"{frame.prefix} or 0", str(feature.prefix_tokens))
