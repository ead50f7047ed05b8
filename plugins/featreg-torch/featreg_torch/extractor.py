"""An opened torch network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from featreg.plugin import Array, BackendExtractor, FeatureInfo, ModelInfo, Size, errors

__all__ = ["TorchExtractor"]

_SIZES = 4096
"""How many input sizes an extractor remembers the shapes of."""


class TorchExtractor(BackendExtractor):
    """Runs a tapped network in evaluation mode, without a graph unless ``grad`` is set, outside of any autocast."""

    def __init__(
        self,
        *,
        info: ModelInfo,
        features: tuple[FeatureInfo, ...],
        network: nn.Module,
        taps: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        grad: bool,
        measure: Callable[[Size], tuple[FeatureInfo, ...]],
    ) -> None:
        self.info = info
        self.features = features
        self._network: nn.Module | None = network
        self._taps: nn.Module | None = taps
        self._device = device
        self._dtype = dtype
        self._grad = grad
        self._measure = measure
        self._measured: dict[Size, tuple[FeatureInfo, ...]] = {}

    @property
    def module(self) -> nn.Module | None:
        return self._network

    def is_native(self, array: Array) -> bool:
        return isinstance(array, torch.Tensor)

    def forward(self, batch: Any) -> tuple[torch.Tensor, ...]:
        assert self._taps is not None, "a closed extractor is not called"
        assert self._network is not None
        for module in (self._network, self._taps):
            if module.training:  # a caller's train() does not reach an extraction
                module.eval()
        with self._modes():
            outputs: tuple[torch.Tensor, ...] = self._taps(self.prepare(batch))
        return outputs

    def pool(self, array: torch.Tensor, info: FeatureInfo, how: str) -> torch.Tensor:
        with self._modes():
            pooled: torch.Tensor = super().pool(array, info, how)
        return pooled

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

    def prepare(self, batch: Array) -> torch.Tensor:
        """A batch on the device in the network's number format; uint8 RGB is normalised there."""
        images = _dense(batch) if isinstance(batch, torch.Tensor) else torch.from_numpy(_writable(batch))
        images = images.to(self._device, non_blocking=True)
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
        taps, self._network, self._taps = self._taps, None, None
        if taps is not None:  # a graph and its module refer to each other: let go of the weights at once
            for held in (taps._modules, taps._parameters, taps._buffers):
                held.clear()


def _dense(images: torch.Tensor) -> torch.Tensor:
    if images.is_meta or images.layout != torch.strided:
        got = "a tensor without data" if images.is_meta else str(images.layout)
        raise errors.InputError("images of this kind are not taken", "a dense tensor (N, 3, H, W)", got)
    return images.clone() if images.is_inference() else images


def _writable(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array as torch can share it: torch warns of read-only memory and refuses negative strides."""
    shareable = batch.flags.writeable and all(stride >= 0 for stride in batch.strides) and batch.dtype.isnative
    return batch if shareable else np.array(batch, dtype=batch.dtype.newbyteorder("="))
