"""The data set, the run, and what its store holds where nothing disturbs it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from PIL import Image

import featreg
import featreg.engine
import featreg.stores.check
from faults.processes import run
from featreg.cli.main import cli
from featreg.engine.planning import plan

__all__ = ["Scene", "Verdict", "compare", "content"]

IMAGES, BAD, TASK_ROWS = 24, (5, 6, 17), 4
LAYERS = ["C4", "pooled"]
RECIPE = "mean=C4[avg],pooled:center"
ROW_BYTES = 4 * (32 * 4 * 4 + 48 + (32 + 48))


_RUN: dict[str, Any] = {"derive": RECIPE, "batch_size": 2, "num_workers": 2}


@attrs.frozen
class Verdict:
    """How a store differs from that of an undisturbed run, in rows and files."""

    lost: int
    duplicated: int
    torn: int

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.duplicated or self.torn)


class Scene:
    """A folder to play in: images, the undisturbed store, and one store after the other that is disturbed."""

    def __init__(self, folder: Path) -> None:
        os.environ["SOURCE_DATE_EPOCH"] = "0"  # the only thing in a store that differs between two runs
        self.folder = folder
        self.images = folder / "images"
        self.log = folder / "log.txt"
        plan.TASK_BYTES = TASK_ROWS * ROW_BYTES
        _make_images(self.images)
        self.expected_store = folder / "undisturbed"
        self.must(lambda: self.extract(self.expected_store))
        self.expected = content(self.expected_store)
        self.keys = sorted(path.name for path in self.images.iterdir())

    def extract(self, store: Path, **options: Any) -> None:
        """What a user runs, and runs again."""
        featreg.extract(self.images, store, "numpy:tinynet", LAYERS, **{**_RUN, **options})

    def work(self, store: Path) -> None:
        """What the other workers run."""
        featreg.engine.work(store, batch_size=2, num_workers=2)

    def must(self, call: Any) -> str:
        """Run something in a child; raises RuntimeError where it fails."""
        code, output = run(call, self.log)
        if code:
            raise RuntimeError(f"exit code {code}: {output}")
        return output

    def command(self, *arguments: object) -> tuple[int, str]:
        """A command of featreg in a child: its exit code and what it said."""
        return run(lambda: cli(list(map(str, arguments)), prog_name="featreg"), self.log)

    def fresh(self) -> Path:
        """A path for the next store."""
        store = self.folder / "store"
        shutil.rmtree(store, ignore_errors=True)
        for left in self.folder.glob(".store.*"):
            shutil.rmtree(left)
        return store

    def copy(self) -> Path:
        """The undisturbed store once more."""
        return Path(shutil.copytree(self.expected_store, self.fresh()))

    def judge(self, store: Path) -> Verdict:
        """Compare a store with the undisturbed one, byte by byte; what it says of its rows is read by hand."""
        found = content(store)
        differing = {name for name in found.keys() | self.expected.keys() if found.get(name) != self.expected.get(name)}
        rows = [row for row, times in _rows(found).items() for _ in range(times)]
        lost = len(set(range(IMAGES)) - set(rows))
        return Verdict(lost, len(rows) - len(set(rows)), len(differing))


def compare(found: dict[str, bytes], expected: dict[str, bytes]) -> Verdict:
    """How the files of a store that was added to differ: a row counts once for each pass."""
    differing = {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
    here, there = _rows(found), _rows(expected)
    lost = sum(max(times - here.get(row, 0), 0) for row, times in there.items())
    return Verdict(lost, sum(max(times - there.get(row, 0), 0) for row, times in here.items()), len(differing))


def content(store: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def _rows(found: dict[str, bytes]) -> dict[int, int]:
    """How often each row is in a receipt whose shards are as it says."""
    rows: dict[int, int] = {}
    for name, data in found.items():
        if name.startswith("receipts/"):
            receipt = json.loads(data)
            shards = receipt["shards"].items()
            if all(hashlib.sha256(found.get(shard, b"")).hexdigest() == digest for shard, digest in shards):
                for row in range(receipt["start"], receipt["stop"]):
                    rows[row] = rows.get(row, 0) + 1
    return rows


def _make_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(IMAGES):
        path = folder / f"{number}.png"
        if number in BAD:
            path.write_bytes(b"no image")
        else:
            pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(path)
