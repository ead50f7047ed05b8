"""Files of weights: what is in them is what is run."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import attrs
import numpy as np

from featreg.arrays import Array, to_numpy
from featreg.conformance.checks.lifecycle import without_network
from featreg.conformance.checks.values import ROUNDING
from featreg.conformance.model import check
from featreg.conformance.subject import Floats, Subject
from featreg.errors import WeightsError
from featreg.featureset import FeatureSet

State: TypeAlias = dict[str, Array]
"""The framework's own arrays by name, which share the network's memory."""

AMOUNT = 0.2
"""By which share a weight is changed at most: enough to show, and signs and scales stay what they are."""


def _states(module: Any) -> list[State]:
    """The weights by name of a module of torch or MindSpore, or of anything with a ``state_dict`` of arrays.

    That of the library's network first, where the module holds it as ``network``: files have its names.
    """
    found = []
    for holder in (getattr(module, "network", None), module):
        table = getattr(holder, "parameters_dict", None) or getattr(holder, "state_dict", None)
        if callable(table):
            found.append({name: value for name, value in table().items() if hasattr(value, "shape")})
    return [state for state in found if state]


def _assign(target: Array, values: Floats) -> None:
    """Write values into a weight of the network."""
    if isinstance(target, np.ndarray):
        target[...] = values
    elif hasattr(target, "set_data"):  # a Parameter of MindSpore
        target.set_data(sys.modules["mindspore"].Tensor(values))
    else:
        target.detach().copy_(sys.modules["torch"].from_numpy(values))


def _is_float(value: Array) -> bool:
    return bool(to_numpy(value).dtype.kind == "f")


def _perturb(state: State) -> None:
    """Change every weight that is a floating-point number; zeros, such as biases, too."""
    generator = np.random.default_rng(0)
    for value in state.values():
        if _is_float(value):
            old = to_numpy(value)
            factor, shift = generator.uniform(1 - AMOUNT, 1 + AMOUNT, old.shape), generator.standard_normal(old.shape)
            _assign(value, np.asarray(np.where(old == 0, shift / 100, old * factor), old.dtype))


def _write_safetensors(state: State, path: Path) -> None:
    from safetensors.numpy import save_file  # where it is installed

    save_file({name: np.ascontiguousarray(to_numpy(value)) for name, value in state.items()}, path)


def _write_torch(state: State, path: Path) -> None:
    sys.modules["torch"].save(dict(state), path)


def _write_mindspore(state: State, path: Path) -> None:
    entries = [{"name": name, "data": value} for name, value in state.items()]
    sys.modules["mindspore"].save_checkpoint(entries, str(path))


def _write_numpy(state: State, path: Path) -> None:
    np.savez(path, **{name: to_numpy(value) for name, value in state.items()})


WRITERS: Mapping[str, tuple[str, Callable[[State, Path], None]]] = {
    ".safetensors": ("safetensors", _write_safetensors),
    ".pth": ("torch", _write_torch),
    ".ckpt": ("mindspore", _write_mindspore),
    ".npz": ("numpy", _write_numpy),
}
"""By suffix the module that a format needs, and what writes it. A backend need not take them all."""
FRAMEWORKS = {"torch", "mindspore"}


def _writable(state: State) -> list[str]:
    """The formats that can be tried: that of a framework where the weights are its own arrays."""
    origins = {type(value).__module__.partition(".")[0] for value in state.values()}
    return [
        suffix
        for suffix, (needed, _) in WRITERS.items()
        if (origins == {needed} if needed in FRAMEWORKS else importlib.util.find_spec(needed) is not None)
    ]


@attrs.frozen
class _Trial:
    """A network whose weights were changed, and how a file of them is written so that the backend takes it.

    ``plain`` and ``changed`` are its features before and after, ``state`` a copy of the changed weights, ``place`` says
    which of the module's states they are.
    """

    plain: FeatureSet
    changed: FeatureSet
    state: State
    place: int
    path: Path

    def write(self, state: State) -> str:
        WRITERS[self.path.suffix][1](state, self.path)
        return str(self.path)


def _no_state(subject: Subject) -> str:
    with subject.open(subject.layers[:1]) as extractor:
        return "" if _states(extractor.module) else "extractor.module has no weights by name"


@contextlib.contextmanager
def _saved(subject: Subject, images: Floats) -> Iterator[_Trial]:
    """A file of changed weights that the backend takes; a violation where it takes none."""
    refusals = {}
    with tempfile.TemporaryDirectory() as folder:
        for trial in _trials(subject, images, Path(folder)):
            try:
                _open(subject, trial.write(trial.state))
            except WeightsError as error:
                refusals[trial.path.suffix] = str(error)
            else:
                yield trial
                return
    problem = "no file of the network's own weights is taken"
    reasons = "\n".join(f"{suffix}: {reason}" for suffix, reason in refusals.items())
    subject.expect(False, problem, f"one of {', '.join(refusals)}", reasons)


def _trials(subject: Subject, images: Floats, folder: Path) -> Iterator[_Trial]:
    """Every state of the module in every format that can be written here."""
    place = 0
    while True:
        with subject.open() as extractor:
            states = _states(extractor.module)
            if place == len(states):
                return
            plain = _kept(extractor(images))
            _perturb(states[place])
            changed = _kept(extractor(images))
            copy = {**_of_texts(subject, place), **{name: _copied(value) for name, value in states[place].items()}}
        for suffix in _writable(copy):
            yield _Trial(plain, changed, copy, place, folder / f"weights{suffix}")
        place += 1


def _of_texts(subject: Subject, place: int) -> State:
    """The weights of a text tower, which an extractor of images need not hold, and its file may have to."""
    if "text" not in subject.info.capabilities:
        return {}
    with subject.open(subject.case.text_layers) as extractor:
        return {name: _copied(value) for name, value in _states(extractor.module)[place].items()}


def _kept(features: FeatureSet) -> FeatureSet:
    return features.map(lambda array: np.array(to_numpy(array)))


def _copied(value: Array) -> Array:
    return value.copy() if hasattr(value, "copy") else value.detach().clone()


def _open(subject: Subject, weights: str) -> None:
    with subject.open(weights=weights):
        pass


def _needed(subject: Subject, images: Floats, place: int) -> str:
    """The first weight of two dimensions or more that changes every layer; the first of all where none does."""
    with subject.open() as extractor:
        state = _states(extractor.module)[place]
        before = _kept(extractor(images))
        large = [name for name, value in state.items() if len(value.shape) > 1]
        for name in large:
            kept = np.array(to_numpy(state[name]))
            _assign(state[name], kept * kept.dtype.type(2))
            after = extractor(images)
            _assign(state[name], kept)
            if not any(np.array_equal(after[layer], before[layer]) for layer in before):
                return name
    return (large or [*state])[0]


@check("weights.loads", needs=["weights"], when=_no_state)
def loads(subject: Subject) -> None:
    """A file of the network's own weights, each changed by up to a fifth, gives in every layer what a network gives
    whose weights are changed in place: other values than before, and on every extractor that opens it the same. The
    file holds the weights of ``extractor.module`` (of its ``network``, where it has one) as safetensors, or as the
    framework saves them.

    Why: features of weights that were not loaded look like features.
    Caught: ``load_state_dict(strict=False)`` on names that fit nowhere, which leaves every weight random; a file that
    is read, checked and then forgotten, since the network is built anew afterwards.
    Mend: load after the network is built, strictly, and under the names of the library's own ``state_dict``.
    """
    images = subject.images(1)
    with _saved(subject, images) as trial:
        path = trial.write(trial.state)
        first, second = (subject.run(images, weights=path) for _ in range(2))
    live = any(not np.array_equal(trial.plain[layer], trial.changed[layer]) for layer in subject.layers)
    for layer in subject.layers:
        problem, same = f"a file of other weights changes nothing in {layer!r}", np.array_equal
        subject.expect(not same(first[layer], trial.plain[layer]), problem, "other values", "the same", layer)
        subject.same(second[layer], first[layer], f"one file gives two different {layer!r}", layer)
        if live:  # extractor.module is what runs
            problem = f"{layer!r} is not that of the weights in the file"
            subject.close(first[layer], trial.changed[layer], problem, layer, **ROUNDING)


@check("weights.missing", needs=["weights"], when=_no_state)
def missing(subject: Subject) -> None:
    """A file that lacks a weight which every layer of the case needs raises WeightsError, and the message names it.

    Why: a network of which a part is random gives features that are wrong by a little or by everything.
    Caught: ``load_state_dict(strict=False)``, whose answer, the list of what was missing, nobody reads.
    Mend: compare the names (``featreg.plugin.compare``), and raise what differs (``Mismatch.settle``).
    """
    images = subject.images(1)
    with _saved(subject, images) as trial:
        needed = _needed(subject, images, trial.place)
        path = trial.write({name: value for name, value in trial.state.items() if name != needed})
        error = subject.raises(WeightsError, partial(_open, subject, path), f"a file without {needed!r}", code="")
    problem = "the message does not name the weight that is missing"
    subject.expect(needed in str(error), problem, needed, error)


@check("weights.identity", needs=["weights"], when=_no_state)
def identity(subject: Subject) -> None:
    """``weights_identity()`` is the same for two extractors of one file, and another one as soon as the file of that
    name holds other weights; that of ``weights=None`` is another, too.

    Why: a store of features is resumed where the identity is the same; a path that now holds another checkpoint would
    fill it with features of two networks.
    Caught: identities that are the path, or that are None where the request alone does not tell what was loaded.
    Mend: ``featreg.plugin.watch_path(request.weights)`` when the file is read.
    """
    with _saved(subject, subject.images(1)) as trial:
        path = trial.write(trial.state)
        one, two = (_identity(subject, path) for _ in range(2))
        trial.write({name: value / 2 if _is_float(value) else value for name, value in trial.state.items()})
        other, none = _identity(subject, path), _identity(subject, None)
    subject.expect(one == two, "one file has two identities", one, two)
    subject.expect(one != other, "a file of other weights has the same identity", "another", other)
    subject.expect(one != none, "random weights have the identity of a file", "another", none)


def _identity(subject: Subject, weights: str | None) -> str:
    with subject.open(subject.layers[:1], weights=weights) as extractor:
        return extractor.weights_identity()


@check("weights.default", needs=["weights"])
def default(subject: Subject) -> None:
    """Without a network ``weights="default"`` gives the library's own weights from its cache, which are not the random
    ones of ``weights=None``, or raises WeightsError.

    Why: pretrained weights are what nearly everyone asks for, and random ones give features of the same shape.
    Caught: a download that failed, was logged, and left the network as it had been built.
    Mend: raise WeightsError with what the library said, and never go on without the weights that were asked for.
    """
    images = subject.images(1)
    plain = subject.run(images)
    try:
        with without_network(), mock.patch.object(time, "sleep"):  # libraries wait before they try again
            found = subject.run(images, weights="default")
    except WeightsError:
        subject.expect(True, "weights that cannot be had are refused")
        return
    same = all(np.array_equal(found[layer], plain[layer]) for layer in subject.layers)
    subject.expect(not same, "weights='default' gives random weights", "other features than weights=None", "the same")
