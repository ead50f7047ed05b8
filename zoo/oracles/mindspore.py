"""mindcv, by itself: ``create_model`` and forward hooks on its cells, with real arrays: there are no others."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")  # else convolutions run on a reference kernel on AVX-512 machines

import mindcv
import mindspore
import numpy as np

from zoo.completeness import Entry, stride_of
from zoo.oracles.base import Oracle, RawRefusal, Shape, Size, explain, stirred
from zoo.survey import Module, Survey

__all__ = ["MindsporeOracle"]

T = TypeVar("T")
WHOLE = "output"
INPUT = ".input"
_PREFIX = re.compile(r"(cls|dist|distillation)_token[\d._]*")


class MindsporeOracle(Oracle):
    """``output`` names what the network returns, and the suffix ``.input`` what goes into a cell.

    Where mindcv has a network that returns the levels of this one (HRNet), the names that it declares mean these.
    """

    batch = 1
    how = "real"
    exact_values = False

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self._network: Any = None
        self._survey: Survey | None = None

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

    @functools.cached_property
    def pyramid(self) -> Any:
        """The network of mindcv that returns the levels of this one, with its weights; None where there is none."""
        return None if hasattr(self.network, "feature_info") else _pyramid(self.model, self.network)

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
        survey = self._survey
        if survey is not None and survey.size == size and set(names) <= set(survey.outputs):
            return {name: shape for name, shape in survey.outputs.items() if name in names and shape}
        images = np.zeros((self.batch, 3, *size), dtype=np.float32)
        return self._observe(images, names, _shape)

    def survey(self, size: Size) -> Survey:
        """Noted, for a pass costs much: later questions for cells at this size are answered by it."""
        cells = {name: _module(name, cell) for name, cell in self.network.cells_and_names() if name}
        layers = [name for name, cell in cells.items() if cell.kernel is not None]
        images = np.zeros((self.batch, 3, *size), dtype=np.float32)
        nothing: Shape = ()
        found = self._observe(images, [*cells, *(name + INPUT for name in layers), WHOLE], _shape, other=nothing)
        outputs = {name: shape for name, shape in found.items() if name in cells}
        inputs = {name: found[name + INPUT] for name in layers if name + INPUT in found}
        result = found.get(WHOLE)
        classes = result[1] if result is not None and len(result) == 2 else None
        self._survey = Survey(size, self.batch, cells, outputs, inputs, result, self.prefix_tokens, classes)
        return self._survey

    def declared(self) -> Sequence[Entry]:
        """The ``feature_info`` of mindcv, where each cell gives a map of the channels and stride that it says.

        It declares the closing 1x1 convolution too, which by the specification is no level. A pyramid declares its own.
        """
        survey = self._survey
        if survey is not None and self.pyramid is not None:
            return self._declared_by_pyramid(survey.size)
        entries = [
            Entry((str(entry["name"]),), int(entry["reduction"]), int(entry["chs"]))
            for entry in getattr(self.network, "feature_info", ())
        ]
        if survey is None or not all(_is_true(entry, survey) for entry in entries):
            return ()
        if len(entries) < 2:
            return entries
        before, last = entries[-2:]
        closing = last.channels in survey.pooled_widths and last.channels != before.channels
        return entries[:-1] if closing and last.reduction == before.reduction else entries

    def _declared_by_pyramid(self, size: Size) -> Sequence[Entry]:
        """The ``feature_info`` of the pyramid, each entry with the cell that gives it there, which the network has too.

        A declared name of a cell is the cell's, whatever the pyramid means by it.
        """
        makers = _makers(self.pyramid, np.zeros((self.batch, 3, *size), dtype=np.float32))
        cells = {name for name, _ in self.network.cells_and_names()}
        return [
            Entry((maker, *{str(entry["name"])} - cells), int(entry["reduction"]), int(entry["chs"]))
            for entry, maker in zip(self.pyramid.feature_info, makers, strict=True)
        ]

    def values(self, names: Sequence[str], images: np.ndarray[Any, Any]) -> Mapping[str, np.ndarray[Any, Any]]:
        return self._observe(images, names, lambda array: array.asnumpy().copy())

    def result(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self.values([WHOLE], images)[WHOLE]

    def checkpoint(self, folder: Path) -> Path:
        generator = np.random.default_rng(1)
        for parameter in self.network.get_parameters():
            if parameter.dtype in (mindspore.float32, mindspore.float16):
                parameter.set_data(mindspore.Tensor(stirred(parameter.asnumpy(), generator)))
        path = folder / "weights.ckpt"
        mindspore.save_checkpoint(self.network, str(path))
        return path

    def _observe(
        self, images: np.ndarray[Any, Any], names: Sequence[str], keep: Callable[[Any], T], other: T | None = None
    ) -> dict[str, T]:
        """What ``keep`` makes of each named array, in the order in which they are made; ``other`` of all else.

        The levels of a pyramid come first, which makes them in a pass of its own.
        """
        network = self.network
        cells = dict(network.cells_and_names())
        found = self._observe_levels(images, set(names) - cells.keys(), keep)

        def note(name: str, array: Any) -> None:
            found.pop(name, None)  # the last run of a cell counts, in its place
            if isinstance(array, mindspore.Tensor):
                found[name] = keep(array)
            elif other is not None:
                found[name] = other

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

    def _observe_levels(
        self, images: np.ndarray[Any, Any], names: Collection[str], keep: Callable[[Any], T]
    ) -> dict[str, T]:
        """What ``keep`` makes of each level of the pyramid that is named."""
        declared = [str(entry["name"]) for entry in self.pyramid.feature_info] if self.pyramid is not None else []
        if not set(declared) & set(names):
            return {}
        try:
            levels = zip(declared, self.pyramid(mindspore.Tensor(images)), strict=True)
            return {name: keep(array) for name, array in levels if name in names}
        except Exception as error:
            raise RawRefusal(explain(error)) from error


def _pyramid(model: str, network: Any) -> Any:
    """The class that mindcv's wrapper for ``features_only`` has for a model, with a network's own parameters."""
    try:
        wrapper = mindcv.create_model(model, features_only=True)
    except Exception:  # noqa: BLE001  (mindcv's models that know no such option raise anything)
        return None
    if not getattr(wrapper, "is_rewritten", False):
        return None
    cells = dict(wrapper.net.cells_and_names())
    for name, parameter in network.parameters_and_names():
        holder, _, key = name.rpartition(".")
        setattr(cells[holder], key, parameter)
    return wrapper.net.set_train(False)


def _makers(network: Any, images: np.ndarray[Any, Any]) -> list[str]:
    """The outermost cell that gives each array which a network returns, with the run of it where that is not its last.

    Such a run is no output that a hook on the cell is left with.
    """
    runs: list[tuple[str, Any]] = []
    handles = [
        cell.register_forward_hook(_hook(lambda *run: runs.append(run), name, takes_input=False))
        for name, cell in network.cells_and_names()
        if name
    ]
    try:
        returned = network(mindspore.Tensor(images))
    finally:
        for handle in handles:
            handle.remove()
    makers = []
    for array in returned:
        position = max((place for place, (_, given) in enumerate(runs) if given is array), default=None)
        makers.append("no cell" if position is None else _run_of(position, [name for name, _ in runs]))
    return makers


def _run_of(position: int, names: Sequence[str]) -> str:
    """A cell's name, where it runs again followed by which of its runs this is."""
    name = names[position]
    run, last = names[: position + 1].count(name), names.count(name)
    return name if run == last else f"{name} in run {run} of {last}"


def _shape(array: Any) -> Shape:
    return tuple(int(side) for side in array.shape)


def _is_true(entry: Entry, survey: Survey) -> bool:
    shape = survey.outputs.get(entry.names[0], ())
    return entry.channels in shape[1:2] and stride_of(entry, shape, survey) == entry.reduction


def _module(name: str, cell: Any) -> Module:
    kind = type(cell).__name__
    if isinstance(cell, mindspore.nn.Dense):
        return Module(name, kind, (1, 1), cell.in_channels, cell.out_channels)
    if isinstance(cell, mindspore.nn.Conv2d):
        return Module(name, kind, tuple(cell.kernel_size), cell.in_channels, cell.out_channels)
    return Module(name, kind)


def _hook(note: Callable[[str, Any], None], name: str, takes_input: bool) -> Callable[[Any, Any, Any], None]:
    def call(_: Any, inputs: Any, output: Any) -> None:
        note(name, inputs[0] if takes_input else output)

    return call
