"""What the oracles of the torch libraries share: building without memory, and hooks that copy at once."""

from __future__ import annotations

import contextlib
import copy
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.oracles.base import Oracle, RawRefusal, Shape, Size, explain, stirred

__all__ = ["TorchOracle"]

T = TypeVar("T")
_MODES = ("meta", "fake", "real")
_REAL_LIMIT = 700_000_000
"""Networks with more parameters than this are never given memory."""


class TorchOracle(Oracle):
    """A network of torch modules; a subclass says how to build it and what it gives besides its modules' outputs."""

    batch = 3  # another number than featreg's own probes use, and no common number of tokens or channels

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.how = "meta"
        self._seen = False
        self._networks: dict[str, nn.Module] = {}

    @abstractmethod
    def build(self, device: str) -> nn.Module:
        """The library's network with its own random weights."""

    @abstractmethod
    def run(self, network: Any, images: torch.Tensor, names: frozenset[str]) -> Iterator[tuple[str, Any]]:
        """Run the network and yield those named outputs that are no module's."""

    def network(self, device: str = "meta") -> Any:
        """The network on a device, built once; by way of real memory where its constructor needs real numbers."""
        if device not in self._networks:
            self._networks[device] = self._built(device).eval()
        return self._networks[device]

    def _built(self, device: str) -> nn.Module:
        try:
            with torch.device(device):
                return self.build(device)
        except Exception as error:
            if device != "meta":
                raise RawRefusal(explain(error)) from error
        return copy.deepcopy(self._networks.get("cpu") or self._built("cpu").eval()).to("meta")

    @property
    def prefix_tokens(self) -> int:
        return int(getattr(self.network(), "num_prefix_tokens", 0))

    @property
    def dilated(self) -> bool:
        convolutions = (module for module in self.network().modules() if isinstance(module, nn.Conv2d))
        return any(max(module.dilation) > 1 for module in convolutions)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network().parameters())

    def shapes(self, names: Sequence[str], size: Size, thorough: bool = True) -> Mapping[str, Shape]:
        refusal: RawRefusal | None = None
        first = _MODES.index(self.how)
        for mode in _MODES[first:] if thorough else _MODES[first : first + 1]:
            try:
                found = self._shapes(mode, names, size)
            except RawRefusal as error:
                refusal = refusal or error
                continue
            self.how, self._seen = (self.how if self._seen else mode), True
            return found
        assert refusal is not None
        raise refusal

    def _shapes(self, mode: str, names: Sequence[str], size: Size) -> Mapping[str, Shape]:
        device = "meta" if mode == "meta" else "cpu"
        if device == "cpu" and self.parameters > _REAL_LIMIT:
            raise RawRefusal(f"{self.parameters:,} parameters are too many for real memory")
        network = self.network(device)
        with _fake() if mode == "fake" else contextlib.nullcontext(), torch.device(device):
            images = torch.zeros(self.batch, 3, *size)
            return self._observe(network, images, names, lambda tensor: tuple(tensor.shape))

    def values(self, names: Sequence[str], images: np.ndarray[Any, Any]) -> Mapping[str, np.ndarray[Any, Any]]:
        return self._observe(
            self.network("cpu"), torch.from_numpy(images), names, lambda tensor: tensor.detach().clone().numpy()
        )

    def checkpoint(self, folder: Path) -> Path:
        generator = np.random.default_rng(1)
        state = self.network("cpu").state_dict()
        for tensor in {id(tensor): tensor for tensor in state.values()}.values():
            if tensor.is_floating_point():
                tensor.copy_(torch.from_numpy(stirred(tensor.numpy(), generator)))
        path = folder / "weights.pth"
        torch.save(state, path)
        return path

    def _observe(
        self, network: Any, images: torch.Tensor, names: Sequence[str], keep: Callable[[torch.Tensor], T]
    ) -> dict[str, T]:
        """What ``keep`` makes of each named output at the moment it is there: later operations may overwrite it."""
        found: dict[str, T] = {}

        def note(name: str, output: Any) -> None:
            found.pop(name, None)  # the last run of a module counts, in its place
            if isinstance(output, torch.Tensor):
                found[name] = keep(output)

        with torch.no_grad(), _hooks(network, names, note):
            try:
                for name, output in self.run(network, images, frozenset(names)):
                    if name in names:
                        note(name, output)
            except Exception as error:
                raise RawRefusal(explain(error)) from error
        return found


@contextlib.contextmanager
def _fake() -> Iterator[None]:
    """New tensors without data; torch's own log of what a network refuses stays silent, for it is an answer here."""
    logging.disable(logging.ERROR)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _hooks(network: nn.Module, names: Sequence[str], note: Callable[[str, Any], None]) -> Iterator[None]:
    modules = dict(network.named_modules(remove_duplicate=False))
    handles = [
        modules[name].register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name in dict.fromkeys(names)
        if name in modules and name
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
