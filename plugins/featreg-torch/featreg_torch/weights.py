"""Checkpoints from files into networks: unwrapped and reported, every key accounted for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import nn

from featreg.plugin import (
    CanonicalNames,
    Mismatch,
    WeightsReport,
    compare,
    draw_weight,
    errors,
    is_counter,
    is_drawn_buffer,
    map_in_order,
    unwrap,
)
from featreg_torch.reading import read_file
from featreg_torch.vissl import find_vissl

__all__ = ["Checkpoint", "draw_into", "load_into", "pair_in_order", "read_checkpoint"]

_REMEDY = (
    "check the architecture and the number of classes of the checkpoint: a classifier of other classes is left out "
    "where no layer asked for needs it (all but 'logits')"
)


@attrs.frozen
class Checkpoint:
    """The weights of a file by name, how they were found, and the projection head beside them, if any."""

    state: Mapping[str, torch.Tensor]
    report: WeightsReport
    head: Mapping[str, torch.Tensor] = attrs.field(factory=dict)


def read_checkpoint(path: str, *, average: bool = True) -> Checkpoint:
    """The weights in a file, on the CPU, taken out of whatever a training tool wrapped them in.

    Of a file with both, ``average`` takes the moving average. Raises WeightsError for a file that is missing, cannot be
    read, or holds no weights.
    """
    content = read_file(path)
    vissl = find_vissl(content)
    if vissl is not None:
        trunk, head, opened = vissl
        state, report = unwrap(trunk, path, _is_tensor, average=average)
        return Checkpoint(state, attrs.evolve(report, unwrapped=(*opened, *report.unwrapped)), head)
    return Checkpoint(*unwrap(content, path, _is_tensor, average=average))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def load_into(
    module: nn.Module, checkpoint: Checkpoint, spare: Callable[[], frozenset[str]] = frozenset
) -> WeightsReport:
    """Copy a checkpoint into a module; returns the report, with what was left as it was.

    Raises a WeightsError that lists every missing, unexpected and unfitting key; the module is then unchanged.
    ``spare`` gives the weights that are not needed (it is asked only where something does not fit): these may be
    missing, of another shape, or of another make, as the classifier of another number of classes.
    """
    own = {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    found = _mismatch(own, checkpoint.state)
    kept, ignored = _excused(found, spare()) if found else (set[str](), set[str]())
    report = found.settle(checkpoint.report, own, checkpoint.state, kept=kept, ignored=ignored, remedy=_REMEDY)
    taken = {name: value for name, value in checkpoint.state.items() if name not in kept | ignored}
    state = module.state_dict()  # with the versions of the module's parts, by which some of them read their tensors
    state.update(taken)
    module.load_state_dict(state, strict=True)
    return report


def draw_into(module: nn.Module, seed: int, names: CanonicalNames) -> None:
    """Fill a module's parameters and the statistics of its batch normalisation with numbers drawn by canonical name."""
    own: dict[str, torch.Tensor] = dict(module.named_parameters())
    own |= {name: value for name, value in module.named_buffers() if is_drawn_buffer(name)}
    own = {name: value for name, value in own.items() if value.is_floating_point()}
    canonical = names.apply(own)
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(torch.from_numpy(draw_weight(seed, canonical[name], value.shape)))


def pair_in_order(
    module: nn.Module, checkpoint: Checkpoint, spare: Callable[[], frozenset[str]] = frozenset
) -> Checkpoint:
    """A checkpoint of the same architecture from another library, under the module's names; see :func:`map_in_order`.

    Raises WeightsError where anything speaks against pairing the two in the order of their weights. ``spare`` is as in
    :func:`load_into`.
    """
    own = module.state_dict()
    try:
        names = map_in_order(checkpoint.state, own)
    except errors.WeightsError:
        names = map_in_order(checkpoint.state, own, spare=spare())
    state = {names[name]: value for name, value in checkpoint.state.items()}
    return attrs.evolve(checkpoint, state=state, report=attrs.evolve(checkpoint.report, mapped="in order"))


def _mismatch(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> Mismatch:
    found = compare(own, given)
    mistyped = {
        name: f"{given[name].dtype} for {own[name].dtype}"
        for name in own
        if name in given and given[name].is_floating_point() != own[name].is_floating_point()
    }
    return attrs.evolve(found, mistyped=mistyped)


def _excused(found: Mismatch, spare: frozenset[str]) -> tuple[set[str], set[str]]:
    """The weights of the module that may differ, and those of the file that belong to the same parts of it."""
    kept = {name for name in (*found.missing, *found.misshaped) if name in spare}
    parts = {name.rpartition(".")[0] for name in spare if not is_counter(name)} - {""}
    ignored = {name for name in found.unexpected if any(name.startswith(f"{part}.") for part in parts)}
    return kept, ignored
