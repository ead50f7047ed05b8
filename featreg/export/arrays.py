"""NumPy's formats and safetensors: a header, and then the rows as they are in memory."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from featreg.export.content import Content
from featreg.stores.reading.npy import write_npy

__all__ = ["write_npy_files", "write_npz", "write_safetensors"]

_SAFETENSORS = {"float16": "F16", "float32": "F32", "float64": "F64", "int64": "I64"}
"""https://github.com/huggingface/safetensors#format"""


def write_npy_files(folder: Path, content: Content) -> dict[str, str]:
    """One ``.npy`` file for each array: ``numpy.load("C5.npy", mmap_mode="r")``."""
    files = {entry.name: f"{entry.name}.npy" for entry in content.entries}
    for entry in content.entries:
        with open(folder / files[entry.name], "xb") as file:
            write_npy(file, entry.shape, entry.dtype, entry.blocks())
    return files


def write_npz(folder: Path, content: Content) -> dict[str, str]:
    """All arrays as the members of one uncompressed ``.npz``: ``numpy.load("features.npz")["C5"]``."""
    with zipfile.ZipFile(folder / "features.npz", "x", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for entry in content.entries:
            with archive.open(_member(f"{entry.name}.npy"), "w", force_zip64=True) as file:
                write_npy(file, entry.shape, entry.dtype, entry.blocks())
    return {entry.name: "features.npz" for entry in content.entries}


def write_safetensors(folder: Path, content: Content) -> dict[str, str]:
    """All arrays in one file: ``safetensors.numpy.load_file("features.safetensors")["C5"]``."""
    header: dict[str, Any] = {"__metadata__": {"model": content.rows.manifest.request.model}}
    end = 0
    for entry in content.entries:
        start, end = end, end + entry.nbytes
        header[entry.name] = {
            "dtype": _SAFETENSORS[str(entry.dtype)],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "features.safetensors", "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in content.entries:
            for block in entry.blocks():
                file.write(np.ascontiguousarray(block, entry.dtype).data)
    return {entry.name: "features.safetensors" for entry in content.entries}


def _member(name: str) -> zipfile.ZipInfo:
    """A member with the first date that zip files know: the same rows give the same file."""
    member = zipfile.ZipInfo(name)
    member.external_attr = 0o644 << 16
    return member
