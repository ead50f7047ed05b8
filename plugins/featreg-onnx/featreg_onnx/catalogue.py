"""Which file a model's name stands for.

A name is that of a file in the folders of ``FEATREG_ONNX_PATH`` (separated as in ``PATH``), relative to its folder and
with forward slashes; of two folders that have it the first counts. Any other name is the path of a file.
"""

from __future__ import annotations

import os
from pathlib import Path

from featreg.plugin import errors

__all__ = ["SUFFIX", "VARIABLE", "find", "find_file", "listed", "suggest"]

VARIABLE = "FEATREG_ONNX_PATH"
SUFFIX = ".onnx"


def listed() -> dict[str, Path]:
    """The files in the folders of the variable by name, sorted; folders that are not there hold none."""
    found: dict[str, Path] = {}
    for entry in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        folder = Path(entry).expanduser()
        for file in folder.rglob(f"*{SUFFIX}"):
            if file.is_file():
                found.setdefault(file.relative_to(folder).as_posix(), file)
    return {name: found[name] for name in sorted(found)}


def find(model: str) -> Path | None:
    """The file that a name stands for; None where there is none."""
    path = Path(model).expanduser()
    if path.suffix != SUFFIX:
        return None
    named = None if path.is_absolute() else listed().get(model)
    return named or (path if path.is_file() else None)


def find_file(model: str) -> Path:
    """The file that a name stands for; raises UnknownModelError with the nearest names."""
    file = find(model)
    if file is None:
        near, remedy = suggest(model)
        raise errors.UnknownModelError(f"there is no ONNX file {model!r}", f"a path to *{SUFFIX}", model, near, remedy)
    return file


def suggest(model: str) -> tuple[tuple[str, ...], str]:
    """The nearest listed names and neighbours of a path, and what can be done."""
    path = Path(model).expanduser()
    folder = path.parent
    beside = [file.stem for file in folder.glob(f"*{SUFFIX}")] if folder.is_dir() else []
    neighbours = [str(Path(model).parent / f"{stem}{SUFFIX}") for stem in errors.near_matches(path.stem, beside)]
    names = {name.removesuffix(SUFFIX): name for name in listed()}
    near = [names[name] for name in errors.near_matches(model.removesuffix(SUFFIX), names)]
    remedy = f"onnx:PATH, the path of any {SUFFIX} file; {VARIABLE} holds folders whose files are listed"
    return tuple(dict.fromkeys([*near, *neighbours])), remedy
