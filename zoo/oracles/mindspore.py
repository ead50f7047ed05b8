"""mindcv, by itself: ``create_model`` and forward hooks on its cells, with real arrays: there are no others."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")  # else convolutions run on a reference kernel on AVX-512 machines

import mindcv
import mindspore
import numpy as np

from zoo.oracles.base import Oracle, RawRefusal, Shape, Size, explain, stirred

__all__ = ["MindsporeOracle"]

T = TypeVar("T")
WHOLE = "output"
INPUT = ".input"
_PREFIX = re.compile(r"(cls|dist|distillation)_token\d*")


class MindsporeOracle(Oracle):
    """``output`` names what the network returns, and the suffix ``.input`` what goes into a cell."""

    batch = 1
    how = "real"
    exact_values = False

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self._network: Any = None

    @staticmethod
    def models() -> Sequence[str]:
        return tuple(mindcv.list_models())

    @property
    def network(self) -> Any:
        """The network in evaluation mode, built once."""
        if self._network is None:
            mindspore.set_context(mode=mindspore.PYNATIVE_MODE)  # in which alone hooks run
            try:
                self._network = mindcv.create_model(self.model).set_train(False)
            except Exception as error:
                raise RawRefusal(explain(error)) from error
        return self._network

    @property
    def prefix_tokens(self) -> int:
        found = map(_PREFIX.fullmatch, self.network.parameters_dict())
        return len({match[1] for match in found if match})  # CoaT has one of a kind for each of its stages

    @property
    def dilated(self) -> bool:
        cells = (cell for _, cell in self.network.cells_and_names() if isinstance(cell, mindspore.nn.Conv2d))
        return any(max(cell.dilation) > 1 for cell in cells)

    @property
    def parameters(self) -> int:
        return sum(math.prod(parameter.shape) for parameter in self.network.get_parameters())

    def shapes(self, names: Sequence[str], size: Size, thorough: bool = True) -> Mapping[str, Shape]:
        images = np.zeros((self.batch, 3, *size), dtype=np.float32)
        return self._observe(images, names, lambda array: tuple(int(side) for side in array.shape))

    def values(self, names: Sequence[str], images: np.ndarray[Any, Any]) -> Mapping[str, np.ndarray[Any, Any]]:
        return self._observe(images, names, lambda array: array.asnumpy().copy())

    def checkpoint(self, folder: Path) -> Path:
        generator = np.random.default_rng(1)
        for parameter in self.network.get_parameters():
            if parameter.dtype in (mindspore.float32, mindspore.float16):
                parameter.set_data(mindspore.Tensor(stirred(parameter.asnumpy(), generator)))
        path = folder / "weights.ckpt"
        mindspore.save_checkpoint(self.network, str(path))
        return path

    def _observe(self, images: np.ndarray[Any, Any], names: Sequence[str], keep: Callable[[Any], T]) -> dict[str, T]:
        network = self.network
        cells = dict(network.cells_and_names())
        found: dict[str, T] = {}

        def note(name: str, array: Any) -> None:
            found.pop(name, None)  # the last run of a cell counts, in its place
            if isinstance(array, mindspore.Tensor):
                found[name] = keep(array)

        handles = [
            cells[cell].register_forward_hook(_hook(note, name, takes_input))
            for name in dict.fromkeys(names)
            for cell, takes_input in [(name, False) if name in cells else (name.removesuffix(INPUT), True)]
            if cell in cells and cell
        ]
        try:
            output = network(mindspore.Tensor(images))
            for array in output if isinstance(output, tuple | list) else (output,):
                array.asnumpy()  # MindSpore computes, and raises, with a delay
        except Exception as error:
            raise RawRefusal(explain(error)) from error
        finally:
            for handle in handles:
                handle.remove()
        if WHOLE in names and WHOLE not in cells:
            note(WHOLE, output)
        return found


def _hook(note: Callable[[str, Any], None], name: str, takes_input: bool) -> Callable[[Any, Any, Any], None]:
    def call(_: Any, inputs: Any, output: Any) -> None:
        note(name, inputs[0] if takes_input else output)

    return call
