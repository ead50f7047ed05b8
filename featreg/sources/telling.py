"""Which kind of source a path is, by its name and, for a folder, by what lies directly in it."""

from __future__ import annotations

import itertools
from collections.abc import Collection

from featreg.errors import SourceError
from featreg.images import is_image_name
from featreg.sources.files import Entry, check_exists, entries, exists, is_folder, open_file
from featreg.sources.patterns import expand
from featreg.sources.uris import file_name, suffix

__all__ = ["tell_kind"]

BY_SUFFIX = {
    ".csv": "list",
    ".tsv": "list",
    ".tar": "tar",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
}
"""Suffixes that tell the kind alone; ``.txt``, ``.npy`` and ``.parquet`` need a look inside."""

IN_FOLDERS = {".tar": "tar", ".parquet": "parquet"}
"""The files that make a folder a source of that kind, where no image and no sub-folder lies beside them."""

SAVED = (frozenset({"dataset_dict.json"}), frozenset({"state.json", "dataset_info.json"}))
"""What Hugging Face's ``save_to_disk`` writes: the names that lie together, of several splits and of one."""

REMEDIES = {
    ".npz": "numpy.save the array of images to a .npy file: members of an .npz cannot be read row by row",
    ".gz": "uncompress it: what is compressed as a whole cannot be read by offset",
    ".tgz": "uncompress it to a .tar: what is compressed as a whole cannot be read by offset",
    ".zip": "the URL zip://*.jpg::file.zip reads inside, or unpack it",
    ".json": "a .csv or .parquet file list with columns uri and target",
    ".jsonl": "a .csv or .parquet file list with columns uri and target",
    ".arrow": "the folder that datasets.save_to_disk wrote",
}


def tell_kind(uri: str, kinds: Collection[str]) -> str:
    """The kind of source at a URI, one of ``kinds``; raises SourceError where nothing tells it."""
    if is_folder(uri):
        return _folder_kind(entries(uri))
    first = expand(uri)[0]
    end = suffix(file_name(first))
    if not exists(first):
        check_exists(first, folder=not end)
    if end in BY_SUFFIX:
        return BY_SUFFIX[end]
    if end == ".parquet":
        from featreg.sources.parquet import holds_images

        return "parquet" if holds_images(first) else "list"
    if end == ".npy":
        from featreg.sources.npy import holds_paths

        return "list" if holds_paths(first) else "numpy"
    if end == ".txt":
        return _text_kind(first)
    raise SourceError(
        f"nothing tells what kind of source {file_name(first)!r} is",
        "a folder, or a file of .txt, .csv, .tsv, .parquet, .tar, .npy, .h5 or .hdf5",
        f"a file of {end}" if end else "a file without a suffix",
        remedy=_remedy(first, end, kinds),
    )


def _remedy(uri: str, end: str, kinds: Collection[str]) -> str:
    if is_image_name(file_name(uri)):
        return "give the folder that the image lies in"
    return REMEDIES.get(end, f"say it: kind={', '.join(map(repr, kinds))}")


def _folder_kind(listed: list[Entry]) -> str:
    shown = [entry for entry in listed if not entry.name.startswith(".")]
    files = {entry.name for entry in shown if not entry.folder}
    if any(names <= files for names in SAVED):
        return "huggingface"
    if any(entry.folder or is_image_name(entry.name) for entry in shown):
        return "folder"
    ends = {suffix(entry.name) for entry in shown}
    return next((kind for end, kind in IN_FOLDERS.items() if end in ends), "folder")


def _text_kind(uri: str) -> str:
    """A list of files, if the first line names an image; texts are never guessed."""
    with open_file(uri) as file:
        lines = (line.strip() for line in itertools.islice(iter(lambda: file.readline(65536), b""), 100))
        first = next((line for line in lines if line), b"").decode("utf-8-sig", "replace")
    if is_image_name(first):
        return "list"
    raise SourceError(
        f"nothing tells whether {file_name(uri)!r} lists files or texts",
        "a path of an image in the first line",
        repr(first[:80]),
        remedy="kind='list' for paths, one a line; kind='text' for texts, one a line",
    )
