"""An ONNX file as a model in memory, without the weights that lie in other files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.inliner
from onnx.external_data_helper import uses_external_data

from featreg.plugin import Preprocess, errors, read_preprocess

__all__ = [
    "PREPROCESS",
    "Stamp",
    "external_files",
    "follow_links",
    "loading",
    "read_model",
    "stamp_of",
    "stored_preprocess",
]

PREPROCESS = "featreg.preprocess"
"""The key of a file's metadata under which a Preprocess lies, as JSON."""

Stamp = tuple[int, int, int]


def stamp_of(file: Path) -> Stamp:
    """Another one as soon as a file is another."""
    state = file.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns


def read_model(file: Path) -> onnx.ModelProto:
    """The model in a file; local functions become the nodes that they stand for.

    Raises WeightsError for what is no ONNX file, and for weights that lie in other files which are not there.
    """
    with loading(file):
        model = onnx.load(str(file), load_external_data=False)
    if not model.graph.node or not model.graph.input:
        raise errors.WeightsError(f"{str(file)!r} is no ONNX model", "a graph with an input and nodes", "none")
    missing = [str(path) for path in external_files(model, file) if not path.is_file()]
    if missing:
        raise errors.WeightsError(
            f"weights of {str(file)!r} are not there",
            "the files that it names, in its folder",
            f"no {', '.join(missing)}",
            remedy="copy them along with the .onnx file",
        )
    if model.functions:
        with loading(file):
            model = onnx.inliner.inline_local_functions(model)
    return model


def external_files(model: onnx.ModelProto, file: Path) -> list[Path]:
    """The other files that hold weights of a model, each once; WeightsError for one outside of the model's folder."""
    names = {
        entry.value
        for tensor in model.graph.initializer
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    outside = sorted(name for name in names if Path(name).is_absolute() or ".." in Path(name).parts)
    if outside:
        raise errors.WeightsError(
            f"{str(file)!r} takes weights from outside of its folder", f"files in {file.parent}", ", ".join(outside)
        )
    return [file.parent / name for name in sorted(names)]


def follow_links(model: onnx.ModelProto, file: Path) -> Path:
    """Let a model name its external weights by where they really are, and give the folder that this is relative to.

    In a hub's cache a model and its weights are links to files elsewhere, which onnxruntime does not follow.
    """
    places = {str(path.relative_to(file.parent)): path.resolve() for path in external_files(model, file)}
    folder = Path(os.path.commonpath([place.parent for place in places.values()])) if places else file.parent.absolute()
    for tensor in filter(uses_external_data, model.graph.initializer):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = places[str(Path(entry.value))].relative_to(folder).as_posix()
    return folder


def stored_preprocess(model: onnx.ModelProto) -> Preprocess | None:
    """The Preprocess in a file's metadata, None where it has none; raises SpecError for one that is none."""
    for entry in model.metadata_props:
        if entry.key == PREPROCESS:
            try:
                return read_preprocess(json.loads(entry.value))
            except ValueError as error:
                raise errors.SpecError(
                    f"the metadata {PREPROCESS!r} is no JSON", "a Preprocess", entry.value
                ) from error
    return None


@contextlib.contextmanager
def loading(file: Path) -> Iterator[None]:
    """Raise WeightsError for whatever goes wrong while a file is read."""
    try:
        yield
    except errors.FeatregError:
        raise
    except Exception as error:
        raise errors.WeightsError(
            f"{str(file)!r} cannot be read as an ONNX model",
            "a whole .onnx file",
            f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}",
        ) from error
