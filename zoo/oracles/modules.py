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
from zoo.survey import Module, Survey

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
        kept = self._networks.get("cpu")
        return (self._built("cpu").eval() if kept is None else copy.deepcopy(kept)).to("meta")

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
        def observe(network: nn.Module, images: torch.Tensor) -> Mapping[str, Shape]:
            return self._observe(network, images, names, lambda tensor: tuple(tensor.shape))

        return self._run_cheaply(observe, size, thorough)

    def survey(self, size: Size) -> Survey:
        return self._run_cheaply(self._surveyed, size, thorough=True)

    def confirm(self, size: Size) -> None:
        if self.parameters <= _REAL_LIMIT:
            self._run_in("real", lambda network, images: self._observe(network, images, (), torch.Tensor.detach), size)

    def _run_cheaply(self, work: Callable[[nn.Module, torch.Tensor], T], size: Size, thorough: bool) -> T:
        """What ``work`` gives with the cheapest tensors that get through."""
        refusal: RawRefusal | None = None
        first = _MODES.index(self.how)
        for mode in _MODES[first:] if thorough else _MODES[first : first + 1]:
            try:
                found = self._run_in(mode, work, size)
            except RawRefusal as error:
                refusal = refusal or error
                continue
            self.how, self._seen = (self.how if self._seen else mode), True
            return found
        assert refusal is not None
        raise refusal

    def _run_in(self, mode: str, work: Callable[[nn.Module, torch.Tensor], T], size: Size) -> T:
        device = "meta" if mode == "meta" else "cpu"
        if device == "cpu" and self.parameters > _REAL_LIMIT:
            raise RawRefusal(f"{self.parameters:,} parameters are too many for real memory")
        network = self.network(device)
        with _fake() if mode == "fake" else contextlib.nullcontext(), torch.device(device):
            return work(network, torch.zeros(self.batch, 3, *size))

    @abstractmethod
    def call(self, network: Any, images: torch.Tensor) -> Any:
        """What the library's own call gives for images."""

    def classes(self, result: Shape | None) -> int | None:
        """How many classes the network scores, whose own call gives ``result``; None where it scores none."""
        return result[1] if result is not None and len(result) == 2 else None

    def _surveyed(self, network: nn.Module, images: torch.Tensor) -> Survey:
        modules = {name: _module(name, module) for name, module in network.named_modules() if name}
        outputs: dict[str, Shape] = {}
        inputs: dict[str, Shape] = {}

        def note(name: str, taken: Any, output: Any) -> None:
            outputs.pop(name, None)
            outputs[name] = tuple(output.shape) if isinstance(output, torch.Tensor) else ()
            if modules[name].kernel is not None and taken and isinstance(taken[0], torch.Tensor):
                inputs[name] = tuple(taken[0].shape)

        with torch.no_grad(), _watched(network, list(modules), note):
            try:
                made = self.call(network, images)
            except Exception as error:
                raise RawRefusal(explain(error)) from error
        result = tuple(made.shape) if isinstance(made, torch.Tensor) else None
        height, width = images.shape[2:]
        return Survey(
            (height, width), self.batch, modules, outputs, inputs, result, self.prefix_tokens, self.classes(result)
        )

    def values(self, names: Sequence[str], images: np.ndarray[Any, Any]) -> Mapping[str, np.ndarray[Any, Any]]:
        return self._observe(
            self.network("cpu"), torch.from_numpy(images), names, lambda tensor: tensor.detach().clone().numpy()
        )

    def result(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            made: np.ndarray[Any, Any] = self.call(self.network("cpu"), torch.from_numpy(images)).numpy()
        return made

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
    with _watched(network, names, lambda name, _, output: note(name, output)):
        yield


@contextlib.contextmanager
def _watched(network: nn.Module, names: Sequence[str], note: Callable[[str, Any, Any], None]) -> Iterator[None]:
    """Tell the inputs and the output of each named module as it runs."""
    modules = dict(network.named_modules(remove_duplicate=False))
    handles = [
        modules[name].register_forward_hook(lambda _, inputs, output, name=name: note(name, inputs, output))
        for name in dict.fromkeys(names)
        if name in modules and name
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _module(name: str, module: nn.Module) -> Module:
    kind = type(module).__name__
    if isinstance(module, nn.Linear):
        return Module(name, kind, (1, 1), module.in_features, module.out_features)
    if isinstance(module, nn.Conv2d):
        return Module(name, kind, tuple(module.kernel_size), module.in_channels, module.out_channels)
    return Module(name, kind)
