"""Pooled and flattened features, against NumPy alone."""

from __future__ import annotations

import numpy as np

from featreg.conformance.model import check
from featreg.conformance.subject import Floats, Subject
from featreg.spec import FeatureInfo, Layer

EPSILON = 1e-6
"""What the generalised mean raises smaller values to, as in the code of Radenovic et al. 2018 (arXiv:1711.02512)."""

EXPONENT = 3

SIDES = (2, 3)
"""The rows and columns of the adaptive grid; they differ, so that exchanging them shows."""


def _poolable(subject: Subject) -> dict[Layer, FeatureInfo]:
    return {layer: info for layer, info in subject.features.items() if info.kind != "vector"}


def _maps(subject: Subject) -> list[Layer]:
    return [layer for layer, info in subject.features.items() if info.kind == "map"]


def _positions(values: Floats, info: FeatureInfo) -> Floats:
    """(N, positions, C) in double precision, without the prefix tokens."""
    ordered = np.moveaxis(values, 1, -1) if info.kind == "map" else values[:, info.prefix_tokens :]
    return np.asarray(ordered.reshape(len(values), -1, info.channels), np.float64)


@check("layout.pooled", when=lambda subject: "" if _poolable(subject) else "no map or patch grid")
def pooled(subject: Subject) -> None:
    """``pool="avg"``, ``"max"`` and ``"gem"`` are the mean, the maximum and the generalised mean (of exponent 3, values
    below 1e-6 raised to it) over the positions of the layer without its prefix tokens. ``"cls"``, where it is allowed,
    is the first token. ``flatten`` gives the values row by row.

    Why: pooled features are what most callers store; a backend with a ``pool`` of its own must mean the same by it.
    Caught: averages that count the class token among the patches; a flattened NHWC map (timm #1438), whose order is
    another than every other backend's.
    Mend: leave ``pool`` and ``flatten`` of BackendExtractor as they are unless the framework needs its own.
    """
    images, infos = subject.images(1), _poolable(subject)
    wholes = subject.run(images, [*infos])
    flat = subject.run(images, [*infos], flatten=True)
    for layer, whole in wholes.items():
        code = (
            f"{subject.opening([layer], flatten=True)}(images)[{layer!r}], "
            f"{subject.opening([layer])}(images)[{layer!r}].reshape(len(images), -1)"
        )
        problem = f"{layer!r} flattened is in another order"
        subject.same(flat[layer], whole.reshape(len(whole), -1), problem, layer, code)
    for pool in ("avg", "max", "gem"):
        for layer, array in subject.run(images, [*infos], pool=pool).items():
            wanted = _pooled(_positions(wholes[layer], infos[layer]), pool)
            code = _pooled_code(subject, layer, infos[layer], pool)
            subject.close(array, wanted, f"pool={pool!r} of {layer!r} is another", layer, code)
    classed = [layer for layer, info in infos.items() if info.class_token]
    for layer, token in subject.run(images, classed, pool="cls").items() if classed else ():
        code = f"extractor(images)[{layer!r}], {subject.opening([layer])}(images)[{layer!r}][:, 0]"
        subject.close(token, wholes[layer][:, 0], f"pool='cls' of {layer!r} is not the first token", layer, code)


def _pooled_code(subject: Subject, layer: Layer, info: FeatureInfo, pool: str) -> str:
    axes = (2, 3) if info.kind == "map" else 1
    prefix = f"[:, {info.prefix_tokens}:]" if info.prefix_tokens else ""
    reduced = {
        "avg": f"whole.mean(axis={axes})",
        "max": f"whole.max(axis={axes})",
        "gem": f"(np.maximum(whole, {EPSILON}) ** {EXPONENT}).mean(axis={axes}) ** (1 / {EXPONENT})",
    }
    whole = f"whole = {subject.opening([layer])}(images)[{layer!r}]{prefix}.astype(np.float64)"
    return f"{whole}\n{subject.opening([layer], pool=pool)}(images)[{layer!r}], {reduced[pool]}"


def _pooled(positions: Floats, pool: str) -> Floats:
    if pool == "gem":
        powers = np.maximum(positions, EPSILON) ** EXPONENT
        return np.asarray(powers.mean(axis=1) ** (1 / EXPONENT))
    return np.asarray(positions.max(axis=1) if pool == "max" else positions.mean(axis=1))


@check("layout.grids", when=lambda subject: "" if _maps(subject) else "no layer is a map")
def grids(subject: Subject) -> None:
    """The fixed grids of maps are what their definition says, cell by cell: ``avgpool=3,2,1`` and ``maxpool=3,2,1``
    over windows of three with a stride of two (zeros around a map count in an average, nothing around it in a maximum),
    and ``adaptive_avgpool=2,3`` over bands of ``floor(i * side / n)`` to ``ceil((i + 1) * side / n)``.

    Why: a grid in the way of another framework (windows that hang over, zeros that do not count) has values that look
    alike and are off at the border, in one backend of several.
    Caught: of MindSpore's poolings some pad as ``SAME`` does, where torch's take padding as a number; a ``pool`` of a
    backend's own that mistakes columns for rows.
    Mend: leave ``pool`` of BackendExtractor as it is unless the framework needs its own.
    """
    images, layers = subject.images(1), _maps(subject)
    wholes = subject.run(images, layers)
    for pool in ("avgpool=3,2,1", "maxpool=3,2,1", f"adaptive_avgpool={SIDES[0]},{SIDES[1]}"):
        for layer, array in subject.run(images, layers, pool=pool).items():
            wanted = _banded(wholes[layer]) if pool.startswith("adaptive") else _windowed(wholes[layer], pool[:3])
            subject.close(array, wanted, f"pool={pool!r} of {layer!r} is another", layer)


def _windowed(maps: Floats, kind: str) -> Floats:
    """Windows of three, two apart, of maps with one cell around them."""
    outside = 0.0 if kind == "avg" else -np.inf
    padded = np.pad(np.asarray(maps, np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=outside)
    rows, columns = ((side - 1) // 2 + 1 for side in maps.shape[2:])
    cells = [
        [padded[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3] for column in range(columns)]
        for row in range(rows)
    ]
    reduced = [[np.sum(cell, (2, 3)) / 9 if kind == "avg" else cell.max((2, 3)) for cell in row] for row in cells]
    return np.moveaxis(np.asarray(reduced), (0, 1), (2, 3))


def _banded(maps: Floats) -> Floats:
    """Means over the cells of each of SIDES bands."""
    height, width = maps.shape[2:]
    bands = [
        [(index * side // count, -(-(index + 1) * side // count)) for index in range(count)]
        for side, count in zip((height, width), SIDES, strict=True)
    ]
    reduced = [
        [np.asarray(maps, np.float64)[:, :, top:bottom, left:right].mean((2, 3)) for left, right in bands[1]]
        for top, bottom in bands[0]
    ]
    return np.moveaxis(np.asarray(reduced), (0, 1), (2, 3))
