"""Files in a store that belong to nothing in it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from featreg.stores.frame import frame
from featreg.stores.layout import FINISHED, MANIFEST, RECEIPTS, SAMPLES, STAGED, WORKERS, Manifest, pass_name
from featreg.stores.places.place import Place

__all__ = ["find_strays"]


def find_strays(place: Place, manifest: Manifest, *, finished: bool) -> Iterator[str]:
    """The names of the files that belong to no row and no document; while work goes on, what is staged may."""
    known = {MANIFEST, SAMPLES, FINISHED, *(part.name for part in manifest.index), *frame(manifest)}
    known |= {name for fit in manifest.fits for name in (fit.name, fit.copy)}
    known |= {pass_name(part.number, copy=copy) for part in manifest.passes for copy in (False, True)}
    counted = list(_counted(manifest))
    at_work = () if finished else (f"{STAGED}/", f"{WORKERS}/")
    for name in place.walk():
        if name not in known and not name.startswith(at_work) and not any(_is_one_of(name, *some) for some in counted):
            yield name


def _counted(manifest: Manifest) -> Iterator[tuple[re.Pattern[str], int, int]]:
    """What the receipts and the shards are called, and from which to before which number they go."""
    for part in manifest.passes:
        first = part.start // part.task_rows
        receipts = re.compile(rf"{RECEIPTS}/{part.number:04d}/([0-9]{{8,}})\.json")
        yield receipts, first, first + part.count
        for layer in part.layers:
            yield (
                re.compile(rf"{re.escape(layer.array)}/c/([0-9]+){'/0' * len(layer.shape)}"),
                first,
                first + part.count,
            )


def _is_one_of(name: str, pattern: re.Pattern[str], first: int, last: int) -> bool:
    match = pattern.fullmatch(name)
    return match is not None and first <= int(match[1]) < last
