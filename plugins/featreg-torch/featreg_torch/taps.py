"""Reading layers out of a network while it runs.

An :class:`Outlet` names a place where a tensor leaves the network. A :class:`Take` copies such a tensor at the moment
it is made, before a later in-place operation can overwrite it, and arranges it as the specification says.
:class:`HookTaps` runs a network with hooks on the modules that are wanted, and stops as soon as it has them all.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import attrs
import torch
from torch import nn

from featreg.plugin import FeatureInfo, Size, errors
from featreg_torch.state import lock_of

__all__ = ["Glance", "HookTaps", "Outlet", "Runner", "Stored", "Take", "as_tensor"]

Stored: TypeAlias = Literal["nchw", "nhwc", "nld", "lnd", "nd"]
"""How the network itself lays a tensor out."""

Runner: TypeAlias = Callable[[nn.Module, Any, frozenset[str]], Iterator[tuple[str, torch.Tensor]]]
"""Runs a network on a batch and yields, as they are made, the outputs that are no module's: ``(source, tensor)``.

The third argument holds the sources that are wanted, so that a runner can leave out what is not.
"""


@attrs.frozen
class Outlet:
    """A place where features leave a network.

    ``source`` is what the taps look for: a module, a graph node, or an output that a runner yields. ``kind`` None takes
    the kind that the tensor has by itself; ``"map"`` turns tokens into a map where ``reduction``, the side of a patch,
    is given. ``strides`` are those that the network is known to have, ``grids`` each with that of its map at the one
    size that the network takes, ``stored`` and ``channels`` help where the observed shapes alone do not tell the
    layout. ``sequence`` says that the tokens are no patches of the image, but those of a text, or the queries of an
    attention pool: always as many, whatever its size. ``scores`` marks what depends on the number of classes, besides
    the head ``logits``, or else may be missing from a checkpoint, such as a pooler.
    """

    source: str
    level: str | None = None
    index: int | None = None
    head: str | None = None
    kind: Literal["map", "tokens", "vector"] | None = None
    prefix_tokens: int = 0
    reduction: int | None = None
    strides: tuple[int, ...] = ()
    grids: tuple[tuple[int, Size], ...] = ()
    stored: Stored | None = None
    channels: int | None = None
    sequence: bool = False
    scores: bool = False


def as_tensor(output: Any, source: str) -> torch.Tensor:
    """The one tensor that a module returned; CapabilityError where it returned something else."""
    if not isinstance(output, torch.Tensor):
        raise errors.CapabilityError(
            f"{source!r} does not return one tensor", "a module with one output tensor", type(output).__name__
        )
    return output


class Glance(nn.Module):
    """Passes on what a network makes, None where that is no tensor; it may also not be made at all.

    ``mark`` is called each time that it is made.
    """

    def __init__(self, mark: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.mark = mark

    def forward(self, inputs: Any, output: Any) -> torch.Tensor | None:
        if self.mark is not None:
            self.mark()
        return output if isinstance(output, torch.Tensor) else None


class Take(nn.Module):
    """Keeps a tensor as (N, C, H, W), (N, L, D) or (N, D), contiguous, in storage of its own."""

    def __init__(self, info: FeatureInfo, stored: Stored, prefix_tokens: int) -> None:
        super().__init__()
        self.info = info
        self.stored = stored
        self.prefix_tokens = prefix_tokens

    def forward(self, inputs: Any, made: Any) -> torch.Tensor:
        output = as_tensor(made, self.info.name)
        if self.stored == "nhwc":
            output = output.permute(0, 3, 1, 2)
        elif self.stored == "lnd":
            output = output.transpose(0, 1)
        if self.info.kind == "map" and self.stored in ("nld", "lnd"):
            positions = output[:, self.prefix_tokens :].transpose(1, 2)
            output = positions.reshape(*positions.shape[:2], *self._grid(inputs))
        return output.clone(memory_format=torch.contiguous_format)

    def _grid(self, inputs: torch.Tensor) -> tuple[int, int]:
        return self.info.grid(int(inputs.shape[2]), int(inputs.shape[3]))


class _AllFound(Exception):
    """Every wanted tensor has been made: what the network would do next is not needed."""


@contextlib.contextmanager
def _ending_orderly(network: nn.Module, found_all: Callable[[], bool]) -> Iterator[None]:
    """End a run without an exception: once all is found, modules return None and what fails because of it is dropped.

    For torch.export, which keeps a stack of the modules that run: an exception through them would leave it as it is.
    """

    def until_found(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if found_all():
            return None
        try:
            return forward(*args, **kwargs)
        except Exception:
            if not found_all():
                raise
            return None

    modules = [module for module in network.modules() if "forward" not in vars(module)]
    for module in modules:
        vars(module)["forward"] = functools.partial(until_found, module.forward)
    try:
        yield
    except Exception:
        if not found_all():
            raise
    finally:
        for module in modules:
            del vars(module)["forward"]


def _is_checkpointing(network: nn.Module) -> bool:
    """Whether gradient checkpointing is on, as timm and open_clip, or transformers, call it."""
    names = ("grad_checkpointing", "gradient_checkpointing")
    return any(getattr(module, name, False) is True for module in network.modules() for name in names)


def _unseen(missing: Sequence[str]) -> errors.CapabilityError:
    return errors.CapabilityError(
        f"{', '.join(missing)} did not run: with gradient checkpointing the network runs what is inside by itself",
        "modules that run as a whole",
        remedy="ask for the last block inside by its native name, or switch gradient checkpointing off",
    )


class HookTaps(nn.Module):
    """A network whose forward returns the tensors of ``sources``, each through its take, in that order.

    Hooks are on the modules only while a forward runs. A module that runs several times counts with its last output;
    ``read`` says what of an output is meant, where a library's modules return more than a tensor.
    ``events`` is how many wanted tensors a whole run makes: counted in a run without ``stop_after``, and given back as
    ``stop_after`` it lets later runs end early. Runs on one network are serialised, since its hooks are shared.
    """

    def __init__(
        self,
        network: nn.Module,
        sources: Sequence[str],
        takes: Sequence[nn.Module],
        stop_after: int | None = None,
        *,
        run: Runner,
        read: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.takes = nn.ModuleList(takes)
        self.sources = tuple(sources)
        self.run = run
        self.read = read
        self.stop_after = stop_after
        self.events = 0

    def forward(self, inputs: Any) -> tuple[Any, ...]:
        if torch.compiler.is_compiling():  # one thread, and locks cannot be traced
            return self._run(inputs, None)
        with lock_of(self.network):
            return self._run(inputs, threading.get_ident())

    def _run(self, inputs: Any, thread: int | None) -> tuple[Any, ...]:
        found: dict[int, Any] = {}
        events = 0

        def keep(source: str, output: Any) -> None:
            nonlocal events
            if thread is not None and threading.get_ident() != thread:  # another thread runs the network by itself
                return
            if events == self.stop_after:
                return
            for position, (name, take) in enumerate(zip(self.sources, self.takes, strict=True)):
                if name == source:
                    found[position] = take(inputs, output)
            events += 1
            if events == self.stop_after and not exporting:
                raise _AllFound

        exporting = torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
        ending = (
            _ending_orderly(self.network, lambda: events == self.stop_after) if exporting else contextlib.nullcontext()
        )
        handles = [
            module.register_forward_hook(lambda _, __, output, source=source: keep(source, self._given(output)))
            for source, module in self._wanted()
        ]
        try:
            with ending:
                for source, output in self.run(self.network, inputs, frozenset(self.sources)):
                    if source in self.sources:
                        keep(source, output)
        except _AllFound:
            pass
        except Exception as error:
            if (missing := self._missing(found)) and _is_checkpointing(self.network):
                raise _unseen(missing) from error
            raise
        finally:
            for handle in handles:
                handle.remove()
        self.events = events
        if missing := self._missing(found):
            raise (
                _unseen(missing)
                if _is_checkpointing(self.network)
                else errors.CapabilityError(
                    f"{', '.join(missing)} did not run in the forward pass",
                    "modules that the network runs in evaluation mode",
                )
            )
        return tuple(found.get(position) for position in range(len(self.sources)))

    def _missing(self, found: Collection[int]) -> list[str]:
        pairs = enumerate(zip(self.sources, self.takes, strict=True))
        return [source for k, (source, take) in pairs if k not in found and not isinstance(take, Glance)]

    def _given(self, output: Any) -> Any:
        return output if self.read is None else self.read(output)

    def _wanted(self) -> Iterator[tuple[str, nn.Module]]:
        modules = dict(self.network.named_modules())
        return ((source, modules[source]) for source in dict.fromkeys(self.sources) if source in modules)
