"""Where a network of mindcv computes otherwise than the same one of a torch library, and making it compute alike.

One walk over the network finds every difference; describing a model lists them, ``options={"padding": "torch"}`` mends
them. So what is said and what is done cannot drift apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from featreg_mindspore.families import Source
from featreg_mindspore.libraries import nn
from featreg_mindspore.runtime import seeded

__all__ = ["add_biases", "deviations", "imitate"]


@dataclass(frozen=True)
class _Difference:
    """A cell that computes otherwise: how, in words with a place for the library's name, and the cell to put there."""

    cell: str
    what: str
    twin: Callable[[], Any]


def deviations(network: Any, sources: Sequence[Source]) -> tuple[str, ...]:
    """A sentence for each way in which a network departs from those of the sources."""
    libraries: dict[tuple[str, int], list[str]] = defaultdict(list)
    for source in sources:
        counts: dict[str, int] = defaultdict(int)
        for difference in (*_differences(network, source), *_unbiased(network, source)):
            counts[difference.what] += 1
        for what, count in counts.items():
            libraries[what, count].append(source.library)
    return tuple(f"{what} {' and '.join(names)} (cells: {count})" for (what, count), names in libraries.items())


def imitate(network: Any, source: Source) -> None:
    """Make a network pad, normalise and activate as the source's; its weights stay the same objects."""
    _replace_all(network, list(_differences(network, source)))


def add_biases(network: Any, source: Source) -> int:
    """Give a bias of zeros to each layer that has one in the source and none in mindcv; returns how many."""
    found = list(_unbiased(network, source))
    _replace_all(network, found)
    return len(found)


def _differences(network: Any, source: Source) -> Iterator[_Difference]:
    for name, cell in network.cells_and_names():
        kind = type(cell).__name__
        if isinstance(cell, nn.Conv2d) and source.even and _pads_unevenly(cell):
            yield _Difference(
                name, "convolutions pad as TensorFlow's SAME does, not evenly as in", partial(_conv, cell)
            )
        elif isinstance(cell, nn.MaxPool2d) and source.even and _pads_unevenly(cell):
            yield _Difference(
                name, "max pooling pads as TensorFlow's SAME does, not evenly as in", partial(_pool, cell)
            )
        elif isinstance(cell, nn.GELU) and cell.approximate == "tanh":
            yield _Difference(name, "GELU is the tanh approximation, not exact as in", _exact_gelu)
        elif kind in source.epsilons and _epsilon(cell) != source.epsilons[kind]:
            epsilon = source.epsilons[kind]
            what = f"{kind} adds {_epsilon(cell):g} to the variance, not {epsilon:g} as in"
            yield _Difference(name, what, partial(_norm, cell, epsilon))


def _unbiased(network: Any, source: Source) -> Iterator[_Difference]:
    for name, cell in network.cells_and_names():
        wanted = any(fnmatchcase(name, pattern) for pattern in source.biases)
        if wanted and isinstance(cell, nn.Conv2d) and not cell.has_bias:
            what = "convolutions have no bias (it is added where a checkpoint brings one), unlike in"
            yield _Difference(name, what, partial(_conv, cell, has_bias=True))


def _pads_unevenly(cell: Any) -> bool:
    """Whether SAME differs from even padding at some size: with a stride, unless each pixel is a window of its own."""
    kernel, stride = _largest(cell.kernel_size), _largest(cell.stride)
    return cell.pad_mode.lower() == "same" and stride > 1 and kernel > 1


def _largest(value: Any) -> int:
    return int(max(value) if isinstance(value, tuple) else value)


def _even(kernel: int, stride: int, dilation: int = 1) -> int:
    """As torch's networks do it: half the window; nothing where windows do not overlap."""
    return 0 if stride >= kernel else dilation * (kernel - 1) // 2


def _conv(cell: Any, *, has_bias: bool | None = None) -> Any:
    same = cell.pad_mode.lower() == "same" and has_bias is None
    padding = _even(_largest(cell.kernel_size), _largest(cell.stride), _largest(cell.dilation))
    return nn.Conv2d(
        cell.in_channels,
        cell.out_channels,
        cell.kernel_size,
        cell.stride,
        pad_mode="pad" if same else cell.pad_mode,
        padding=padding if same else cell.padding,
        dilation=cell.dilation,
        group=cell.group,
        has_bias=cell.has_bias if has_bias is None else has_bias,
        bias_init="zeros",
    )


def _pool(cell: Any) -> Any:
    padding = _even(_largest(cell.kernel_size), _largest(cell.stride))
    return nn.MaxPool2d(cell.kernel_size, cell.stride, pad_mode="pad", padding=padding)


def _exact_gelu() -> Any:
    return nn.GELU(approximate=False)


def _epsilon(cell: Any) -> float:
    return float(cell.eps if isinstance(cell, nn.BatchNorm2d) else cell.epsilon)


def _norm(cell: Any, epsilon: float) -> Any:
    if isinstance(cell, nn.BatchNorm2d):
        return nn.BatchNorm2d(cell.num_features, eps=epsilon)
    return nn.LayerNorm(cell.normalized_shape, cell.begin_norm_axis, cell.begin_params_axis, epsilon=epsilon)


def _replace_all(network: Any, differences: list[_Difference]) -> None:
    with seeded(0):  # new cells draw initial values, of which none is kept
        for difference in differences:
            _replace(network, difference)


def _replace(network: Any, difference: _Difference) -> None:
    """Put the twin in the cell's place, with the cell's own parameters and mode."""
    holder, _, key = difference.cell.rpartition(".")
    parent = dict(network.cells_and_names())[holder]
    old, new = parent._cells[key], difference.twin()
    if isinstance(parent, nn.SequentialCell | nn.CellList):
        parent[list(parent._cells).index(key)] = new
    else:
        setattr(parent, key, new)
    for name, parameter in old._params.items():  # after the cell has its place: a container renames what it is given
        setattr(new, name, parameter)
    new.set_train(old.training)
