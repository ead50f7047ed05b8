"""One model judged: what featreg says of it against what its library does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import attrs

import featreg
from featreg import errors
from zoo.arrange import Mismatch
from zoo.claims import check_levels, check_table
from zoo.meter import Meter
from zoo.opening import check_opening, is_to_open
from zoo.oracles import Oracle, RawRefusal, open_oracle
from zoo.oracles.base import explain
from zoo.records import Finding, Layer, Record, Task, ValueCheck
from zoo.refusals import refusals, set_aside
from zoo.shapes import ShapeCheck, key_of
from zoo.sizes import allows, plan
from zoo.truth import check_layers
from zoo.values import compare

__all__ = ["Judge", "judge"]


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
        self._meter = Meter()
        self._findings: list[Finding] = []
        self._how = ""

    def record(self) -> Record:
        """The outcome, with the CPU seconds that each side took."""
        record = self._judged()
        library, oracle, opening = (round(self._meter.seconds[side], 2) for side in ("featreg", "oracle", "opening"))
        return attrs.evolve(record, featreg_seconds=library, oracle_seconds=oracle, opening_seconds=opening)

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
        oracle = self._meter.run("oracle", self._open_oracle, self._task.backend, self._task.model)
        survey = self._meter.run("oracle", oracle.survey, info.input_size)
        shapes = ShapeCheck(self._task, info, oracle, self._describe, self._meter)
        sizes = [shapes.check(size) for size in plan(info.input_size, info.input_rule)]
        self._how = oracle.how
        self._findings += [*shapes.findings, *shapes.check_reductions()]
        self._findings += check_levels(info.features, tuple(shapes.raw(info.input_size)), oracle.dilated)
        self._findings += self._meter.run("oracle", lambda: list(check_layers(info.features, survey, oracle)))
        self._findings += check_table(self._task.backend, self._task.model, self._described_for_tables(info))
        values = self._compare_values(info, oracle) if self._task.real else None
        opened = self._open(info, oracle, values)
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
            opened=opened,
            unchecked=tuple(key_of(feature) for feature in info.features if feature.name in oracle.unknown),
            findings=tuple(self._findings),
        )

    def _described_for_tables(self, info: Any) -> Any:
        if info.input_size == (224, 224) or not allows(info.input_rule, (224, 224)):
            return info
        return self._meter.run("featreg", self._describe, self._task.id, (224, 224))

    def _open(self, info: Any, oracle: Oracle, values: ValueCheck | None) -> bool:
        """Whether a layer was opened and run; the comparison of values has done it, where there was one."""
        if values is not None and values.outcome in ("equal", "different"):
            return True
        if not is_to_open(self._task, oracle.parameters):
            return False
        found = self._meter.run("opening", check_opening, self._task, info, self._open_extractor)
        self._findings += found
        return not found

    def _compare_values(self, info: Any, oracle: Oracle) -> ValueCheck:
        try:
            return self._meter.run("opening", compare, self._task, info, oracle, self._open_extractor)
        except (errors.FeatregError, RawRefusal, Mismatch) as error:
            return ValueCheck("failed", explain(error))


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
