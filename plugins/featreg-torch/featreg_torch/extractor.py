"""An opened torch network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from featreg.plugin import Array, BackendExtractor, FeatureInfo, ModelInfo, Pool, Size, errors
from featreg_torch.module import FeatureModule
from featreg_torch.state import lock_of

__all__ = ["TorchExtractor"]

_SIZES = 4096
"""How many input sizes an extractor remembers the shapes of."""

_OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")
"""What a plain RuntimeError says where memory fails: of the CPU's allocator, of CUDA's own, of cuBLAS or cuDNN."""


class TorchExtractor(BackendExtractor):
    """Runs a tapped network in evaluation mode, without a graph unless ``grad`` is set, outside of any autocast."""

    def __init__(
        self,
        *,
        info: ModelInfo,
        features: tuple[FeatureInfo, ...],
        module: FeatureModule,
        device: torch.device,
        dtype: torch.dtype,
        grad: bool,
        measure: Callable[[Size], tuple[FeatureInfo, ...]],
    ) -> None:
        self.info = info
        self.features = features
        self._module: FeatureModule | None = module
        self._device = device
        self._dtype = dtype
        self._grad = grad
        self._measure = measure
        self._measured: dict[Size, tuple[FeatureInfo, ...]] = {}
        self.identify: Callable[[], str | None] | None = None

    def weights_identity(self) -> str | None:
        return None if self.identify is None else self.identify()

    @property
    def module(self) -> FeatureModule | None:
        return self._module

    def is_native(self, array: Array) -> bool:
        return isinstance(array, torch.Tensor)

    def forward(self, batch: Any) -> tuple[torch.Tensor, ...]:
        module = self._module
        assert module is not None, "a closed extractor is not called"
        with lock_of(module.network), self._modes(), _evaluating(module.taps):
            outputs: tuple[torch.Tensor, ...] = module.taps(self.prepare(batch))
        return outputs

    def pool(self, array: torch.Tensor, info: FeatureInfo, pool: Pool) -> torch.Tensor:
        with self._modes():
            pooled: torch.Tensor = super().pool(array, info, pool)
        return pooled

    def flatten(self, array: torch.Tensor) -> torch.Tensor:
        with self._modes():
            flat: torch.Tensor = super().flatten(array)
        return flat

    @contextlib.contextmanager
    def _modes(self) -> Iterator[None]:
        """The same modes whatever the caller's: gradients as requested, no inference mode, autocast or other device."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(self._grad))
            stack.enter_context(torch.autocast(self._device.type, enabled=False))
            if torch.get_default_device() != self._device:
                stack.enter_context(self._device)
            yield

    def to_device(self, batch: Array) -> torch.Tensor:
        images = _dense(batch) if isinstance(batch, torch.Tensor) else torch.from_numpy(_writable(batch))
        return images.to(self._device, non_blocking=True)

    def synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or (
            isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)
        )

    def free_memory(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def prepare(self, batch: Array) -> torch.Tensor:
        """A batch on the device in the network's number format; uint8 RGB is normalised there."""
        images = self.to_device(batch)
        if images.dtype != torch.uint8:
            return images.to(self._dtype)
        preprocess = self.info.preprocess
        if preprocess.color == "BGR":
            images = images.flip(1)
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=self._device).view(3, 1, 1)
            for values in (preprocess.mean, preprocess.std)
        )
        return images.float().div_(255).sub_(mean).div_(std).to(self._dtype)

    def measure(self, height: int, width: int) -> tuple[FeatureInfo, ...]:
        size = (height, width)
        if size not in self._measured:
            if len(self._measured) >= _SIZES:
                self._measured.clear()
            self._measured[size] = self._measure(size)
        return self._measured[size]

    def close(self) -> None:
        self._module = self.identify = None


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, whatever the caller has set; each module's own mode again afterwards.

    By way of ``train``, which some modules extend to forget what they keep for evaluation.
    """
    modes = {module: module.training for module in network.modules()}
    if not any(modes.values()):
        yield
        return
    network.eval()
    try:
        yield
    finally:
        network.train()
        for module, training in modes.items():
            module.training = training


def _dense(images: torch.Tensor) -> torch.Tensor:
    if images.is_meta or images.layout != torch.strided:
        got = "a tensor without data" if images.is_meta else str(images.layout)
        raise errors.InputError("images of this kind are not taken", "a dense tensor (N, 3, H, W)", got)
    return images.clone() if images.is_inference() else images


def _writable(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array as torch can share it: torch warns of read-only memory and refuses negative strides."""
    shareable = batch.flags.writeable and all(stride >= 0 for stride in batch.strides) and batch.dtype.isnative
    return batch if shareable else np.array(batch, dtype=batch.dtype.newbyteorder("="))
