"""What is true of checkpoints in every framework: how they are wrapped, and what it means that one fits a model.

Nothing here reads a file or knows a framework: a weight is anything with a ``shape``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import attrs

from featreg.errors import WeightsError

__all__ = ["AVERAGES", "WRAPPERS", "Mismatch", "WeightsReport", "compare", "is_counter", "unwrap"]

AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
"""The keys under which training tools keep the moving average of the weights, in the order of looking them up."""

WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net", "weights", "params", "module")
"""The keys under which training tools keep the weights themselves, in that order; the last is DeepSpeed's."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and a model held by another one put before every name."""

AVERAGE_PREFIXES = ("ema.", "model_ema.")
"""What stands before the moving averages that lie among the weights."""

COUNTERS = ("n_averaged", "num_updates", "decay")
"""What stands beside the weights in a moving average and is none."""

_DEEPEST = 5
_SHOWN = 10


@attrs.frozen
class WeightsReport:
    """Where an extractor's weights come from, and all that was done to them on the way.

    ``unwrapped`` are the keys of the file that were opened, outermost first, ``prefixes`` what was taken off every
    name, ``averaged`` whether the moving average was taken. ``mapped`` names the map that renamed them. ``kept`` are
    weights of the model that the file does not fill and no requested layer needs, ``misshaped`` those of them that it
    has in another shape, ``ignored`` those of the file that the model has no use for. ``notes`` says anything else in
    words.
    """

    source: str
    loaded: int = 0
    unwrapped: tuple[str, ...] = attrs.field(default=(), converter=tuple[str, ...])
    prefixes: tuple[str, ...] = attrs.field(default=(), converter=tuple[str, ...])
    averaged: bool = False
    mapped: str | None = None
    kept: tuple[str, ...] = attrs.field(default=(), converter=tuple[str, ...])
    ignored: tuple[str, ...] = attrs.field(default=(), converter=tuple[str, ...])
    notes: tuple[str, ...] = attrs.field(default=(), converter=tuple[str, ...])
    misshaped: tuple[str, ...] = attrs.field(default=(), converter=tuple[str, ...])

    def __str__(self) -> str:
        parts = [f"{self.loaded} weights of {self.source}", *self.steps()]
        return "; ".join(parts)

    def steps(self) -> list[str]:
        """What was done, one sentence each; empty for a file that fitted as it is."""
        said = {
            "unwrapped": " > ".join(self.unwrapped),
            "taken off every name": " and ".join(repr(prefix) for prefix in self.prefixes),
            "moving average": "taken, in place of the weights that were trained" if self.averaged else "",
            "names mapped": self.mapped or "",
            "not in the file and not needed": shorten([name for name in self.kept if name not in self.misshaped]),
            "of another shape in the file and not needed": shorten(self.misshaped),
            "in the file and not used": shorten(self.ignored),
        }
        return [*(f"{what}: {value}" for what, value in said.items() if value), *self.notes]


def unwrap(
    content: Any, source: str, is_weight: Callable[[Any], bool], *, average: bool = True
) -> tuple[dict[str, Any], WeightsReport]:
    """The weights by name inside what a checkpoint's file holds, and the report of how they were found.

    Where a file has both, the moving average (EMA) is taken, as timm does: it is what training tools evaluate and
    publish. ``average=False`` takes the weights as they were trained.

    Raises WeightsError for content that is no mapping of names to weights, or that holds only the other kind.
    """
    opened: list[str] = []
    averaged = False
    while isinstance(content, Mapping) and len(opened) < _DEEPEST:
        key = _wrapper(content, average=average)
        if key is None:
            break
        opened.append(key)
        averaged = averaged or key in AVERAGES
        content = content[key]
    state, ignored = _weights(content, source, is_weight, opened)
    state, outer = _strip(state)
    state, inner, among = _choose_average(state, source, average=average)
    prefixes = [*outer, *inner]
    report = WeightsReport(source, unwrapped=opened, prefixes=prefixes, averaged=averaged or among, ignored=ignored)
    return state, report


def _wrapper(content: Mapping[Any, Any], *, average: bool) -> str | None:
    keys = (*AVERAGES, *WRAPPERS) if average else WRAPPERS
    return next((key for key in keys if isinstance(content.get(key), Mapping) and content[key]), None)


def _weights(
    content: Any, source: str, is_weight: Callable[[Any], bool], opened: list[str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    problem = f"{source!r} holds no state_dict"
    if not isinstance(content, Mapping):
        raise WeightsError(problem, "names and tensors", type(content).__name__)
    state = {name: value for name, value in content.items() if name not in COUNTERS}
    if not state or not all(isinstance(name, str) and is_weight(value) for name, value in state.items()):
        averages = [key for key in AVERAGES if isinstance(content.get(key), Mapping)]
        raise WeightsError(
            problem,
            f"names and tensors, or these under one of {', '.join((*WRAPPERS, *AVERAGES))}",
            f"{' > '.join([*opened, 'the keys'])} {shorten([str(key) for key in content]) or '(none)'}",
            remedy=_taking(averages[0]) if averages else "save model.state_dict() alone",
        )
    return state, tuple(name for name in content if name not in state)


def _choose_average(state: dict[str, Any], source: str, *, average: bool) -> tuple[dict[str, Any], list[str], bool]:
    """One of the two where moving averages lie among the weights, and the prefixes that were taken off its names.

    Both have the same names, but for the prefix of the averages and what either has been wrapped in.
    """
    for prefix in AVERAGE_PREFIXES:
        averages, own = _strip({n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)})
        plain, others = _strip({n: value for n, value in state.items() if not n.startswith(prefix)})
        if averages and (not plain or averages.keys() & plain.keys()):
            if average:
                return plain | averages, own, True
            if plain:
                return plain, others, False
            raise WeightsError(
                f"{source!r} holds no weights as they were trained",
                f"names without {prefix!r}",
                shorten(state),
                remedy=_taking(f"{prefix}*"),
            )
    return state, [], False


def _taking(averages: str) -> str:
    return f"options={{'ema': True}} takes {averages!r}"


def _strip(state: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    taken: list[str] = []
    while state and (prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in state)), None)):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        taken.append(prefix)
    return state, taken


@attrs.frozen
class Mismatch:
    """Why weights do not fit a model: names by what is wrong with them."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: Mapping[str, str] = attrs.field(factory=dict)
    mistyped: Mapping[str, str] = attrs.field(factory=dict)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshaped or self.mistyped)

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshaped) + len(self.mistyped)

    def __str__(self) -> str:
        found = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "mis-shaped": tuple(f"{name} {why}" for name, why in self.misshaped.items()),
            "of another type": tuple(f"{name} {why}" for name, why in self.mistyped.items()),
        }
        return "; ".join(f"{len(names)} {what}: {shorten(names)}" for what, names in found.items() if names)

    def without(self, kept: Collection[str], ignored: Collection[str] = ()) -> Mismatch:
        """The rest, where ``kept`` may be missing or of any shape, and ``ignored`` may be there besides."""
        return Mismatch(
            tuple(name for name in self.missing if name not in kept),
            tuple(name for name in self.unexpected if name not in ignored),
            {name: why for name, why in self.misshaped.items() if name not in kept},
            self.mistyped,
        )

    def settle(
        self,
        report: WeightsReport,
        own: Collection[str],
        given: Collection[str],
        *,
        kept: Collection[str],
        ignored: Collection[str],
        remedy: str,
    ) -> WeightsReport:
        """The report of loading ``given`` into ``own``, but for ``kept`` and ``ignored`` (as in :meth:`without`).

        Raises WeightsError, which lists whatever else is wrong.
        """
        left = self.without(kept, ignored)
        if left:
            raise left.error(report, len(own), remedy)
        return attrs.evolve(
            report,
            loaded=sum(name in given and name not in kept for name in own),
            kept=sorted(kept),
            misshaped=sorted(name for name in self.misshaped if name in kept),
            ignored=(*report.ignored, *sorted(ignored)),
        )

    def error(self, report: WeightsReport, total: int, remedy: str) -> WeightsError:
        """The error that lists every one of them, with what had been done to the weights before."""
        steps = "".join(f"; {step}" for step in report.steps())
        return WeightsError(
            f"the weights of {report.source!r} do not fit the model",
            f"its {total} weights and no others",
            f"{self}{steps}",
            remedy=remedy,
        )


def is_counter(name: str) -> bool:
    """Whether a name is that of BatchNorm's counter, which evaluation does not read.

    Checkpoints from before torch 0.4.1 have none, nor has any other framework.
    """
    return name.endswith("num_batches_tracked")


def compare(own: Mapping[str, Any], given: Mapping[str, Any]) -> Mismatch:
    """Every weight of a model that ``given`` lacks (counters aside), has in another shape, or has beside it."""
    return Mismatch(
        tuple(name for name in own if name not in given and not is_counter(name)),
        tuple(name for name in given if name not in own),
        {
            name: f"{tuple(given[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in given and tuple(given[name].shape) != tuple(own[name].shape)
        },
    )


def shorten(names: Collection[str]) -> str:
    """The first ten names, and how many more there are."""
    shown = list(names)[:_SHOWN]
    more = f", … ({len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
    return ", ".join(shown) + more
