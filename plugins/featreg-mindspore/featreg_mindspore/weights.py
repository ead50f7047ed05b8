"""Weights from a checkpoint file or from mindcv's server, matched name by name and shape by shape.

A file may be mindcv's own, saved before or after ``features_only`` has wrapped the network, or come from the same
network in a torch library (see :mod:`featreg_mindspore.families`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from featreg.plugin import (
    CanonicalNames,
    Mismatch,
    WeightsReport,
    compare,
    draw_weight,
    errors,
    identify_state,
    is_counter,
    is_drawn_buffer,
    map_in_order,
)
from featreg_mindspore.families import Family, Source
from featreg_mindspore.libraries import mindcv, mindspore
from featreg_mindspore.likeness import add_biases
from featreg_mindspore.reading import Checkpoint, as_array, read_checkpoint
from featreg_mindspore.trace import message

__all__ = [
    "draw_into",
    "find_source",
    "identify_cell",
    "load_default",
    "load_into",
    "misfit",
    "parameters",
    "prepare",
    "torch_names",
]

_KINDS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
"""torch's names for what a normalising layer keeps, and MindSpore's."""

_WRAPPER = "net."
"""The cell in which mindcv's ``FeatureExtractWrapper`` keeps the network."""


def find_source(checkpoint: Checkpoint, network: Any, family: Family | None) -> Source | None:
    """The torch library whose names a checkpoint has; None for mindcv's own.

    That is the one under whose names the fewest weights do not fit; of several, one that names them rather than one
    that pairs them in order, and whose rules find the most to do. Two libraries that call everything alike, and compute
    alike, are one source.
    """
    own = parameters(network)
    native = compare(own, _native(checkpoint.state, own))
    if family is None or not native:
        return None
    names = list(checkpoint.state)
    found = {source.library: len(misfit(checkpoint, own, source, family)) for source in family.sources}

    def rank(source: Source) -> tuple[int, bool, int]:
        return found[source.library], source.names is None, 0 if source.names is None else source.names.idle(names)

    best = min(family.sources, key=rank)
    return best if found[best.library] < len(native) else None


def prepare(network: Any, checkpoint: Checkpoint, source: Source) -> Checkpoint:
    """Give a network the biases that only the source's has; the report of the checkpoint then says so."""
    added = add_biases(network, source) if any(_biased(name, source) for name in checkpoint.state) else 0
    notes = [f"{added} layers were given the biases that mindcv leaves out"] if added else []
    mapped = f"{source.library} to mindcv"
    return attrs.evolve(checkpoint, report=attrs.evolve(checkpoint.report, mapped=mapped, notes=notes))


def load_into(
    own: Mapping[str, Any],
    checkpoint: Checkpoint,
    source: Source | None = None,
    family: Family | None = None,
    spare: Collection[str] = (),
) -> WeightsReport:
    """Copy a checkpoint, under the names of ``source``, into a network's :func:`parameters`; returns the report.

    ``spare`` are those that no layer asked for needs. Among them the classifier may be missing or of other classes, and
    from a checkpoint of mindcv's anything may be missing, since its wrapper cuts networks off. Raises a WeightsError
    that lists every other missing, unexpected and unfitting name; the network then keeps its values.
    """
    dropped: list[str] = []
    head = _head(own)
    closing = {name for name in own if name.startswith(head)} & set(spare)
    if source is None or family is None:
        given = _native(checkpoint.state, own)
    else:
        own = {name: value for name, value in own.items() if not _matches(name, family.keep)}
        given, dropped = _translated(checkpoint.state, own, source, closing)
    found = compare(own, given)
    lacking = {name for name in found.missing if name in (spare if source is None else closing)}
    kept = lacking | {name for name in found.misshaped if name in closing}
    ignored = {name for name in found.unexpected if closing and name.startswith(head)}
    report = found.settle(checkpoint.report, own, given, kept=kept, ignored=ignored, remedy=_remedy(family))
    for name in own.keys() - kept:
        own[name].set_data(mindspore.Tensor(given[name], dtype=own[name].dtype))
    return attrs.evolve(report, ignored=(*report.ignored, *dropped))


def draw_into(own: Mapping[str, Any], seed: int, names: CanonicalNames) -> None:
    """Fill a network's :func:`parameters` with numbers drawn by canonical name.

    What a network keeps as a parameter and does not learn is left as it is, but for the statistics of batch
    normalisation.
    """
    torchs = torch_names(own)
    canonical = names.apply(torchs.values())
    for name, value in own.items():
        if value.requires_grad or is_drawn_buffer(name):
            value.set_data(mindspore.Tensor(draw_weight(seed, canonical[torchs[name]], value.shape)))


def torch_names(own: Iterable[str]) -> dict[str, str]:
    """The names of a network's parameters with torch's kinds in place of MindSpore's."""
    kinds = {mine: theirs for theirs, mine in _KINDS.items()}
    split = {name: name.rpartition(".") for name in own}
    return {name: f"{layer}{dot}{kinds.get(kind, kind)}" for name, (layer, dot, kind) in split.items()}


def identify_cell(cell: Any) -> str:
    """A hash of a Cell's layers and parameters as they are now."""
    values = ((name, str(value.dtype), as_array(value)) for name, value in parameters(cell).items())
    return identify_state(str(cell), values)


def parameters(network: Any) -> dict[str, Any]:
    """The parameters by their place in the network; mindcv's own names leave places out or double them."""
    return dict(network.parameters_and_names())


def _native(state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint of mindcv's under the names of ``own``: by place, by MindSpore's name, or as wrapping renames them.

    Wrapping flattens the outermost containers: ``features.0.weight`` becomes ``features_0.weight``.
    """
    known = {alias: name for name, parameter in own.items() for alias in (_flat(parameter.name), _flat(name))}
    return {known.get(_flat(name.removeprefix(_WRAPPER)), name): value for name, value in state.items()}


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _biased(name: str, source: Source) -> bool:
    layer, _, kind = name.rpartition(".")
    return kind == "bias" and _matches(layer, source.biases)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def misfit(checkpoint: Checkpoint, own: Mapping[str, Any], source: Source, family: Family) -> Mismatch:
    """What of a checkpoint does not fit a network's :func:`parameters` under the names of one source."""
    own = {name: value for name, value in own.items() if not _matches(name, family.keep)}
    state = {name: value for name, value in checkpoint.state.items() if not _biased(name, source)}
    head = _head(own)
    return compare(own, _translated(state, own, source, {name for name in own if name.startswith(head)})[0])


def _head(own: Mapping[str, Any]) -> str:
    """How the names of the last layer begin."""
    return f"{list(own)[-1].rpartition('.')[0]}."


def _translated(
    state: Mapping[str, Any], own: Mapping[str, Any], source: Source, spare: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """A torch checkpoint under mindcv's names, in its shapes where these hold the same numbers in the same order.

    Beside it are the names that the source's rules drop.
    """
    state = {name: value for name, value in state.items() if not is_counter(name)}
    names = _in_order(state, own, spare) if source.names is None else source.names.apply(list(state))
    given: dict[str, Any] = {}
    for name, value in state.items():
        news = [_as_kind(new, own) for new in names[name]]
        parts = np.array_split(value, len(news)) if len(news) > 1 else [value] * len(news)
        given |= {new: _reshaped(part, own.get(new)) for new, part in zip(news, parts, strict=True)}
    return given, [name for name, news in names.items() if not news]


def _in_order(state: Mapping[str, Any], own: Mapping[str, Any], spare: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Pairs of names where the layers lie in the same order; as they are where they do not, for the error to list."""
    kinds = {mine: theirs for theirs, mine in _KINDS.items()}
    try:
        pairs = map_in_order(
            {name: _Squeezed(value) for name, value in state.items()},
            {name: _Squeezed(value) for name, value in own.items()},
            kinds,
            spare,
        )
    except errors.WeightsError:
        return {name: (name,) for name in state}
    return {name: (new,) for name, new in pairs.items()}


class _Squeezed:
    """A weight's shape without the ones at its end: a 1x1 convolution is a dense layer."""

    def __init__(self, value: Any) -> None:
        shape = tuple(value.shape)
        while len(shape) > 1 and shape[-1] == 1:
            shape = shape[:-1]
        self.shape = shape


def _as_kind(name: str, own: Mapping[str, Any]) -> str:
    """The name with MindSpore's kind in place of torch's, where the layer has that."""
    layer, _, kind = name.rpartition(".")
    other = f"{layer}.{_KINDS.get(kind, kind)}"
    return other if name not in own and other in own else name


def _reshaped(value: np.ndarray[Any, Any], wanted: Any) -> np.ndarray[Any, Any]:
    """A weight in the shape that is wanted, where only the division of its rows differs."""
    fits = wanted is not None and value.size == wanted.size and value.shape[:1] == tuple(wanted.shape[:1])
    return value.reshape(tuple(wanted.shape)) if fits else value


def _remedy(family: Family | None) -> str:
    own = "take the checkpoint of this very model"
    if family is None:
        return f"{own}, as mindspore.save_checkpoint writes it"
    return f"{own}, from mindcv or from {' or '.join(source.library for source in family.sources)}"


def load_default(model: str, network: Any) -> None:
    """Load mindcv's own weights, from its server or its cache; WeightsError where it has none or they cannot be had."""
    config = mindcv.models.registry.get_pretrained_cfg(model)
    url = config.get("url")
    if not url:
        raise errors.WeightsError(
            f"mindcv publishes no weights for {model!r}",
            "the path of a file of weights",
            remedy="weights=None gives random weights from a fixed seed",
        )
    path = Path(mindcv.models.helpers.get_checkpoint_download_root()) / Path(url).name
    if not path.is_file():
        _download(url, path)
    checkpoint = read_checkpoint(str(path))
    if config["num_classes"] == 1001:  # a class for the background comes last, as mindcv has it
        cut = {name: checkpoint.state[name][:1000] for name in _classifier(config) if name in checkpoint.state}
        checkpoint = attrs.evolve(checkpoint, state=checkpoint.state | cut)
    load_into(parameters(network), checkpoint)


def _classifier(config: Mapping[str, Any]) -> tuple[str, str]:
    return f"{config['classifier']}.weight", f"{config['classifier']}.bias"


def _download(url: str, path: Path) -> None:
    """Fetch a file into mindcv's own cache, whole or not at all.

    ``DownLoad.download_url`` is avoided: where a download fails it leaves an empty file that it later takes for the
    weights, tries again in the clear, and at last switches certificate checks off for the whole process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / path.name
        try:
            mindcv.utils.download.DownLoad().download_file(url, str(part))
        except OSError as error:
            raise errors.WeightsError(
                f"the weights at {url} cannot be downloaded",
                f"a connection to the server, or the file in the cache {path.parent}",
                message(error),
                remedy=f"download the file elsewhere and pass weights='/path/to/{path.name}'",
            ) from error
        part.replace(path)
