"""Whether a source holds what a model takes: images or texts."""

from __future__ import annotations

from featreg.errors import SourceError
from featreg.extractor import Extractor
from featreg.sources import Source
from featreg.sources.uris import shown

__all__ = ["check_sort"]

_IMAGES = frozenset({"folder", "imagefolder", "numpy", "hdf5"})
"""The kinds that hold images and nothing else; files of a list, members of archives and columns may be texts."""


def check_sort(source: Source, extractor: Extractor) -> None:
    """Raise SourceError for images where the layers take texts, and for texts where they take images."""
    wrong = source.kind in _IMAGES if extractor.takes_text else source.kind == "text"
    if wrong:
        there, here = ("images", "texts") if extractor.takes_text else ("texts", "images")
        remedy = "a file of texts, one a line (--kind text)" if extractor.takes_text else "another --kind, or none"
        raise SourceError(
            f"the source {shown(source.uri)!r} holds {there}, and the layers of {extractor.request.model} take {here}",
            f"a source of {here}",
            f"a source of kind {source.kind!r}",
            remedy=remedy,
        )
