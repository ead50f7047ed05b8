"""One model judged: what featreg says of it against what its library does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import attrs

import featreg
from featreg import errors
from zoo.arrange import Frame, Mismatch, arranged_shape, is_near
from zoo.claims import check_declaration, check_levels, check_table
from zoo.oracles import Oracle, RawRefusal, open_oracle
from zoo.oracles.base import explain
from zoo.records import Finding, Layer, Record, SizeCheck, Task, ValueCheck
from zoo.refusals import refusals, set_aside
from zoo.sizes import allows, plan
from zoo.values import compare

__all__ = ["Judge", "judge"]

T = TypeVar("T")
Size = tuple[int, int]


@attrs.frozen
class _Meter:
    """CPU seconds by side; the two run in turn in one thread."""

    seconds: dict[str, float] = attrs.field(factory=lambda: {"featreg": 0.0, "oracle": 0.0})

    def run(self, side: str, call: Callable[..., T], *arguments: Any) -> T:
        start = time.process_time()
        try:
            return call(*arguments)
        finally:
            self.seconds[side] += time.process_time() - start


def judge(task: Task) -> Record:
    """Judge one model with featreg as it is installed; never raises, so that a sweep goes on."""
    return Judge(task).record()


class Judge:
    """One model under judgement.

    ``describe`` and ``open_extractor`` stand for featreg, ``open_oracle`` for the raw library, ``refused`` for the
    lists of refusals, which ``unlisted`` sets aside. Tests replace them.
    """

    def __init__(
        self,
        task: Task,
        *,
        describe: Callable[..., Any] = featreg.describe,
        open_extractor: Callable[..., Any] = featreg.create_extractor,
        open_oracle: Callable[[str, str], Oracle] = open_oracle,
        refused: Callable[[str], Mapping[str, str]] = refusals,
        unlisted: Callable[[], AbstractContextManager[None]] = set_aside,
    ) -> None:
        self._task = task
        self._describe = describe
        self._open_extractor = open_extractor
        self._open_oracle = open_oracle
        self._refused = refused(task.backend)
        self._unlisted = unlisted
        self._meter = _Meter()
        self._findings: list[Finding] = []
        self._oracle: Any = None
        self._how = ""
        self._seen: dict[Size, Mapping[str, Any]] = {}

    def record(self) -> Record:
        """The outcome, with the CPU seconds that each side took."""
        record = self._judged()
        spent = self._meter.seconds
        return attrs.evolve(
            record, featreg_seconds=round(spent["featreg"], 2), oracle_seconds=round(spent["oracle"], 2)
        )

    def _judged(self) -> Record:
        try:
            info = self._meter.run("featreg", self._describe, self._task.id)
        except errors.CapabilityError as refusal:
            return self._refusal(refusal)
        except Exception as error:  # noqa: BLE001  (any error is the outcome of this model)
            return self._failed("featreg", error)
        if self._task.model in self._refused:
            self._findings.append(Finding("refused.toml", "a model that is refused", "it opens"))
        try:
            return self._compared(info)
        except RawRefusal as error:
            return self._failed("oracle", error)
        except Exception as error:  # noqa: BLE001
            return self._failed("judge", error)

    def _failed(self, kind: str, error: BaseException | str) -> Record:
        reason = error if isinstance(error, str) else explain(error)
        return Record(self._task.id, "failed", kind, reason, how=self._how)

    # --- refusals -----------------------------------------------------------------------------------------------------

    def _refusal(self, refusal: errors.CapabilityError) -> Record:
        """A refusal stands where the list has it, and where the model does not work with the list set aside."""
        reason = self._refused.get(self._task.model)
        if reason is None:
            return self._failed("unlisted", f"refused, but not on the list: {explain(refusal)}")
        upstream = self._upstream_error()
        if not upstream and self._works_unlisted():
            return self._failed("stale", f"on the list ({reason}), but it works")
        return Record(self._task.id, "refused", reason=reason, upstream=upstream)

    def _upstream_error(self) -> str:
        try:
            oracle = self._meter.run("oracle", self._open_oracle, self._task.backend, self._task.model)
            self._meter.run("oracle", oracle.probe)
        except RawRefusal as error:
            return str(error)
        return ""

    def _works_unlisted(self) -> bool:
        with self._unlisted():
            try:
                return self._compared(self._describe(self._task.id)).status == "exact"
            except Exception:  # noqa: BLE001  (whatever goes wrong, the refusal is right)
                return False

    # --- descriptions -------------------------------------------------------------------------------------------------

    def _compared(self, info: Any) -> Record:
        self._oracle = self._meter.run("oracle", self._open_oracle, self._task.backend, self._task.model)
        declared = self._meter.run("oracle", self._oracle.declared)
        seen = self._raw(info, info.input_size, extra=[names[0] for names in declared.values()])
        self._how = self._oracle.how
        sizes = [self._check_size(info, size) for size in plan(info.input_size, info.input_rule)]
        self._findings += self._check_reductions(info)
        self._findings += check_levels(info.features, tuple(seen), self._oracle.dilated)
        self._findings += check_declaration(info.features, declared, seen, info.input_size)
        self._findings += check_table(self._task.backend, self._task.model, self._described_for_tables(info))
        values = self._compare_values(info) if self._task.real else None
        wrong = self._findings or (values is not None and values.outcome in ("different", "failed"))
        return Record(
            self._task.id,
            "wrong" if wrong else "exact",
            input_size=info.input_size,
            input_rule=str(info.input_rule),
            layers=tuple(_layers(info.features)),
            indices=sum(feature.index is not None for feature in info.features),
            sizes=tuple(sizes),
            how=self._how,
            values=values,
            unchecked=tuple(_key(feature) for feature in info.features if feature.name in self._oracle.unknown),
            findings=tuple(self._findings),
        )

    def _raw(self, info: Any, size: Size, thorough: bool = True, extra: Sequence[str] = ()) -> Mapping[str, Any]:
        if size not in self._seen:
            names = list(dict.fromkeys([*(feature.name for feature in info.features), *extra]))
            self._seen[size] = self._meter.run("oracle", self._oracle.shapes, names, size, thorough)
        return self._seen[size]

    def _described_for_tables(self, info: Any) -> Any:
        if info.input_size == (224, 224) or not allows(info.input_rule, (224, 224)):
            return info
        return self._meter.run("featreg", self._describe, self._task.id, (224, 224))

    def _check_size(self, info: Any, size: Size) -> SizeCheck:
        try:
            described = self._described(size)
        except errors.FeatregError as error:
            self._find(size, "a description or InputError", explain(error))
            return SizeCheck(size, "wrong")
        inside = allows(info.input_rule, size)
        if not inside and described is not None:
            self._find(size, "InputError, by its own rule", "a description")
            return SizeCheck(size, "wrong")
        try:
            raw = self._raw(info, size, thorough=described is not None)
        except RawRefusal as refusal:
            if described is None:
                return SizeCheck(size, "refused")
            self._find(size, f"InputError: the library raises {refusal}", "a description")
            return SizeCheck(size, "wrong")
        if described is None:
            if inside:
                self._find(size, "a description, by its own rule: the library runs", "InputError")
            return SizeCheck(size, "wrong" if inside else "stricter")
        found = list(self._compare_shapes(described, raw, size))
        self._findings += found
        return SizeCheck(size, "wrong" if found else "exact")

    def _described(self, size: Size) -> Any:
        try:
            return self._meter.run("featreg", self._describe, self._task.id, size)
        except errors.InputError:
            return None

    def _compare_shapes(self, info: Any, raw: Mapping[str, Any], size: Size) -> Iterator[Finding]:
        frame = Frame(self._oracle.batch, size, self._oracle.prefix_tokens)
        for feature in info.features:
            what = f"{_key(feature)} ({feature.name}) at {size[0]}x{size[1]}"
            if feature.name in self._oracle.unknown:
                continue
            if feature.name not in raw:
                yield Finding(what, "an output of the library", "the raw forward pass makes no such tensor")
                continue
            try:
                predicted = feature.shape(frame.batch, *size)
                real = arranged_shape(raw[feature.name], feature.kind, predicted, frame)
            except errors.InputError as error:
                yield Finding(what, f"a shape, for the library gives {raw[feature.name]}", explain(error))
            except Mismatch as mismatch:
                yield Finding(what, f"{predicted}", f"{mismatch}")
            else:
                if predicted != real:
                    yield Finding(what, f"{real}, as the library", f"{predicted}")
                elif feature.kind == "tokens" and feature.prefix_tokens not in (0, frame.prefix):
                    yield Finding(f"prefix tokens of {what}", f"{frame.prefix} or 0", str(feature.prefix_tokens))

    def _check_reductions(self, info: Any) -> Iterator[Finding]:
        """At the native size; where a grid is measured, no predicted shape depends on its reduction."""
        for feature in info.features:
            if feature.level is None or feature.kind != "map":
                continue
            grid = feature.shape(1, *info.input_size)[2:]
            if not is_near(grid, info.input_size, feature.reduction) and not self._grows(info, feature.level, grid):
                yield Finding(f"reduction of {feature.level}", f"that of a grid of {grid}", str(feature.reduction))

    def _grows(self, info: Any, level: str, grid: tuple[int, ...]) -> bool:
        """Whether the grid gains a cell for each ``reduction`` pixels: without padding it may lack several at first."""
        size = info.input_size
        added = 4 * info.resolve(level).reduction
        larger = (size[0] + added, size[1] + added)
        described = self._described(larger) if allows(info.input_rule, larger) else None
        if described is None:
            return False
        with contextlib.suppress(errors.InputError):
            return bool(described.resolve(level).shape(1, *larger)[2:] == (grid[0] + 4, grid[1] + 4))
        return False

    def _find(self, size: Size, expected: str, got: str) -> None:
        self._findings.append(Finding(f"input size {size[0]}x{size[1]}", expected, got))

    def _compare_values(self, info: Any) -> ValueCheck:
        start = time.process_time()
        try:
            return compare(self._task, info, self._oracle, self._open_extractor)
        except (errors.FeatregError, RawRefusal, Mismatch) as error:
            return ValueCheck("failed", explain(error))
        finally:
            self._meter.seconds["oracle"] += time.process_time() - start


def _key(feature: Any) -> str:
    return str(next(key for key in (feature.level, feature.head, feature.index, feature.name) if key is not None))


def _layers(features: Sequence[Any]) -> Iterator[Layer]:
    """The levels and heads; a level that is a head too is noted under both."""
    for feature in features:
        for key in (feature.level, feature.head):
            if key is not None:
                spatial = feature.kind != "vector"
                yield Layer(
                    key,
                    feature.name,
                    feature.kind,
                    feature.channels,
                    feature.reduction,
                    feature.rounding if spatial else None,
                    feature.prefix_tokens,
                )
