"""The torch runtime that featreg's torch backends share, and the backend ``torch`` for modules of the caller's own.

This module imports no framework: plugins read :data:`CAPABILITIES` from it when they declare their backends.
"""

from __future__ import annotations

from featreg.plugin import BackendSpec, hookimpl

CAPABILITIES = (
    "bfloat16",
    "cuda",
    "float16",
    "grad",
    "native_array",
    "native_names",
    "synthetic_weights",
    "thread_safe",
    "weights",
)
"""What every backend on this runtime supports."""

OWN_CAPABILITIES = tuple(name for name in CAPABILITIES if name not in ("weights", "synthetic_weights"))
"""What a module of the caller's own supports, which keeps its weights."""


@hookimpl
def featreg_backends() -> list[BackendSpec]:
    """The one backend of this plugin."""
    return [
        BackendSpec(
            name="torch",
            factory="featreg_torch.own:OwnModules",
            requirements=("torch>=2.4",),
            capabilities=OWN_CAPABILITIES,
            summary="your own torch modules, through featreg.from_module",
            url="https://pytorch.org",
            install='pip install "featreg[torch]"',
            wraps=("torch.nn.modules.module.Module",),
        )
    ]
