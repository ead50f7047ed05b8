"""A graph told as the core's rule for levels wants it: one step for each module and each operation between them.

A graph holds operations alone; modules are known by the names that exporters give them (``scope_of``). Where no
operation has such a name, the steps are the tensors through which everything goes: in a residual network the ends of
blocks.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

from featreg.plugin import Shape, Size, Step, describe_output, errors, stride_of
from featreg_onnx.graph import Graph, Op

__all__ = ["Shapes", "as_steps"]

Shapes = Mapping[Size, Mapping[str, Shape | None]]
"""The shape of every tensor for one image, at each size that was tried."""

_LAYOUT = (
    *("Cast", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Squeeze", "Transpose"),
    *("Unsqueeze", "DequantizeLinear", "QuantizeLinear"),
)
_NORMS = (
    *("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LRN"),
    *("LpNormalization", "MeanVarianceNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
)
_PASSIVE = frozenset((*_LAYOUT, *_NORMS))
_PARTS_OF_NORMS = _PASSIVE | {"Add", "Div", "Mul", "Pow", "ReduceMean", "Reciprocal", "Sqrt", "Sub"}


class _Teller:
    """What becomes a step, from the shapes of one graph."""

    def __init__(
        self, graph: Graph, shapes: Shapes, size: Size, period: int | None, *, tokens_as_maps: bool = False
    ) -> None:
        self.graph, self.shapes, self.size, self.period = graph, shapes, size, period
        self.tokens_as_maps = tokens_as_maps

    def step(self, name: str, ops: Sequence[Op], output: str | None, *, holds: bool = False) -> Step:
        """A module of some operations, or one of them, that gives a tensor; None where it gives several.

        A module that ``holds`` others is no convolution, whatever they are.
        """
        found = {at: None if output is None else seen.get(output) for at, seen in self.shapes.items()}
        shape = found[self.size] or ()
        convolutions = [op for op in ops if op.kernel is not None and not holds]
        return Step(
            name,
            None if output in self.graph.makers and self.graph.makers[output].compares else self._stride(name, found),
            _is_passive(ops),
            max(op.kernel or () for op in convolutions) if convolutions else None,
            convolutions[0].channels if len(convolutions) == 1 else None,
            (shape[1], shape[2]) if len(shape) == 3 else None,
            _make(ops),
            output,
            any(op.learned for op in ops),
            len(shape) == 2,
        )

    def _stride(self, name: str, found: Mapping[Size, Shape | None]) -> int | None:
        if len(found[self.size] or ()) == 3 and not self.tokens_as_maps:
            return None
        try:
            feature = describe_output(name, found, self.size, self.period, as_map=True).feature
        except errors.CapabilityError:
            return None
        return stride_of(feature, found, self.size) if feature.kind == "map" else None


def as_steps(
    graph: Graph, shapes: Shapes, size: Size, period: int | None, *, tokens_as_maps: bool
) -> tuple[list[Step], dict[str, str]]:
    """The steps of a graph, and the tensor that each of them gives.

    With ``tokens_as_maps`` tokens of patches have the stride of the map that they are.
    """
    teller = _Teller(graph, shapes, size, period, tokens_as_maps=tokens_as_maps)
    steps = _of_modules(teller) if any(op.scope for op in graph.ops) else _of_passages(teller)
    return steps, {step.name: str(step.output) for step in steps if step.output is not None}


def _of_modules(teller: _Teller) -> list[Step]:
    ops = teller.graph.ops
    inside: dict[str, list[Op]] = {}
    for op in ops:
        for scope in _scopes(op.scope):
            inside.setdefault(scope, []).append(op)
    leaves = {scope for scope, own in inside.items() if _is_leaf(scope, own)}
    steps = []
    for position, op in enumerate(ops):
        if op.scope not in leaves:
            name = f"{op.type}:{position}"  # without a dot: it holds nothing
            steps.append(teller.step(f"{op.scope}.{name}" if op.scope else name, [op], op.name))
        for scope in reversed(_scopes(op.scope)):
            if inside[scope][-1] is op:
                output = _output(teller.graph, inside[scope], ops[position + 1 :])
                steps.append(teller.step(scope, inside[scope], output, holds=scope not in leaves))
    return steps


def _scopes(scope: str) -> list[str]:
    """A module and all around it, the outermost first."""
    return list(itertools.accumulate(scope.split("."), "{}.{}".format)) if scope else []


def _is_leaf(scope: str, ops: Sequence[Op]) -> bool:
    """Whether a module holds no other and multiplies by weights at most once: a convolution, a norm, an activation."""
    return all(op.scope == scope for op in ops) and sum(op.learned for op in ops) <= 1


def _output(graph: Graph, ops: Sequence[Op], later: Sequence[Op]) -> str | None:
    """The one tensor of a module that is read after it, or that the network returns; None where there are several.

    What an earlier run of the module gave has been read by then.
    """
    read = {name for op in later for name in op.inputs} | set(graph.outputs)
    found = read.intersection(name for op in ops for name in op.outputs)
    return found.pop() if len(found) == 1 else None


def _of_passages(teller: _Teller) -> list[Step]:
    """The tensors beside which no other is still to be read, each with the operations since the one before."""
    ops = teller.graph.ops
    last = {name: position for position, op in enumerate(ops) for name in op.inputs}
    steps: list[Step] = []
    since: list[Op] = []
    alive: set[str] = {teller.graph.input}
    for position, op in enumerate(ops):
        since.append(op)
        alive = {name for name in (*alive, *op.outputs) if last.get(name, -1) > position}
        if alive <= {op.name}:
            steps.append(teller.step(f"{op.type}:{position}", since, op.name))
            since = []
    return steps


def _is_passive(ops: Sequence[Op]) -> bool:
    """Whether some operations only normalise or change the layout; a norm may be told as its formula."""
    types = {op.type for op in ops}
    formula = types <= _PARTS_OF_NORMS and "ReduceMean" in types and bool(types & {"Pow", "Sqrt", "Sub"})
    return types <= _PASSIVE or (formula and len(ops) > 1)


def _make(ops: Sequence[Op]) -> str:
    """What a module is made of, in words: modules of one class are made alike."""
    counts = Counter(op.type for op in ops if op.type not in _LAYOUT)
    return " ".join(f"{count} {name}" for name, count in sorted(counts.items()))
