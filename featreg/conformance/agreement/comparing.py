"""Running every backend that has an architecture on the same weights and images, and comparing what they give."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, TypeAlias

import attrs
import numpy as np
from packaging.requirements import Requirement

from featreg.conformance.agreement.architectures import Architecture, Deviations, Level, Member, find_architectures
from featreg.conformance.agreement.matrix import Cell, Matrix, Row, Verdict, Way
from featreg.conformance.subject import ATOL, RTOL
from featreg.errors import FeatregError, InputError
from featreg.extractor import Extractor, create_extractor, describe
from featreg.registry import Registry, default_registry
from featreg.spec import FeatureInfo, Size

__all__ = ["SIZES", "across"]

SIZES: tuple[Size, ...] = ((224, 224), (96, 160), (97, 161), (127, 95))
"""Square; oblong; one pixel past whole strides, where ceil and floor part; one short of them, where padding does."""

MARGIN = 2.0
"""How many times the recorded size a declared deviation may have: it was measured at one seed, on one machine."""

LOGITS = "logits"
"""The head that shows the whole network, compared where it is declared."""

Floats: TypeAlias = np.ndarray[Any, Any]


@attrs.frozen
class _Outputs:
    """What one backend gives: by size and level its descriptions and arrays, or why it does not take the size."""

    levels: tuple[str, ...]
    deviations: tuple[str, ...]
    deviates: Deviations
    infos: dict[Size, dict[str, FeatureInfo]] = attrs.field(factory=dict)
    arrays: dict[Size, dict[str, Any]] = attrs.field(factory=dict)
    refused: dict[Size, str] = attrs.field(factory=dict)

    def recorded(self, layer: str) -> Mapping[Size, float | None] | None:
        """How far a level may be off by size; None where no deviation is declared."""
        return self.deviates.get(layer, {}) if self.deviations else None


def across(
    architecture: str | Architecture | None = None,
    *,
    seed: int = 0,
    sizes: Sequence[Size] = SIZES,
    registry: Registry | None = None,
    progress: Callable[[Row], None] | None = None,
) -> Matrix:
    """Hold the backends of every architecture, or of one, against each other, with ``weights="synthetic:SEED"``.

    One is given by the name of its table, or as a table of your own. The first installed backend of a table is what the
    others are held against. ``progress`` is told each row. Raises RequestError for an unknown architecture; whatever a
    backend raises is in its row.
    """
    registry = registry or default_registry()
    rows: list[Row] = []
    tables = (architecture,) if isinstance(architecture, Architecture) else find_architectures(architecture)
    for table in tables:
        for row in _rows(table, seed, tuple(sizes), registry):
            rows.append(row)
            if progress is not None:
                progress(row)
    versions = {name: _versions(name, registry) for name in sorted({row.way.backend for row in rows})}
    return Matrix(seed, tuple(sizes), versions, tuple(rows))


def _versions(backend: str, registry: Registry) -> str:
    """The distribution of a backend and what it requires, as they are installed."""
    spec = registry.declared(backend)
    found = [registry.plugin(backend).owner]
    for text in () if spec is None else spec.requirements:
        with contextlib.suppress(metadata.PackageNotFoundError):  # which the backend's rows tell
            found.append(f"{Requirement(text).name} {metadata.version(Requirement(text).name)}")
    return ", ".join(found)


def _rows(table: Architecture, seed: int, sizes: tuple[Size, ...], registry: Registry) -> Iterator[Row]:
    installed = [member for member in table.members if member.backend in registry.names()]
    reference: _Outputs | None = None
    for way in (way for member in installed for way in _ways(table, member, registry)):
        try:
            outputs = _run(way, table, seed, sizes, registry)
        except Exception as error:  # noqa: BLE001  (whatever a backend raises is its row's)
            yield Row(way, problems=(f"{type(error).__name__}: {error}",))
            continue
        yield _row(way, table, outputs, reference, alone=len(installed) == 1)
        reference = reference or outputs


def _ways(table: Architecture, member: Member, registry: Registry) -> Iterator[Way]:
    """A backend as it is; where it deviates, and has options that mend this, also with these."""
    plain = Way(table.name, member.backend, member.model, deviates=member.deviates)
    yield plain
    if member.alike and _deviates(plain, registry):
        yield attrs.evolve(plain, options=member.alike, deviates={})


def _deviates(way: Way, registry: Registry) -> bool:
    try:
        return bool(describe(f"{way.backend}:{way.model}", registry=registry).deviations)
    except FeatregError:  # which its row tells
        return False


def _run(way: Way, table: Architecture, seed: int, sizes: tuple[Size, ...], registry: Registry) -> _Outputs:
    model = f"{way.backend}:{way.model}"
    info = describe(model, registry=registry)
    levels = tuple(feature.level for feature in info.features if feature.level is not None)
    layers = [level.name for level in table.levels if level.name in levels]
    layers += [LOGITS] if LOGITS in info.keys else []
    weights, options = f"synthetic:{seed}", dict(way.options)
    with create_extractor(model, layers, weights=weights, options=options, registry=registry) as extractor:
        outputs = _Outputs(levels, extractor.info.deviations, way.deviates)
        for size in sizes:
            try:
                extractor.info.input_rule.check(*size)
            except InputError as error:
                outputs.refused[size] = error.problem
                continue
            _add(outputs, extractor, size, seed)
    return outputs


def _add(outputs: _Outputs, extractor: Extractor, size: Size, seed: int) -> None:
    infos = extractor.describe(size)
    images = np.random.default_rng(seed).standard_normal((1, 3, *size), dtype=np.float32)
    features = extractor(images)
    outputs.infos[size] = {str(layer): info for layer, info in infos.items()}
    outputs.arrays[size] = {str(layer): features[layer] for layer in features}


def _row(way: Way, table: Architecture, outputs: _Outputs, reference: _Outputs | None, *, alone: bool) -> Row:
    problems = []
    wanted = [level.name for level in table.levels]
    if list(outputs.levels) != wanted:
        problems.append(f"has the levels {', '.join(outputs.levels)}, not {', '.join(wanted)}")
    if not outputs.arrays:
        problems.append(f"takes none of the sizes: {'; '.join(dict.fromkeys(outputs.refused.values()))}")
    given = {level.name: level for level in table.levels}
    layers = [layer for layer in (*wanted, LOGITS) if any(layer in arrays for arrays in outputs.arrays.values())]
    cells = [_cell(layer, given.get(layer), table.input_size, outputs, reference, alone=alone) for layer in layers]
    return Row(way, tuple(cells), outputs.deviations, outputs.refused, tuple(problems))


def _cell(
    layer: str, level: Level | None, at: Size, outputs: _Outputs, reference: _Outputs | None, *, alone: bool
) -> Cell:
    shapes = {size: tuple(arrays[layer].shape) for size, arrays in outputs.arrays.items()}
    problems = []
    for size, arrays in outputs.arrays.items():
        problems += _layout_problems(outputs.infos[size][layer], arrays[layer], size)
    first = outputs.infos[next(iter(outputs.infos))][layer]
    if level is not None:
        own = ("map", level.channels, level.reduction)
        problems += _unlike("kind, channels and reduction", (first.kind, first.channels, first.reduction), own)
    if reference is None:
        if level is not None and at in shapes:
            problems += _unlike(f"shape at {_text(at)}", shapes[at], (1, *level.shape))
        verdict: Verdict = "differs" if problems else "alone" if alone else "reference"
        return Cell(layer, verdict, shapes, problems=tuple(problems))
    return _compared(layer, outputs, reference, shapes, problems)


def _compared(
    layer: str,
    outputs: _Outputs,
    reference: _Outputs,
    shapes: Mapping[Size, tuple[int, ...]],
    problems: list[str],
) -> Cell:
    """A level against the reference's, at the sizes that both take."""
    differences: dict[Size, float | None] = {}
    deviates = False
    shared = [size for size in shapes if layer in reference.arrays.get(size, {})]
    for size in shared:
        got, wanted = outputs.arrays[size][layer], reference.arrays[size][layer]
        problems += _unlike("description", _described(outputs, size, layer), _described(reference, size, layer))
        if not (np.isfinite(got).all() and np.isfinite(wanted).all()):
            continue  # which is a problem of its own
        apart = differences[size] = _difference(got, wanted)
        if apart is not None and _is_close(got, wanted):
            continue
        shape = f"shape {got.shape}, not {wanted.shape},"
        what = shape if apart is None else f"values apart by {apart:.2g} of the largest"
        problems += [f"{what} at {_text(size)}{fault}" for fault in _beyond(apart, outputs.recorded(layer), size)]
        deviates = True
    if not shared:
        problems.append("no size that the reference takes too")
    verdict: Verdict = "differs" if problems else "deviates" if deviates else "equal"
    return Cell(layer, verdict, shapes, differences, tuple(dict.fromkeys(problems)))


def _beyond(apart: float | None, recorded: Mapping[Size, float | None] | None, size: Size) -> list[str]:
    """What is wrong with a difference; nothing where it is declared and at most ``MARGIN`` times what is recorded.

    At a size for which nothing is recorded, the largest of the other sizes counts.
    """
    if recorded is None:
        return [""]
    if not recorded:
        return [": a deviation is declared, and its size is recorded nowhere"]
    known = [recorded[size]] if size in recorded else list(recorded.values())
    if apart is None:
        return [] if None in known else [": no other shape is recorded"]
    most = max((value for value in known if value is not None), default=0.0)
    return [] if apart <= MARGIN * most else [f": {most:g} is recorded"]


def _described(outputs: _Outputs, size: Size, layer: str) -> tuple[object, ...]:
    info = outputs.infos[size][layer]
    return info.kind, info.channels, info.reduction, info.level, info.head


def _layout_problems(info: FeatureInfo, array: Any, size: Size) -> list[str]:
    """What is wrong with an array in itself: it is to be C-contiguous float32, finite, and as predicted."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or not array.flags.c_contiguous:
        return [f"no C-contiguous float32 array at {_text(size)}"]
    problems = _unlike(f"shape at {_text(size)}, against the prediction,", array.shape, info.shape(1, *size))
    return problems if np.isfinite(array).all() else [*problems, f"values that are not finite at {_text(size)}"]


def _unlike(what: str, got: object, wanted: object) -> list[str]:
    return [] if got == wanted else [f"{what} {got}, not {wanted}"]


def _difference(got: Floats, wanted: Floats) -> float | None:
    """The largest absolute difference as a part of the largest value; None where the shapes differ."""
    if got.shape != wanted.shape:
        return None
    largest = float(np.abs(wanted).max(initial=0))
    apart = float(np.abs(got.astype(np.float64) - wanted).max(initial=0))
    return apart / largest if largest else apart


def _is_close(got: Floats, wanted: Floats) -> bool:
    """Whether arrays of one shape are equal but for rounding; ``ATOL`` is a part of the largest value."""
    largest = float(np.abs(wanted).max(initial=0))
    return bool(np.allclose(got, wanted, rtol=RTOL, atol=ATOL * largest))


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
