"""Where a graph's levels and heads lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from featreg.plugin import Shape, Size, Step, Transformer, find_final, find_levels, find_transformer, level_of
from featreg_onnx.graph import Graph
from featreg_onnx.steps import Shapes, as_steps

__all__ = ["Place", "find_places"]

_HANDING_ON = ("Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze")
_SCORING = ("LogSoftmax", "Sigmoid", "Softmax")
"""What makes probabilities of logits."""


@attrs.frozen
class Place:
    """A tensor that can be asked for.

    ``as_map``: tokens of patches are to become the map that they are. ``as_vector``: a map of one position is a vector.
    """

    name: str
    level: str | None = None
    index: int | None = None
    head: str | None = None
    as_map: bool = False
    as_vector: bool = False


def find_places(graph: Graph, shapes: Shapes, size: Size, period: int | None) -> list[Place]:
    """Every level, index and head (``specs/levels.md``), from the shapes at ``size`` and at other sizes."""
    steps, tensors = as_steps(graph, shapes, size, period, tokens_as_maps=False)
    vectors = _find_vectors(graph, shapes[size])
    plain = find_transformer(steps, size)
    if plain is not None:
        return [*_find_blocks(steps, plain, tensors), *vectors]
    steps, tensors = as_steps(graph, shapes, size, period, tokens_as_maps=True)
    pooled = next((shapes[size][place.name] for place in vectors if place.head == "pooled"), None)
    levels = find_levels(steps, pooled[1] if pooled and len(vectors) > 1 else None)
    places = [Place(tensors[level.name], level.level, index, as_map=True) for index, level in enumerate(levels)]
    final = find_final(steps)
    return [*places, *([Place(tensors[final], head="features", as_map=True)] if final else []), *vectors]


def _find_blocks(steps: Sequence[Step], plain: Transformer, tensors: Mapping[str, str]) -> list[Place]:
    places = [Place(tensors[name], index=index, as_map=True) for index, name in enumerate(plain.blocks)]
    places[-1] = attrs.evolve(places[-1], level=level_of(plain.stride))
    sequence = next(step.tokens for step in steps if step.name == plain.blocks[-1])
    final = [tensors[step.name] for step in steps if step.tokens == sequence and step.name in tensors][-1]
    return [*places, Place(final, head="features", as_map=True), Place(final, head="tokens")]


def _find_vectors(graph: Graph, shapes: Mapping[str, Shape | None]) -> list[Place]:
    """``pooled`` and ``logits`` of a graph that returns one vector per image; what makes no scores is ``pooled``."""
    places = {name: Place(name, as_vector=True) for name in graph.taps if _is_vector(shapes[name])}
    vectors = [places[name] for name in graph.outputs if name in places]
    if len(vectors) != 1:
        return []
    linear = _find_linear(graph, vectors[0].name)
    if linear is None or linear[0] not in places:
        return [attrs.evolve(vectors[0], head="pooled")]
    made, taken = linear
    pooled = [attrs.evolve(places[taken], head="pooled")] if taken in places else []
    return [*pooled, attrs.evolve(places[made], head="logits")]


def _is_vector(shape: Shape | None) -> bool:
    return shape is not None and (len(shape) == 2 or shape[2:] == (1, 1))


def _find_linear(graph: Graph, name: str) -> tuple[str, str] | None:
    """What the linear layer behind a vector gives and takes, up to layout and probabilities; None for another vector.

    It gives a vector: where its layout is changed afterwards, that is the first one.
    """
    given = name
    while (op := graph.makers.get(name)) is not None:
        if op.type in _SCORING:
            given = op.inputs[0]
        elif op.type not in _HANDING_ON:
            break
        name = op.inputs[0]
    if op is None:
        return None
    product = graph.makers.get(op.inputs[0]) if op.type == "Add" and len(op.inputs) == 1 else op
    linear = product is not None and product.learned and product.type in ("Conv", "Gemm", "MatMul")
    return (given, product.inputs[0]) if linear and product is not None else None
