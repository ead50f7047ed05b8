"""The plugin of the backend ``transformers``: what it declares, without importing its framework."""

from __future__ import annotations

from featreg.plugin import BackendSpec, Case, hookimpl
from featreg_torch import CAPABILITIES

__all__ = ["CAPABILITIES"]


@hookimpl
def featreg_backends() -> list[BackendSpec]:
    """The one backend of this plugin."""
    return [
        BackendSpec(
            name="transformers",
            factory="featreg_transformers.backend:TransformersBackend",
            requirements=("torch>=2.6", "transformers>=5.23", "pillow"),
            capabilities=CAPABILITIES,
            summary="the vision models of Hugging Face transformers",
            url="https://huggingface.co/docs/transformers",
            install='pip install "featreg[transformers]"',
        )
    ]


@hookimpl
def featreg_conformance_cases(backend: str) -> list[Case]:
    """A plain transformer of one size, a convolutional and a hierarchical network, each held against raw hooks."""
    from featreg_transformers.conformance import cases

    return cases()
