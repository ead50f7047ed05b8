"""Mutants that leave something behind: in the process, in the model, in other threads and extractors."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
import numpy as np

from featreg.arrays import Array, to_numpy
from featreg.conformance.mutants.base import Changed, Double, DoubleExtractor, Values, like, mutant
from featreg.plugin import BackendExtractor
from featreg.spec import ExtractionRequest, FeatureInfo, ModelInfo, Size


def _has_torch(info: ModelInfo) -> bool:
    return "torch" in sys.modules


@mutant("state.random")
class SeedsEverything(Double):
    """Seeds the global generators to make its own weights repeat."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        np.random.seed(0)
        random.seed(0)
        return self.inner.open(request)


@mutant("state.random")
class DrawsGlobally(DoubleExtractor):
    """Draws from NumPy's global generator in every call."""

    def forward(self, batch: Array) -> Sequence[Array]:
        np.random.random()
        return self.inner.forward(batch)


@mutant("state.process")
class ChangesDirectory(Double):
    """Changes the working directory to load its weights."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        os.chdir("/" if os.getcwd() != "/" else os.path.expanduser("~"))
        return self.inner.open(request)


@mutant("state.process")
class SetsEnvironment(DoubleExtractor):
    """Sets a variable of the environment for everyone."""

    def forward(self, batch: Array) -> Sequence[Array]:
        os.environ["FEATREG_MUTANT_THREADS"] = str(time.monotonic_ns())
        return self.inner.forward(batch)


@mutant("state.process")
class SilencesNumpy(DoubleExtractor):
    """Turns NumPy's warnings of overflow off."""

    def forward(self, batch: Array) -> Sequence[Array]:
        np.seterr(over="ignore", divide="raise" if np.geterr()["divide"] == "ignore" else "ignore")
        return self.inner.forward(batch)


@mutant("state.framework", when=_has_torch)
class TurnsGradientsOff(DoubleExtractor):
    """Turns torch's gradients off, and leaves them so."""

    def forward(self, batch: Array) -> Sequence[Array]:
        torch: Any = sys.modules["torch"]
        torch.set_grad_enabled(not torch.is_grad_enabled())
        return self.inner.forward(batch)


@mutant("state.framework", when=_has_torch)
class TunesTheFramework(DoubleExtractor):
    """Lets cuDNN choose among its kernels for everyone, as long as it is open."""

    def __init__(self, inner: BackendExtractor, request: ExtractionRequest) -> None:
        super().__init__(inner, request)
        self.flags: Any = sys.modules["torch"].backends.cudnn
        self.before = self.flags.benchmark
        self.flags.benchmark = not self.before

    def close(self) -> None:
        self.flags.benchmark = self.before
        self.inner.close()


@mutant("state.framework", when=_has_torch)
class LowersPrecision(DoubleExtractor):
    """Lets products of float32 be less precise for everyone, as long as it is open."""

    def __init__(self, inner: BackendExtractor, request: ExtractionRequest) -> None:
        super().__init__(inner, request)
        torch: Any = sys.modules["torch"]
        self.before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium" if self.before == "highest" else "highest")

    def close(self) -> None:
        sys.modules["torch"].set_float32_matmul_precision(self.before)
        self.inner.close()


@mutant("state.exceptions")
class SpoiltByRefusal(DoubleExtractor):
    """Looks at a batch before it is checked, and keeps what it saw."""

    refused = 0

    def is_native(self, array: Array) -> bool:
        self.refused += np.ndim(array) != 4
        return self.inner.is_native(array)

    def forward(self, batch: Array) -> Sequence[Array]:
        factor = np.float32(1 + self.refused)
        return [like(to_numpy(array) * factor, array) for array in self.inner.forward(batch)]


@mutant("state.recovers")
class LeftInTheMiddle(DoubleExtractor):
    """Counts the calls that it began; after one that failed, the next gives other values."""

    begun = 0

    def forward(self, batch: Array) -> Sequence[Array]:
        self.begun += 1
        outputs = [like(to_numpy(array) * np.float32(self.begun), array) for array in self.inner.forward(batch)]
        self.begun -= 1
        return outputs


@mutant("lifecycle.close")
class CloseFails(DoubleExtractor):
    """Cannot be closed."""

    def close(self) -> None:
        self.inner.close()
        raise RuntimeError("nothing to close")


@mutant("lifecycle.close")
class CloseSpoilsOthers(DoubleExtractor):
    """Takes what it shares with other extractors along when it is closed."""

    closed: ClassVar[int] = 0

    def forward(self, batch: Array) -> Sequence[Array]:
        factor = np.float32(1 + type(self).closed)
        return [like(to_numpy(array) * factor, array) for array in self.inner.forward(batch)]

    def close(self) -> None:
        type(self).closed += 1
        self.inner.close()


@mutant("lifecycle.growth")
class KeepsExtractors(DoubleExtractor):
    """Keeps a list of all extractors that were ever opened."""

    opened: ClassVar[list[Any]] = []

    def __init__(self, inner: BackendExtractor, request: ExtractionRequest) -> None:
        super().__init__(inner, request)
        self.opened.append(self)


@mutant("lifecycle.calls_growth")
class KeepsOutputs(DoubleExtractor):
    """Appends what it gives to a list."""

    def __init__(self, inner: BackendExtractor, request: ExtractionRequest) -> None:
        super().__init__(inner, request)
        self.taps: list[Any] = []

    def forward(self, batch: Array) -> Sequence[Array]:
        outputs = self.inner.forward(batch)
        self.taps.append([np.array(to_numpy(array)) for array in outputs])
        return outputs


@mutant("lifecycle.threads")
class GlobalBatch(DoubleExtractor):
    """Keeps the batch of the current call where all threads see it."""

    batch: ClassVar[Array] = None

    def forward(self, batch: Array) -> Sequence[Array]:
        GlobalBatch.batch = batch
        time.sleep(0.005)
        return self.inner.forward(GlobalBatch.batch)


@mutant("lifecycle.process")
class DiffersByProcess(Changed):
    """Draws from something that every process has another of."""

    def change(self, array: Values, info: FeatureInfo) -> Values:
        return array * np.float32(1.01)


@mutant("lifecycle.described_elsewhere")
class DescribesByProcess(Double):
    """Says something of the model that other processes do not."""

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        info = self.inner.info(model, input_size)
        return attrs.evolve(info, deviations=(*info.deviations, f"seen by process {os.getpid()}"))


class _Handle(np.ndarray[Any, Any]):
    def __reduce__(self) -> Any:
        raise TypeError("a handle of the framework cannot be pickled")


@mutant("lifecycle.pickled_features")
class Handles(DoubleExtractor):
    """Gives arrays that hold on to the framework and cannot be pickled."""

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return self.inner.to_numpy(array).view(_Handle)


@mutant("lifecycle.offline")
class AsksTheHub(Double):
    """Asks a server for something newer before it opens a model, and goes on without an answer."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        with contextlib.suppress(OSError), socket.socket() as connection:
            connection.settimeout(0.01)
            connection.connect(("127.0.0.1", 9))
        return self.inner.open(request)
