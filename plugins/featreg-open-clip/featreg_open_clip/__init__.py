"""The plugin of the backend ``open_clip``: what it declares, without importing its framework."""

from __future__ import annotations

from collections.abc import Iterable

from featreg.plugin import BackendSpec, Case, hookimpl
from featreg_torch import CAPABILITIES as TORCH_CAPABILITIES

CAPABILITIES = (*TORCH_CAPABILITIES, "text")


@hookimpl
def featreg_backends() -> list[BackendSpec]:
    """The one backend of this plugin."""
    return [
        BackendSpec(
            name="open_clip",
            factory="featreg_open_clip.backend:OpenClipBackend",
            requirements=("torch>=2.4", "open_clip_torch>=3.3", "timm"),
            capabilities=CAPABILITIES,
            summary="CLIP models of open_clip, image and text towers",
            url="https://github.com/mlfoundations/open_clip",
            install='pip install "featreg[open_clip]"',
        )
    ]


@hookimpl
def featreg_conformance_cases(backend: str) -> Iterable[Case]:
    """Small networks of every make, with oracles."""
    from featreg_open_clip.cases import cases

    return list(cases())
