"""The plugin of the ``numpy`` backend: a small network in plain NumPy, the reference for authors of backends."""

from __future__ import annotations

from featreg.plugin import BackendSpec, hookimpl


@hookimpl
def featreg_backends() -> list[BackendSpec]:
    """The one backend of this plugin."""
    return [
        BackendSpec(
            name="numpy",
            factory="featreg.reference.backend:NumpyBackend",
            requirements=("numpy>=1.26",),
            capabilities=("native_array", "native_names"),
            summary="a small fixed convolutional net in plain NumPy, the reference",
        )
    ]
