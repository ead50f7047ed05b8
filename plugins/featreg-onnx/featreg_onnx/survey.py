"""What can be learnt of a file before it is asked for anything: the sizes it takes and what each of its tensors is."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import attrs

from featreg.plugin import Described, FeatureInfo, InputRule, NodeInfo, Preprocess, Size, describe_output, errors
from featreg_onnx.graph import Graph, read_graph
from featreg_onnx.layout import Place, find_places
from featreg_onnx.probe import NUMBERS, Probe, Seen, find_rule
from featreg_onnx.reading import read_model, stored_preprocess

__all__ = ["Survey", "make_survey"]

_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
_NATIVES = (224, 256, 384, 299, 336, 448, 512, 128, 64, 32)
"""The sides that are tried, in this order, where a file fixes none."""

_REMEMBERED = 32


@attrs.frozen(slots=False)
class Survey:
    """A file's graph, what it takes, and the shapes of its tensors at the sizes that decide all others.

    ``size`` is its own. ``batch`` is how many images go in at once, None for any number. ``last``: its input is
    (N, H, W, 3). ``look`` gives the shapes at any size. ``period`` is that of :func:`featreg.plugin.describe_output`.
    """

    graph: Graph
    size: Size
    rule: InputRule
    batch: int | None
    last: bool
    period: int | None
    shapes: dict[Size, Seen]
    look: Callable[[Size], Seen]
    preprocess: Preprocess | None

    @cached_property
    def places(self) -> list[Place]:
        return find_places(self.graph, self.shapes, self.size, self.period)

    @property
    def number(self) -> str:
        """The type in which the file computes, as a request names it."""
        return NUMBERS[self.graph.type]

    def describe(self, place: Place, size: Size | None = None) -> Described:
        """A tensor as it is at a size, the file's own where None; raises CapabilityError for what is no feature."""
        shapes = {at: seen.get(place.name) for at, seen in self.shapes.items()}

        def describe_at(at: Size) -> Described:
            period, keys = self.period, dict[str, Any](level=place.level, index=place.index, head=place.head)
            return describe_output(
                place.name, shapes, at, period, as_map=place.as_map, as_vector=place.as_vector, **keys
            )

        found = describe_at(self.size)
        if size is not None and found.feature.rounding == "measured":
            shapes[size] = self.look(size)[place.name]
            found = describe_at(size)
        first = found.feature.prefix_tokens > 0 and self._has_class_token
        return replace(found, feature=attrs.evolve(found.feature, class_token=first))

    def features(self, size: Size | None = None) -> dict[FeatureInfo, Place]:
        """Every level and index, then the heads."""
        found = {}
        for place in self.places:
            with contextlib.suppress(errors.CapabilityError):
                found[self.describe(place, size).feature] = place
        return found

    def natives(self, size: Size | None = None) -> tuple[FeatureInfo, ...]:
        """What the tensors of the features are by themselves, where a map is made of them: the tokens of blocks."""
        made = [
            feature.name for feature, place in self.features(size).items() if feature.kind == "map" and place.as_map
        ]
        given = [self.describe(Place(name), size).feature for name in dict.fromkeys(made)]
        return tuple(feature for feature in given if feature.kind != "map")

    def nodes(self, size: Size | None = None) -> Iterator[NodeInfo]:
        """Every tensor that is a feature, in the order in which they are computed."""
        size = size or self.size
        for name, op in self.graph.taps.items():
            with contextlib.suppress(errors.CapabilityError):
                yield NodeInfo(name, op.type, self.describe(Place(name), size).feature.shape(1, *size)[1:])

    @cached_property
    def _has_class_token(self) -> bool:
        names = (name.replace("/", ".").rpartition(".")[2] for name in self.graph.weights)
        return any(name.startswith(_CLASS_TOKENS) for name in names)


def make_survey(file: Path) -> Survey:
    """Learn a file; raises WeightsError for one that is none, CapabilityError for one that takes no images."""
    model = read_model(file)
    graph = read_graph(model)
    preprocess = stored_preprocess(model)
    last = _is_last(graph)
    natives = _natives(graph, preprocess, last=last)
    probe = Probe(model, graph, file, last=last)
    size, batch, seen = _first_that_runs(probe, natives, [graph.dims[0]] if graph.dims[0] else [2, 1], file)
    shapes = {size: seen}
    rule, period = (InputRule(fixed=size), None) if len(natives) == 1 else find_rule(probe, batch, shapes)

    def look(at: Size) -> Seen:
        return shapes[at] if at in shapes else Probe(read_model(file), graph, file, last=last)(at, batch)

    free = graph.dims[0] is None and batch > 1
    look = lru_cache(maxsize=_REMEMBERED)(look)
    return Survey(graph, size, rule, None if free else batch, last, period, shapes, look, preprocess)


def _first_that_runs(probe: Probe, sizes: list[Size], batches: list[int], file: Path) -> tuple[Size, int, Seen]:
    refusal: errors.InputError | None = None
    for size, batch in itertools.product(sizes, batches):
        try:
            return size, batch, probe(size, batch)
        except errors.InputError as error:
            refusal = refusal or error
    assert refusal is not None
    expected = f"one of the sizes {', '.join(f'{height}x{width}' for height, width in sizes)}"
    raise errors.CapabilityError(f"{str(file)!r} does not run on black images", expected, refusal.got) from refusal


def _is_last(graph: Graph) -> bool:
    """Whether channels come last; raises CapabilityError where there are other than three of them."""
    second, fourth = graph.dims[1], graph.dims[3]
    if second != 3 and fourth != 3 and second is not None:
        raise errors.CapabilityError(
            "the file takes images of other channels", "(N, 3, H, W) or (N, H, W, 3)", _written(graph)
        )
    return second != 3 and fourth == 3


def _natives(graph: Graph, preprocess: Preprocess | None, *, last: bool) -> list[Size]:
    """The sizes of which one is the file's own: the one that it fixes, else first the one of its preprocessing."""
    height, width = graph.dims[1:3] if last else graph.dims[2:]
    if height and width:
        return [(height, width)]
    if height or width:
        raise errors.CapabilityError("the file fixes one side of its images", "both sides, or none", _written(graph))
    crop = [preprocess.crop] if preprocess is not None and preprocess.crop is not None else []
    return list(dict.fromkeys([*crop, *((side, side) for side in _NATIVES)]))


def _written(graph: Graph) -> str:
    return f"({', '.join('?' if side is None else str(side) for side in graph.dims)})"
