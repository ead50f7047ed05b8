"""The shapes of every tensor at one size, from onnxruntime itself on black images, and the sizes that a network takes.

Unlike ONNX's own shape inference this knows every operator that can run, and rounds as it will with real images.
Nothing is kept of what is computed but the shapes.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from featreg.plugin import InputRule, Shape, Size, errors
from featreg_onnx.graph import Graph, cut
from featreg_onnx.runtime import find_providers, open_session

__all__ = ["NUMBERS", "Probe", "Seen", "find_rule"]

NUMBERS: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
"""The types in which a file may compute, as a request names them."""

Seen = dict[str, Shape | None]
"""The shape of every tensor for one image, None where its first axis is not that of the images."""

_PERIOD = 64


class Probe:
    """A session that gives the shapes of tensors in place of them; ``last``: the input is (N, H, W, 3)."""

    def __init__(self, model: onnx.ModelProto, graph: Graph, file: Path, *, last: bool) -> None:
        self._graph, self._last = graph, last
        self._outputs = {f"featreg.shape/{number}": name for number, name in enumerate(graph.taps)}
        part = cut(model, list(graph.taps))
        part.graph.node.extend(helper.make_node("Shape", [name], [output]) for output, name in self._outputs.items())
        del part.graph.output[:]
        part.graph.output.extend(onnx.ValueInfoProto(name=output) for output in self._outputs)
        self._session = open_session(part, file, find_providers("cpu"), optimized=False)

    def __call__(self, size: Size, batch: int) -> Seen:
        """Raises InputError where the network does not run on images of this size."""
        shape = (batch, *size, 3) if self._last else (batch, 3, *size)
        images = np.zeros(shape, NUMBERS[self._graph.type])
        try:
            found = self._session.run(list(self._outputs), {self._graph.input: images})
        except Exception as error:
            raise _refused(size, str(error).splitlines()[0]) from error
        shapes = {name: tuple(map(int, sides)) for name, sides in zip(self._outputs.values(), found, strict=True)}
        if any(0 in sides for sides in shapes.values()):
            raise _refused(size, "a tensor without elements")
        return {name: (1, *sides[1:]) if sides[:1] == (batch,) else None for name, sides in shapes.items()}


def _refused(size: Size, why: str) -> errors.InputError:
    return errors.InputError("the network does not run on images of this size", got=f"{size[0]}x{size[1]}: {why}")


def find_rule(probe: Probe, batch: int, shapes: dict[Size, Seen]) -> tuple[InputRule, int | None]:
    """Which sizes a network takes, as far as its own and those next to two multiples of the period tell.

    The shapes at the latter are added to ``shapes``, which holds those at its own size. The period is that of
    :func:`featreg.plugin.describe_output`, None for a network that takes one size alone.
    """

    def runs(height: int, width: int) -> bool:
        with contextlib.suppress(errors.InputError):
            found = probe((height, width), batch)
            if height != width:
                shapes[height, width] = found
            return True
        return False

    (native,) = shapes
    bases = [side for side in (_PERIOD, 2 * _PERIOD, native[0] // _PERIOD * _PERIOD) if side]
    base = next((side for side in bases if runs(side, side + _PERIOD)), None)
    if base is None:
        return InputRule(fixed=native), None
    sides = dict.fromkeys([base, max(base, 2 * _PERIOD)])  # a single position would fit beside any grid
    steps = [2**power for power in range(_PERIOD.bit_length() - 1)]
    fitting = (step for step in steps if all(runs(side + step, side + _PERIOD - step) for side in sides))
    multiple = next(fitting, _PERIOD)
    low, high = 0, base // multiple
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if runs(middle * multiple, middle * multiple) else (middle, high)
    return InputRule(multiple_of=multiple, minimum=(high * multiple, high * multiple)), _PERIOD
