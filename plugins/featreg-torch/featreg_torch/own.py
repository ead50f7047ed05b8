"""The backend ``torch``: modules of the caller's own, through ``featreg.from_module``."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import nn

from featreg.plugin import Backend, ExtractionRequest, ModelInfo, Preprocess, Size, errors
from featreg_torch import OWN_CAPABILITIES
from featreg_torch.blueprint import Blueprint, Plan
from featreg_torch.declared import has_class_token
from featreg_torch.device import DTYPES, find_device
from featreg_torch.extractor import TorchExtractor
from featreg_torch.identity import identify_module
from featreg_torch.infer import infer_outlets, run_module
from featreg_torch.shapes import probe
from featreg_torch.tapping import Tapping
from featreg_torch.taps import HookTaps

__all__ = ["OwnModules"]

_NATIVE = (224, 224)


class OwnModules(Backend):
    """Wraps any torch module that takes images (N, 3, H, W) and gives its features; it has no models by name."""

    def models(self) -> Sequence[str]:
        return ()

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        raise _nameless(model)

    def open(self, request: ExtractionRequest) -> TorchExtractor:
        raise _nameless(request.model)

    def wrap(
        self, module: nn.Module, request: ExtractionRequest, preprocess: Preprocess | None, input_size: Size | None
    ) -> TorchExtractor:
        if request.options:
            raise errors.CapabilityError("a module of your own takes no options", got=", ".join(request.options))
        device = find_device(request.device)
        _check_place(module, device, DTYPES[request.dtype])
        size = input_size or _NATIVE
        blueprint = _draw(module, size)
        info = ModelInfo(
            "torch",
            request.model,
            size,
            blueprint.measure(blueprint.outlets, size),
            preprocess or Preprocess(size, size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
            blueprint.rule,
            OWN_CAPABILITIES,
            native=blueprint.natives(size),
        )
        try:
            tapping = Tapping(blueprint, info, request.layers)
        except (errors.LayerError, errors.CapabilityError) as error:
            remedy = "module.named_modules() has the native names; levels and heads are those that were found in it"
            raise attrs.evolve(error, remedy=remedy) from None
        extractor = TorchExtractor(**tapping.parts(tapping.module(module), device, request))
        extractor.identify = functools.partial(identify_module, module)
        return extractor


def _nameless(model: str) -> errors.UnknownModelError:
    return errors.UnknownModelError(
        "the backend 'torch' has no models by name", got=repr(model), remedy="pass a module to featreg.from_module"
    )


def _draw(module: nn.Module, size: Size) -> Blueprint:
    try:
        network = _without_memory(module)
        names = [name for name, _ in network.named_modules() if name]
        channels = _find_channels(network, size)
        outlets = infer_outlets(network, size, channels)
        prefix_tokens = max((outlet.prefix_tokens for outlet in outlets), default=0)
        tap = functools.partial(HookTaps, run=run_module)
        plan = Plan(outlets, names, tap, prefix_tokens, class_token=has_class_token(network), channels=channels)
        return Blueprint(network, plan, size)
    except errors.FeatregError:
        raise
    except Exception as error:
        raise errors.CapabilityError(
            f"the shapes of {type(module).__name__} cannot be inferred at {size[0]}x{size[1]}",
            "a module whose forward takes images (N, C, H, W) and does not depend on their values",
            f"{type(error).__name__}: {error}",
            remedy="pass the input_size that the module is made for; one that decides by the values of its images, or "
            "takes other channels than three or those of its first convolution, cannot be described",
        ) from error


def _find_channels(network: nn.Module, size: Size) -> int:
    """The channels of a network's images: three where it takes them, else those of its first convolution."""
    first = next((module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d)), 3)
    if first == 3:
        return 3
    try:
        probe(HookTaps(network, [], [], run=run_module), size)
    except Exception:  # noqa: BLE001  (whatever a network raises for images that it does not take)
        return first
    return 3


def _without_memory(module: nn.Module) -> nn.Module:
    """A copy on torch's meta device, made without copying any weights, and without the caller's hooks."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for tensor in (*part._parameters.values(), *part._buffers.values(), *vars(part).values()):
            if isinstance(tensor, torch.Tensor):
                memo[id(tensor)] = _meta(tensor)
        memo[id(part._forward_hooks)] = type(part._forward_hooks)()
        own = {key: hook for key, hook in part._forward_pre_hooks.items() if _is_of_torch(hook)}
        memo[id(part._forward_pre_hooks)] = type(part._forward_pre_hooks)(copy.deepcopy(own))
    return copy.deepcopy(module, memo).float().eval()


def _meta(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _is_of_torch(hook: Any) -> bool:
    """Whether a hook makes a module's weights, as ``torch.nn.utils.weight_norm`` does."""
    return type(hook).__module__.startswith("torch.nn.utils")


def _check_place(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    for name, parameter in module.named_parameters():
        if parameter.device.type != device.type or device.index not in (None, parameter.device.index):
            raise errors.DeviceError(
                f"the module's parameter {name!r} is on another device",
                str(device),
                str(parameter.device),
                remedy=f"pass device={str(parameter.device)!r}, or move the module",
            )
        if parameter.is_floating_point() and parameter.dtype != dtype:
            raise errors.CapabilityError(
                f"the module's parameter {name!r} is of another type",
                str(dtype),
                str(parameter.dtype),
                remedy="pass its dtype, or convert the module",
            )
