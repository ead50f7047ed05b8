"""The plugin of the backend ``torchvision``: what it declares, without importing its framework."""

from __future__ import annotations

from collections.abc import Iterator

from featreg.plugin import BackendSpec, Case, hookimpl
from featreg_torch import CAPABILITIES as TORCH_CAPABILITIES

CAPABILITIES = (*TORCH_CAPABILITIES, "output_stride")
"""What the backend supports; ``output_stride`` where torchvision can dilate the model."""


@hookimpl
def featreg_backends() -> list[BackendSpec]:
    """The one backend of this plugin."""
    return [
        BackendSpec(
            name="torchvision",
            factory="featreg_torchvision.backend:TorchvisionBackend",
            requirements=("torch>=2.4", "torchvision>=0.19"),
            capabilities=CAPABILITIES,
            summary="torchvision's models, tapped through torch.fx",
            url="https://pytorch.org/vision/",
            install='pip install "featreg[torchvision]"',
        )
    ]


@hookimpl
def featreg_conformance_cases(backend: str) -> Iterator[Case]:
    """What the conformance kit tries, with an oracle for each model."""
    from featreg_torchvision.cases import conformance_cases

    return conformance_cases()
