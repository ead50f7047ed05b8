"""The plugin of the backend ``timm``: what it declares, without importing its framework."""

from __future__ import annotations

from collections.abc import Iterator

from featreg.plugin import BackendSpec, Case, hookimpl
from featreg_torch import CAPABILITIES as TORCH_CAPABILITIES

CAPABILITIES = (*TORCH_CAPABILITIES, "output_stride")


@hookimpl
def featreg_backends() -> list[BackendSpec]:
    """The one backend of this plugin."""
    return [
        BackendSpec(
            name="timm",
            factory="featreg_timm.backend:TimmBackend",
            requirements=("torch>=2.4", "timm>=1.0.31"),
            capabilities=CAPABILITIES,
            summary="the models of PyTorch Image Models",
            url="https://huggingface.co/docs/timm",
            install='pip install "featreg[timm]"',
        )
    ]


@hookimpl
def featreg_conformance_cases(backend: str) -> Iterator[Case]:
    """What the conformance kit tries, with an oracle for each model."""
    from featreg_timm.cases import conformance_cases

    return conformance_cases()
