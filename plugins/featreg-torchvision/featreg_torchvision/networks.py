"""torchvision's models by family: how each is built without weights, and which part of it runs on single images."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torchvision
from torch import nn
from torchvision.models import ResNet, VisionTransformer, get_model, get_model_builder
from torchvision.models.mobilenetv3 import MobileNetV3

from featreg.plugin import errors
from featreg_torchvision.published import adjust, input_options

__all__ = [
    "backbone_in",
    "build_network",
    "dilates",
    "family",
    "float_twin",
    "imaged_part",
    "is_vit",
    "renamed",
    "undilated",
]

_QUANTIZED = "quantized_"
_NATIVE_STRIDE = 32
_REPLACED = {32: (False, False, False), 16: (False, False, True), 8: (False, True, True)}
"""What ``replace_stride_with_dilation`` says of a ResNet's last three stages for each output stride."""


def family(model: str) -> str:
    """A model's family, as torchvision's packages divide them: ``"classification"``, ``"detection"``, ``"video"``, …"""
    package = get_model_builder(model).__module__.removeprefix(f"{torchvision.models.__name__}.")
    return package.partition(".")[0] if "." in package else "classification"


def is_vit(model: str) -> bool:
    """Whether a model is built for one image size, which its weights then say (``min_size``)."""
    return bool(_class_of(model) is VisionTransformer)


def float_twin(model: str) -> str:
    """The model whose floating-point weights fit: a quantised model's twin, else the model itself."""
    return model.removeprefix(_QUANTIZED)


def undilated(model: str) -> str:
    """The model that has a dilated model's stages, undilated: of ``fcn_resnet50`` the classifier that it stands on."""
    return model.partition("_")[2] if family(model) == "segmentation" else model


def renamed(model: str, name: str) -> str:
    """What a module of the undilated model is called in a model: segmentation cuts out a whole net or its features."""
    return f"backbone.{name.removeprefix('features.')}" if family(model) == "segmentation" else name


def backbone_in(network: nn.Module, model: str) -> str:
    """The module whose levels are a network's; empty where it is the network itself."""
    if family(model) == "detection":
        return "backbone.body" if hasattr(network.backbone, "body") else "backbone"
    return {"optical_flow": "feature_encoder", "segmentation": "backbone"}.get(family(model), "")


def build_network(
    model: str, *, image_size: int | None = None, published: str | None = None, output_stride: int | None = None
) -> nn.Module:
    """A network with random weights.

    ``image_size`` is the side of the images for a ViT, ``published`` the tag of torchvision's own weights where the
    network is to be as torchvision makes it for them. Raises CapabilityError for an ``output_stride`` that it cannot
    have.
    """
    options: dict[str, Any] = input_options(_class_of(model)) if published else {}
    if is_vit(model) and image_size is not None:
        options["image_size"] = image_size
    # neither a backbone from the network nor an int8 engine; with the auxiliary head that published weights have
    fixed = {"weights_backbone": None, "quantize": False, "aux_loss": True}
    parameters = inspect.signature(get_model_builder(model)).parameters
    options |= {name: value for name, value in fixed.items() if name in parameters}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet and inception_v3, of their initialisation
        network = _get(model, output_stride, weights=None, **options)
    if published:
        adjust(network, model, published)
    return network


def _get(model: str, output_stride: int | None, **options: Any) -> nn.Module:
    dilation = _dilation(model, output_stride)
    try:
        network: nn.Module = get_model(model, **options, **dilation)
    except NotImplementedError as error:
        if output_stride is None:
            raise
        raise _no_stride(model, output_stride) from error
    return network


def dilates(model: str) -> bool:
    """Whether torchvision can dilate a model: ResNets of bottleneck blocks, and MobileNetV3."""
    return model not in ("resnet18", "resnet34", "quantized_resnet18") and bool(_strides(model))


def _strides(model: str) -> Sequence[int]:
    if family(model) not in ("classification", "quantization"):
        return ()
    if issubclass(_class_of(model), ResNet):
        return tuple(_REPLACED)
    return (_NATIVE_STRIDE, 16) if issubclass(_class_of(model), MobileNetV3) else ()


def _dilation(model: str, output_stride: int | None) -> dict[str, Any]:
    if output_stride is None:
        return {}
    if output_stride not in _strides(model):
        raise _no_stride(model, output_stride)
    if issubclass(_class_of(model), MobileNetV3):
        return {"dilated": output_stride != _NATIVE_STRIDE}
    return {"replace_stride_with_dilation": _REPLACED[output_stride]}


def _no_stride(model: str, output_stride: int | None) -> errors.CapabilityError:
    return errors.CapabilityError(
        f"torchvision:{model} cannot be built with output_stride={output_stride}",
        "8, 16 or 32 for ResNets of bottleneck blocks, 16 or 32 for MobileNetV3",
        remedy="leave output_stride out, or choose another model",
    )


def imaged_part(network: nn.Module, model: str) -> nn.Module:
    """What runs on a batch of images alone, its modules under their own names in the network.

    Of a detector that is the backbone (the rest takes proposals or anchors), of RAFT the two encoders (the rest takes
    what they make of two images); of all others the network itself.
    """
    if family(model) == "detection":
        return _Parts(network, "backbone")
    if family(model) == "optical_flow":
        return _Parts(network, "feature_encoder", "context_encoder")
    return network


class _Parts(nn.Module):
    """Parts of a network, each of which takes the images."""

    def __init__(self, network: nn.Module, *parts: str) -> None:
        super().__init__()
        for part in parts:
            self.add_module(part, network.get_submodule(part))

    def forward(self, images: Any) -> tuple[Any, ...]:
        return tuple(part(images) for part in self.children())


def _class_of(model: str) -> Any:
    return inspect.signature(get_model_builder(model)).return_annotation
