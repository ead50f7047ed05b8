"""Tar shards as WebDataset lays them out, indexed by the place of every image in its archive."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import IO, Any

import attrs

from featreg.errors import SourceError
from featreg.images import is_image_name
from featreg.sources.archives import members
from featreg.sources.base import Sample, Source
from featreg.sources.files import open_file, read_range
from featreg.sources.options import plain_options
from featreg.sources.patterns import check_files, find_files
from featreg.sources.targets import Targets
from featreg.sources.uris import file_uri, readable, shown, split_part, with_part

__all__ = ["TarSource"]

_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)
"""A sample's name and the rest: as in WebDataset the first dot of the last part of the path divides them."""

MAX_NOTED = 1000
"""How many samples that are not whole are remembered: where members lie apart, all of them are such."""

MAX_TARGET_BYTES = 2**24
"""What a ``cls`` or ``json`` member may weigh: they are read while the index is made."""

REFUSED = {
    "link": "the member is a link or a device, and those in archives are not followed",
    "sparse": "the member is a sparse file, whose bytes do not lie together",
    "name": "the name of the member leads out of the archive",
    "damaged": "the archive is truncated or damaged here, and what follows in it is lost",
}
"""Members that become rows which fail, by the word that stands in their URI."""


class TarSource(Source):
    """Images in uncompressed tar archives: one, a folder of them, or a pattern such as ``shards/{000..123}.tar``.

    Members that share a name up to the first dot, one after the other, are one sample, and its key is
    ``archive.tar/name``. Its image is the first member that has an image's suffix and nothing before it (``a.jpg``, not
    ``a.mask.png``), or the one of the extension ``image``. Its target is what the member ``target`` holds: ``cls``
    is a number or a name, ``json:label`` the field of an object; by default ``cls``, and then the field ``label`` of
    ``json``, where there is one. Names need ``classes``. Samples without an image, and hidden members, are counted in
    ``skipped``.

    Nothing is ever unpacked. A link, a sparse member, a name that leads out of the archive, and the place where an
    archive is cut or damaged are rows that fail. A member of more samples than one archive is not noticed.

    Raises SourceError for files that are missing; ``index()`` does for a compressed archive, for targets that are
    neither numbers nor classes, where the members of samples do not lie together, and where there is no image.
    """

    kind = "tar"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        image: str | None = None,
        target: str | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.uri = file_uri(path)
        check_files(self.uri, ".tar")
        self.options = plain_options(image=image, target=target, classes=classes)
        self.classes = tuple(self.options["classes"]) if "classes" in self.options else None
        self._targets = Targets(self.classes)
        self._choice = _Choice(image, target)

    @cached_property
    def skipped(self) -> int:
        for _ in self.index():
            pass
        return self.skipped

    def index(self) -> Iterator[Sample]:
        skipped = count = 0
        for name, uri in find_files(self.uri, ".tar"):
            shard = _Shard(name, uri, self._choice, self._targets)
            for sample in shard.samples():
                count += 1
                yield sample
            skipped += shard.skipped
        self.skipped = skipped
        if not count:
            raise SourceError(
                f"no images found in {shown(self.uri)!r}", "members such as 0001.jpg", f"{skipped} others"
            )

    def read(self, sample: Sample) -> bytes:
        file, part = split_part(sample.uri)
        if "refused" in part:
            raise SourceError(REFUSED[part["refused"]], "the bytes of an image", repr(sample.key))
        return read_range(file, int(part["offset"]), int(part["size"]), sample.key)


@attrs.frozen
class _Choice:
    """Which members of a sample are its image and its target, by their extensions."""

    image: str | None
    target: str | None

    def is_image(self, extension: str) -> bool:
        return (
            extension == self.image.lower() if self.image else is_image_name(f"x.{extension}") and "." not in extension
        )

    def target_field(self, extension: str) -> str | None:
        """The field of the JSON object, empty for a member that is the target itself; None where it is none."""
        wanted = [self.target] if self.target else ["cls", "json:label"]
        fields = {name.partition(":")[0]: name.partition(":")[2] for name in wanted}
        return fields.get(extension)


@attrs.define
class _Found:
    """A sample while its members go by."""

    name: str
    image: tarfile.TarInfo | None = None
    target: Any = None
    has_target: bool = False


class _Shard:
    """The samples of one archive."""

    def __init__(self, name: str, uri: str, choice: _Choice, targets: Targets) -> None:
        self.skipped = 0
        self._name, self._uri, self._choice, self._targets = name, uri, choice, targets
        self._lacking: dict[str, str] = {}  # the first names of samples that are not whole, and what they lack

    def samples(self) -> Iterator[Sample]:
        with open_file(self._uri) as file:
            found: _Found | None = None
            for member in members(file, self._uri):
                if isinstance(member, int):
                    yield from self._finish(found)
                    yield self._refuse("damaged", f"at byte {member}")
                    return
                match = _NAME.fullmatch(member.name)
                if match is None or member.isdir():
                    self.skipped += not member.isdir()
                    continue
                if found is None or found.name != match[1]:
                    yield from self._finish(found)
                    found = _Found(match[1])
                self._take(found, member, match[2].lower(), file)
            yield from self._finish(found)

    def _take(self, found: _Found, member: tarfile.TarInfo, extension: str, file: IO[bytes]) -> None:
        field = self._choice.target_field(extension)
        if self._choice.is_image(extension) and found.image is None:
            found.image = member
        elif field is not None and not found.has_target and member.isreg() and member.size <= MAX_TARGET_BYTES:
            found.target, found.has_target = _target(file, member, field), True

    def _finish(self, found: _Found | None) -> Iterator[Sample]:
        if found is None:
            return
        if found.image is None:
            self.skipped += 1
            if found.has_target:
                self._note(found.name, "image")
            return
        if not found.has_target:
            self._note(found.name, "target")
        target = self._targets.number(found.target, f"{self._name}/{readable(found.name)}")
        refused = _refusal(found.image)
        if refused:
            yield self._refuse(refused, found.name, target)
            return
        part = {"offset": found.image.offset_data, "size": found.image.size}
        yield Sample(self._key(found.name), with_part(self._uri, **part), target, found.image.size)

    def _note(self, name: str, lacking: str) -> None:
        """Raise SourceError where the other part of this sample was seen before, apart from it."""
        if self._lacking.get(name, lacking) != lacking:
            raise SourceError(
                f"the members of samples do not lie together in {shown(self._uri)!r}",
                "0001.jpg, 0001.cls, 0002.jpg, ...",
                f"the image of {readable(name)!r} here, and its target there",
                remedy="write it anew with tar --sort=name, or give target='none'",
            )
        if len(self._lacking) < MAX_NOTED:
            self._lacking[name] = lacking

    def _refuse(self, why: str, name: str, target: int | None = None) -> Sample:
        return Sample(self._key(name), with_part(self._uri, refused=why), target)

    def _key(self, name: str) -> str:
        return readable(f"{self._name}/{name}")


def _refusal(member: tarfile.TarInfo) -> str:
    if not member.isreg():
        return "link"
    if member.issparse():
        return "sparse"
    return "name" if member.name.startswith("/") or ".." in member.name.split("/") else ""


def _target(file: IO[bytes], member: tarfile.TarInfo, field: str) -> Any:
    """What a member says; None where it says nothing."""
    file.seek(member.offset_data)
    text = file.read(member.size).decode("utf-8", "replace").strip()
    if not field:
        return text
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    value = document.get(field) if isinstance(document, dict) else None
    return value if isinstance(value, int | str) else None
