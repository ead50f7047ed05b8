"""Mutants that treat tensors of torch otherwise than arrays of NumPy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from featreg.arrays import Array, to_numpy
from featreg.conformance.mutants.base import DoubleExtractor, declares, like, mutant


@mutant("arrays.native_input", when=declares("grad"))
class UnnormalisedTensors(DoubleExtractor):
    """Takes tensors of uint8 as they are, without mean and deviation."""

    def forward(self, batch: Array) -> Sequence[Array]:
        plain = self.is_native(batch) and to_numpy(batch).dtype.kind == "u"
        return self.inner.forward(batch.float() if plain else batch)


@mutant("arrays.native_input", when=declares("grad"))
class OtherTensors(DoubleExtractor):
    """Computes something else from tensors than from NumPy's arrays."""

    def forward(self, batch: Array) -> Sequence[Array]:
        outputs = self.inner.forward(batch)
        return [like(to_numpy(array)[::-1], array) for array in outputs] if self.is_native(batch) else outputs


@mutant("arrays.native_input_untouched", when=declares("grad"))
class NormalisesTensorsInPlace(DoubleExtractor):
    """Writes to the caller's tensor."""

    def forward(self, batch: Array) -> Sequence[Array]:
        outputs = self.inner.forward(batch)
        if self.is_native(batch):
            batch.zero_()
        return outputs


@mutant("arrays.autograd", when=declares("grad"))
class InferenceTensors(DoubleExtractor):
    """Gives tensors that no graph may hold."""

    def forward(self, batch: Array) -> Sequence[Array]:
        torch: Any = sys.modules["torch"]
        outputs = self.inner.forward(batch)
        with torch.inference_mode():
            return [array.clone() for array in outputs]
