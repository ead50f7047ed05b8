"""HDF5: a dataset for each array."""

from __future__ import annotations

from pathlib import Path

from featreg.export.content import Content
from featreg.extras import extra

with extra("hdf5", "HDF5 files"):
    import h5py

__all__ = ["write_hdf5"]


def write_hdf5(folder: Path, content: Content) -> dict[str, str]:
    """All arrays as contiguous datasets of one file: ``h5py.File("features.h5")["C5"]``."""
    with h5py.File(folder / "features.h5", "x") as file:
        file.attrs["model"] = content.rows.manifest.request.model
        for entry in content.entries:
            dataset = file.create_dataset(entry.name, entry.shape, entry.dtype)
            start = 0
            for block in entry.blocks():
                dataset[start : start + len(block)] = block
                start += len(block)
    return {entry.name: "features.h5" for entry in content.entries}
