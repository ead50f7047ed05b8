"""From a network to all that the backend says of it: one pass at its own size, a few probes, its declaration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from featreg.plugin import Size, errors
from featreg_mindspore.declared import check, find_rewritten, has_class_token, read
from featreg_mindspore.fake import CAN_FAKE
from featreg_mindspore.layout import Declared, find
from featreg_mindspore.networks import build
from featreg_mindspore.survey import Survey, survey
from featreg_mindspore.trace import Event, trace

__all__ = ["Learnt", "learn", "learn_cell"]

_SIDES = (256, 299, 384, 448, 192, 160)
"""Square sizes tried, after the configured one, for networks that are built for another and do not say so."""


@dataclass(frozen=True)
class Learnt:
    """What a network does, and how to see it at further sizes: ``fake`` where fake tensors are enough for that."""

    survey: Survey
    network: Any
    fake: bool

    def see(self, size: Size) -> None:
        """Take in the shapes at one more size, unless known; raises InputError where the network does not take it."""
        self.survey.rule.check(*size)
        if size not in self.survey.shapes:
            self.survey.add(size, trace(self.network, size, self.fake))


def learn(model: str, make: Callable[[], Any], size: Size) -> Learnt:
    """All of one of mindcv's models, of which ``make`` builds networks whose parameters may hold any values.

    ``size`` is that of its configuration, which may be another than it runs at. Raises CapabilityError where it runs at
    no size, with MindSpore's own error chained.
    """
    size, events, fake = _first_run(model, make, size)
    network = events[-1].cell
    result = survey(size, events, lambda at: trace(network, at, fake))
    result.class_token = has_class_token(network)
    try:
        declared = read(network) or _read_features_only(model, size, fake)
        check(declared, result)
    except errors.SpecError:  # mindcv's own declaration is wrong: its network is taken as one without
        declared = []
    result.places = find(events, result.shapes, size, result.period, declared)
    return Learnt(result, network, fake)


def learn_cell(network: Any, size: Size) -> Learnt:
    """All of a network of the caller's own, on real tensors, since nothing is known of what it does with them.

    Raises InputError where it does not run at its size, and SpecError for a declaration that does not hold.
    """
    events = trace(network, size)
    result = survey(size, events, lambda at: trace(network, at))
    result.class_token = has_class_token(network)
    declared = read(network)
    check(declared, result)
    result.places = find(events, result.shapes, size, result.period, declared)
    return Learnt(result, network, False)


def _first_run(model: str, make: Callable[[], Any], own: Size) -> tuple[Size, list[Event], bool]:
    """The size that a model is made for, a network's events there, and whether fake tensors were enough."""
    failure: errors.InputError | None = None
    networks: dict[bool, Any] = {}
    for size in dict.fromkeys([own, *((side, side) for side in _SIDES)]):
        for fake in (True, False) if CAN_FAKE else (False,):
            networks[fake] = networks.get(fake) or make()  # not one for both: see featreg_mindspore.fake
            try:
                return size, trace(networks[fake], size, fake), fake
            except errors.InputError as error:
                failure = failure if fake else failure or error
    raise errors.CapabilityError(
        f"mindcv's {model!r} does not run on this version of MindSpore",
        got=failure.got if failure else "",
        remedy="choose another model, or another version of mindspore or mindcv",
    ) from failure


def _read_features_only(model: str, size: Size, fake: bool) -> list[Declared]:
    """The declaration of the class that rewrites the model's own for mindcv's wrapper, where there is one (HRNet)."""
    try:
        wrapper = build(model, filled=False, features_only=True)
    except errors.CapabilityError:
        return []
    if not getattr(wrapper, "is_rewritten", False):
        return []
    return find_rewritten(read(wrapper.net), trace(wrapper.net, size, fake))
