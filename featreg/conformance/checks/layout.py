"""Where things lie: channels first, rows before columns, prefix tokens in front."""

from __future__ import annotations

import numpy as np

from featreg.arrays import to_numpy
from featreg.conformance.model import check
from featreg.conformance.subject import Floats, Subject
from featreg.levels import level_of
from featreg.spec import FeatureInfo, Layer, Size

FINE_GRID = 8
"""Cells on a side from which on no cell is taken to see the whole image."""

CLEARLY = 1.5
"""By how much a change must outdo the others to count in a layer whose every cell may see the whole image."""


def _grids(subject: Subject) -> dict[Layer, Size]:
    """The layers that lie over the image in rows and columns."""
    found = {}
    for layer, info in subject.features.items():
        if info.kind != "vector" and info.length is None:
            grid = info.grid(*subject.case.size)
            if min(grid) >= 2:
                found[layer] = grid
    return found


def _no_grid(subject: Subject) -> str:
    return "" if _grids(subject) else "no layer has two cells a side"


def _cells(array: Floats, info: FeatureInfo, grid: Size) -> Floats:
    """(rows, columns, C) of one image."""
    if info.kind == "map":
        cells: Floats = array[0].transpose(1, 2, 0)
    else:
        cells = array[0, info.prefix_tokens :].reshape(*grid, -1)
    return cells


@check("layout.levels", when=lambda subject: "" if _levelled(subject) else "the model declares no level")
def levels(subject: Subject) -> None:
    """The level Ck lies at stride 2**k (14 pixels of a patch are C4, the nearest), or, in a network that is dilated
    there, at the stride of the level before it; and the levels that have an index have them in the same order.

    Why: ``C5`` must be the same place in every network, whatever the library calls it or counts it as.
    Caught: open_clip's RN50, whose index 0 is stride 4, where index 0 of timm's ``resnet50_clip`` is stride 2; mindcv's
    efficientnet_b0, whose indices 0 to 4 are the reductions 2, 2, 4, 8, 16.
    Mend: take the last whole block or stage at each stride (``featreg.plugin.find_levels``), not the n-th index.
    """
    indices, before = [], None
    for name, info in sorted(_levelled(subject).items()):
        wanted = 2 ** int(name[1:])
        code = f"assert featreg.describe({subject.model!r}).resolve({name!r}).reduction == {wanted}"
        dilated = info.reduction == before and before is not None and before < wanted
        holds = dilated or (info.reduction is not None and level_of(info.reduction) == name)
        subject.expect(holds, f"{name} lies at another stride", wanted, info.reduction, name, code)
        indices += [] if info.index is None else [info.index]
        before = info.reduction
    subject.expect(indices == sorted(indices), "indices in another order than levels", sorted(indices), indices)


def _levelled(subject: Subject) -> dict[str, FeatureInfo]:
    return {info.level: info for info in subject.info.features if info.level is not None}


@check("layout.local", when=_no_grid)
def local(subject: Subject) -> None:
    """Each quarter of a map or patch grid is changed the most by a change of that corner of the image, among changes of
    all four corners, each taken as a share of all that it changes. So it is in the finest layer and in all of eight
    cells a side and more; coarser ones, whose every cell may see the whole image, must not clearly tell otherwise.

    Why: a shape says nothing of what lies where. Channels last in a channels-first shape, a transposed grid and a
    prefix token at the wrong end all have the right shape.
    Caught: 35 models of timm return NHWC (timm #1438, Swin), as torchvision's Swin does; ViT blocks give 197 tokens,
    class token first, and a pooling that takes 196 from the wrong end shifts every patch by one.
    Mend: transpose (``permute(0, 3, 1, 2)``), never reshape, from NHWC; put prefix tokens first and count them in
    ``prefix_tokens``.
    """
    grids, images = _grids(subject), subject.images(1)
    finest = max(min(grid) for grid in grids.values())
    shares: dict[Layer, list[Floats]] = {layer: [] for layer in grids}
    with subject.open() as extractor:
        before = extractor(images)
        for corner in _corners(*subject.case.size):
            changed = images.copy()
            changed[(..., *corner)] += 3
            after = extractor(changed)
            for layer, grid in grids.items():
                info = subject.features[layer]
                apart = np.abs(_cells(after[layer], info, grid) - _cells(before[layer], info, grid)).sum(axis=-1)
                means = np.asarray([apart[quarter].mean(dtype=np.float64) for quarter in _corners(*grid, parts=2)])
                shares[layer].append(means / (means.sum() or 1.0))
    for layer, grid in grids.items():
        _hold_corners(subject, layer, np.asarray(shares[layer]), min(grid) >= min(finest, FINE_GRID))


def _corners(height: int, width: int, parts: int = 4) -> list[tuple[slice, slice]]:
    """Top left, top right, bottom left and bottom right, each so many parts of a side high and wide."""
    rows, columns = height // parts, width // parts
    return [
        (slice(top, top + rows), slice(left, left + columns))
        for top in (0, height - rows)
        for left in (0, width - columns)
    ]


CORNERS = ("top left", "top right", "bottom left", "bottom right")


def _hold_corners(subject: Subject, layer: Layer, shares: Floats, fine: bool) -> None:
    """Of ``shares``, by corner of the image and by quarter of the layer, the largest of each column is the diagonal."""
    for quarter, column in enumerate(shares.T):
        most = int(column.argmax())
        holds = most == quarter or (not fine and column[most] < CLEARLY * column[quarter])
        problem = f"the {CORNERS[quarter]} of {layer!r} is not that of the image"
        code = _corner_code(subject, layer, quarter, 1.0 if fine else CLEARLY)
        subject.expect(holds, problem, CORNERS[quarter], CORNERS[most], layer, code)


def _corner_code(subject: Subject, layer: Layer, quarter: int, factor: float) -> str:
    info, size = subject.features[layer], subject.case.size
    rows, columns = grid = info.grid(*size)
    apart = f"abs(extractor(changed)[{layer!r}] - extractor(images)[{layer!r}])[0]"
    cells = ".sum(axis=0)" if info.kind == "map" else f"[{info.prefix_tokens}:].sum(axis=-1).reshape({rows}, {columns})"
    return (
        f"shares = []\nfor corner in {_corners(*size)}:\n    changed = images.copy()\n"
        f"    changed[(..., *corner)] += 3\n    apart = {apart}{cells}\n"
        f"    means = [apart[quarter].mean() for quarter in {_corners(*grid, parts=2)}]\n"
        f"    shares.append(means[{quarter}] / sum(means))\nassert {factor} * shares[{quarter}] >= max(shares)"
    )


def _no_prefix(subject: Subject) -> str:
    return "" if _prefixed(subject) else "no layer has prefix tokens over a grid"


def _prefixed(subject: Subject) -> dict[Layer, FeatureInfo]:
    return {layer: info for layer in _grids(subject) if (info := subject.features[layer]).prefix_tokens}


@check("layout.prefix", when=_no_prefix)
def prefix(subject: Subject) -> None:
    """Where a layer of tokens has prefix tokens, they are not patches: at the first layer that has them, a change of
    one patch of the image changes its own token more than any prefix token.

    Why: pooling leaves ``prefix_tokens`` out, and ``cls`` takes the first. A wrong count mixes the two.
    Caught: ViT through ``hook`` or ``fx`` gives (197, 768), through ``getter`` 768x14x14: the same layer with and
    without its class token; CLIP and DINOv2 add one to five tokens in front.
    Mend: set ``prefix_tokens`` to the number of class, distillation and register tokens, and leave them in place.
    """
    layer, info = next(iter(_prefixed(subject).items()))
    rows, columns = info.grid(*subject.case.size)
    side_h, side_w = subject.case.size[0] // rows, subject.case.size[1] // columns
    images = subject.images(1)
    changed = images.copy()
    changed[:, :, side_h : 2 * side_h, :side_w] += 3
    with subject.open([layer]) as extractor:
        apart = np.abs(to_numpy(extractor(changed)[layer]) - to_numpy(extractor(images)[layer])).sum(axis=-1)[0]
    wanted, got = info.prefix_tokens + columns, int(apart.argmax())
    subject.expect(wanted == got, "a patch of the image is another token", f"token {wanted}", f"token {got}", layer)
