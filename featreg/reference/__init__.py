"""The plugin of the ``numpy`` backend: a small network in plain NumPy, the reference for authors of backends."""

from __future__ import annotations

from featreg.plugin import BackendSpec, Case, hookimpl


@hookimpl
def featreg_backends() -> list[BackendSpec]:
    """The one backend of this plugin."""
    return [
        BackendSpec(
            name="numpy",
            factory="featreg.reference.backend:NumpyBackend",
            requirements=("numpy>=1.26",),
            capabilities=("native_array", "native_names", "synthetic_weights", "thread_safe"),
            summary="a small fixed convolutional net in plain NumPy, the reference",
        )
    ]


@hookimpl
def featreg_conformance_cases(backend: str) -> list[Case]:
    """The one model with an oracle, at a size of each shape."""
    from featreg.reference.oracle import oracle

    layers = ["C1", "C2", "C3", "C4", "C5", "features", "pooled", "logits"]
    sizes = [(96, 64), (64, 96), (65, 67), (1, 1)]
    return [Case("tinynet", layers, (64, 64), sizes, oracle=oracle)]
