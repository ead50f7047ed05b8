"""The plugin of the backend ``mindspore``: what it declares, without importing its framework."""

from __future__ import annotations

from collections.abc import Iterable

from featreg.plugin import BackendSpec, Case, hookimpl

CAPABILITIES = ("native_array", "native_names", "synthetic_weights", "weights")


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


@hookimpl
def featreg_conformance_cases(backend: str) -> Iterable[Case]:
    """A network of each kind that the backend tells apart, with an oracle."""
    from featreg_mindspore.cases import cases

    return list(cases())
