"""The plugin of the backend ``mindspore``: what it declares, without importing its framework."""

from __future__ import annotations

from featreg.plugin import BackendSpec, hookimpl

CAPABILITIES = ("native_array", "native_names", "weights")


@hookimpl
def featreg_backends() -> list[BackendSpec]:
    """The one backend of this plugin."""
    return [
        BackendSpec(
            name="mindspore",
            factory="featreg_mindspore.backend:MindsporeBackend",
            requirements=("mindspore>=2.5", "mindcv>=0.3"),
            capabilities=CAPABILITIES,
            summary="mindcv's models on MindSpore, and Cells of your own",
            url="https://github.com/mindspore-lab/mindcv",
            install='pip install "featreg[mindspore]"',
            wraps=("mindspore.nn.cell.Cell",),
        )
    ]
