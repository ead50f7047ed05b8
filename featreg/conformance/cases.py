"""Cases for a backend whose author gives none, and sizes of every form that a model takes."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterable, Iterator

import attrs

from featreg.case import Case
from featreg.errors import CapabilityError, FeatregError, InputError, UnknownModelError, near_matches
from featreg.extractor import describe
from featreg.registry import Registry
from featreg.spec import InputRule, ModelInfo, Size

__all__ = ["cases_of", "default_cases", "outside_sizes", "sizes_of"]

EXAMINED = 16
"""How many models are described to choose the default cases among them."""

CHOSEN = 3


def cases_of(backend: str, registry: Registry, models: str = "*") -> tuple[Case, ...]:
    """The author's cases, else the default ones, of the models (or by the names) that match a shell-style pattern.

    The sizes of a case that has one only are filled in. Raises UnknownModelError where no case is left, CapabilityError
    for a backend that has no models by name, only modules that it wraps.
    """
    given = registry.cases(backend)
    if not given and not registry.models(backend):
        raise CapabilityError(
            f"the backend {backend!r} has no models by name, which is how the kit opens them",
            "a backend that lists models, or cases of its author's",
            remedy="what wraps modules is judged by the backends that are built on it",
        )
    cases = given or tuple(default_cases(backend, registry, models))
    chosen = [case for case in cases if any(fnmatch.fnmatchcase(name, models) for name in (case.model, case.name))]
    if not chosen:
        known = {case.name for case in cases}
        raise UnknownModelError(
            f"no case of the backend {backend!r} matches {models!r}",
            "a model of its cases",
            repr(models),
            near_matches(models, known) or tuple(sorted(known)),
            "yield cases from the hook featreg_conformance_cases",
        )
    return tuple(case if len(case.sizes) > 1 else _with_sizes(backend, case, registry) for case in chosen)


def default_cases(backend: str, registry: Registry, models: str = "*") -> Iterator[Case]:
    """The lightest models of different make, of some that are spread evenly over the list."""
    names = [name for name in registry.models(backend) if fnmatch.fnmatchcase(name, models)]
    step = max(1, -(-len(names) // EXAMINED))
    found: dict[object, ModelInfo] = {}
    for name in names[::step]:
        with contextlib.suppress(CapabilityError):  # a model that the backend refuses, with its reason
            info = describe(f"{backend}:{name}", registry=registry)
            make = (frozenset(feature.kind for feature in info.features), info.input_rule.fixed is None)
            if info.keys and (make not in found or _weight(info) < _weight(found[make])):
                found[make] = info
    for info in sorted(found.values(), key=_weight)[:CHOSEN]:
        layers = [key for key in info.keys if key != "text_embedding"]
        size = next(iter(sizes_of(backend, info.model, registry)), info.input_size)
        yield Case(info.model, layers, size)


def _weight(info: ModelInfo) -> int:
    """How many numbers the declared features of one image hold, as far as they are known."""
    total = 0
    for feature in info.features:
        with contextlib.suppress(InputError):
            shape = feature.shape(1, *info.input_size)
            total += shape[-1] * (shape[-2] if len(shape) > 2 else 1)
    return total


def _with_sizes(backend: str, case: Case, registry: Registry) -> Case:
    return attrs.evolve(case, sizes=(case.size, *sizes_of(backend, case.model, registry)))


def sizes_of(backend: str, model: str, registry: Registry) -> tuple[Size, ...]:
    """A square, a tall, a wide, an odd and the least size that a model takes; its one size where that is fixed."""
    info = describe(f"{backend}:{model}", registry=registry)
    rule = info.input_rule
    if rule.fixed is not None:
        return (rule.fixed,)
    step = rule.multiple_of
    strides = [feature.reduction for feature in info.features if feature.reduction is not None]
    side = _rounded_up(max(*rule.minimum, 2 * max(strides, default=1)), step)
    half, odd = _rounded_up(side // 2, step), 1 if step == 1 else step
    least = (_rounded_up(rule.minimum[0], step), _rounded_up(rule.minimum[1], step))
    wanted = [(side, side), (side + half, side), (side, side + half), (side + odd, side + 3 * odd), least]
    return tuple(size for size in dict.fromkeys(wanted) if size == least or _fits(f"{backend}:{model}", size, registry))


def _rounded_up(side: int, step: int) -> int:
    return -(-side // step) * step


def _fits(model: str, size: Size, registry: Registry) -> bool:
    try:
        info = describe(model, size, registry=registry)
        for feature in info.features:
            feature.shape(1, *size)
    except FeatregError:
        return False
    return True


def outside_sizes(rule: InputRule, inside: Size) -> tuple[Size, ...]:
    """Sizes next to the rule that break it, on one axis each; none where every size will do."""
    height, width = inside
    near: Iterable[Size] = [(height + 1, width), (height, width + 1), (height, max(1, width // 2))]
    if rule.fixed is None:
        near = [
            (rule.minimum[0] - 1, width),
            (height, rule.minimum[1] - 1),
            (height + 1, width) if rule.multiple_of > 1 else inside,
            (height, width + 1) if rule.multiple_of > 1 else inside,
        ]
    return tuple(size for size in dict.fromkeys(near) if min(size) > 0 and not _allows(rule, size))


def _allows(rule: InputRule, size: Size) -> bool:
    try:
        rule.check(*size)
    except InputError:
        return False
    return True
