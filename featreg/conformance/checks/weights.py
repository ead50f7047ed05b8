"""Weights that cannot be had are an error, and no file of them may run code."""

from __future__ import annotations

import os
import pickle
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from featreg.conformance.model import check
from featreg.conformance.subject import Subject
from featreg.errors import WeightsError
from featreg.extractor import create_extractor


def _open(subject: Subject, weights: str) -> None:
    create_extractor(subject.model, subject.layers[:1], registry=subject.registry, weights=weights).close()


def _hold_refused(subject: Subject, weights: str, what: str) -> None:
    code = f"featreg.create_extractor({subject.model!r}, {list(subject.layers[:1])}, weights={weights!r})"
    subject.raises(WeightsError, partial(_open, subject, weights), what, code)


@check("weights.refused", needs=["weights"])
def refused(subject: Subject) -> None:
    """A tag that the library does not know, a file that is not there and one that holds no weights raise WeightsError.

    Why: a model with other weights than asked for looks like the right one.
    Caught: checkpoints that are loaded with ``strict=False``, by which a file that fits nowhere leaves every weight
    random.
    Mend: look tags up exactly; read files inside ``featreg.plugin.reading_weights``, which maps what goes wrong.
    """
    _hold_refused(subject, "no_such_weights_at_all", "a tag that nobody knows")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("weights.safetensors", "weights.npz", "weights.pth"):
            path = Path(folder) / name
            _hold_refused(subject, str(path), f"{name}, which is not there,")
            path.write_bytes(b"no weights at all")
            _hold_refused(subject, str(path), f"{name}, which holds a text,")


class _Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


@check("weights.pickle", needs=["weights"])
def pickled(subject: Subject) -> None:
    """A file of weights that is a pickle of something else raises WeightsError, and none of its code runs.

    Why: a pickle is a program, and checkpoints are downloaded from strangers.
    Caught: ``torch.load`` before 2.6, which ran whatever was in the file (CVE-2025-32434 even with
    ``weights_only=True``).
    Mend: ``torch.load(..., weights_only=True)``, safetensors, or ``np.load(..., allow_pickle=False)``.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in ("weights.pth", "weights.bin", "weights.npz"):
            path, trap = Path(folder) / name, Path(folder) / "sprung"
            path.write_bytes(pickle.dumps({"weight": _Trap(str(trap))}, protocol=2))
            _hold_refused(subject, str(path), f"{name}, a pickle that runs code,")
            subject.expect(not trap.exists(), f"the code in {name} was run", "no code is run", "it was", code="")
