"""Files that belong beside a store are not written into one."""

from __future__ import annotations

import os
from pathlib import Path

from featreg.errors import SpecError
from featreg.stores.names import MANIFEST, ZARR_JSON
from featreg.stores.places.place import LocalPlace, Place

__all__ = ["check_outside"]


def check_outside(path: str | os.PathLike[str], what: str, place: Place | None = None) -> None:
    """Raise SpecError where a file or a folder would lie in a feature store, or in ``place``, where one is to be."""
    try:
        where = Path(os.path.realpath(path))
    except ValueError:  # no path at all, as whoever writes there will say
        return
    planned = place.root if isinstance(place, LocalPlace) else None
    for folder in where.parents:
        if folder == planned or ((folder / MANIFEST).is_file() and (folder / ZARR_JSON).is_file()):
            raise SpecError(
                f"{what} would lie in the store {str(folder)!r}",
                "a path outside of every store, as a store holds nothing else",
                repr(os.fspath(path)),
            )
