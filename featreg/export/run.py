"""Exporting a store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from featreg.errors import StoreError
from featreg.export.content import content_of
from featreg.export.tables import SAMPLES, write_samples
from featreg.export.writing import DOCUMENT, new_folder, writer_of
from featreg.spec import Layer
from featreg.stores.reading.npy import check_finished
from featreg.stores.reading.reader import open_store
from featreg.stores.reading.rows import Rows, as_layers

__all__ = ["export_store"]


def export_store(
    store: Rows | str | os.PathLike[str],
    out: str | os.PathLike[str],
    format: str,
    *,
    layers: Layer | Sequence[Layer] | None = None,
    where: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the layers of a store, or of a view of one, to a new folder in another format; returns its path.

    ``format`` is one of :data:`~featreg.export.FORMATS`. Beside the arrays lie ``samples.csv`` (row, key, uri, target,
    status, error; of these layers) and ``export.json`` (the file, shape and dtype of each array, the classes, what
    computed them); the targets are an array too, -1 where a row has none. One block of rows is held in memory at a
    time. Rows that failed are NaN, as they are in the store, unless ``where="ok"`` leaves them out. The folder is
    written aside and renamed; with ``overwrite`` it replaces an earlier export.

    Raises SpecError for a format that there is not and a path that reads like a file, LayerError, StoreExistsError for
    a path that is taken, CapabilityError for arrays too large for the format, and StoreError where rows are pending,
    where there are none, and where something cannot be read or written.
    """
    writer = writer_of(format)
    rows = store if isinstance(store, Rows) else open_store(store)
    asked = as_layers(rows, layers)
    rows = rows if where is None else rows.where(status=where, layers=asked)
    check_finished(rows, asked)
    if not len(rows):
        raise StoreError(f"there is nothing to export in {rows.uri!r}", "at least one row", "none")
    content = content_of(rows, asked)
    with new_folder(out, overwrite=overwrite) as folder:
        files = writer(folder, content)
        write_samples(folder, content)
        text = content.document(format, files, sorted({*files.values(), SAMPLES}))
        (folder / DOCUMENT).write_text(text, encoding="utf-8")
    return Path(os.path.realpath(out))
