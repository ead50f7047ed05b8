"""The file that makes a sweep resumable: one JSON line per judged model, and what the judgement rests on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib import metadata
from importlib.resources import files
from pathlib import Path

from zoo.claims import SPECS
from zoo.records import Record, from_plain, to_plain

__all__ = ["LIBRARIES", "Ledger", "fingerprint", "versions"]

LIBRARIES = {
    "mindspore": ("mindspore", "mindcv", "numpy"),
    "open_clip": ("open_clip_torch", "timm", "torch"),
    "timm": ("timm", "torch"),
    "torchvision": ("torchvision", "torch"),
}
"""The distributions that decide what a backend's models are."""
_SUFFIXES = {".py", ".toml", ".json"}
_APART = {"cli", "conformance", "engine", "sources", "stores", "view"}  # folders that no judgement goes through


def versions(backend: str) -> dict[str, str]:
    """The installed versions of a backend's libraries."""
    return {name: metadata.version(name) for name in LIBRARIES[backend]}


def fingerprint(backend: str) -> str:
    """A digest of library versions, and of the code of featreg, the backend's plugin, this package and the tables."""
    digest = hashlib.sha256(json.dumps(versions(backend), sort_keys=True).encode())
    shared = [] if backend == "mindspore" else ["featreg_torch"]
    packages = [Path(str(files(name))) for name in ("featreg", *shared, f"featreg_{backend}", "zoo")]
    for root in (*packages, SPECS / "architectures"):
        for path in sorted(path for path in root.rglob("*") if path.suffix in _SUFFIXES):
            within = path.relative_to(root)
            if within.parts[0] not in _APART:
                digest.update(within.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class Ledger:
    """Judgements on disk; each is valid under the fingerprint it was made with."""

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            path.unlink(missing_ok=True)

    def add(self, record: Record, mark: str) -> None:
        """Append one judgement; a line is written at once, so that a killed sweep loses none."""
        line = json.dumps({"fingerprint": mark, "record": to_plain(record)})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def settled(self, marks: Mapping[str, str]) -> dict[str, Record]:
        """What need not be judged again, by model id: the last judgement of each, under today's ``marks``."""
        found: dict[str, Record] = {}
        for mark, record in self._lines():
            found.pop(record.id, None)
            if marks.get(record.backend) == mark and record.settled:
                found[record.id] = record
        return found

    def _lines(self) -> Iterator[tuple[str, Record]]:
        if not self.path.is_file():
            return
        for line in self.path.read_text("utf-8").splitlines():
            try:
                entry = json.loads(line)
                yield entry["fingerprint"], from_plain(entry["record"])
            except Exception:  # noqa: BLE001  (a torn line, or another form of the record: judged again)
                continue
