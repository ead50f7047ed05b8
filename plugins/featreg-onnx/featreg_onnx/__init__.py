"""The plugin of the backend ``onnx``: what it declares, without importing its framework."""

from __future__ import annotations

from featreg.plugin import BackendSpec, Case, hookimpl

CAPABILITIES = ("cuda", "float16", "native_array", "native_names", "thread_safe")
"""The most that a file can do: CUDA where onnxruntime has it, float16 where the file computes in it."""


@hookimpl
def featreg_backends() -> list[BackendSpec]:
    """The one backend of this plugin."""
    return [
        BackendSpec(
            name="onnx",
            factory="featreg_onnx.backend:OnnxBackend",
            requirements=("onnx>=1.16", "onnxruntime>=1.18"),
            capabilities=CAPABILITIES,
            summary="any .onnx file by its path, through onnxruntime",
            url="https://onnxruntime.ai",
            install='pip install "featreg[onnx]"',
        )
    ]


@hookimpl
def featreg_conformance_cases(backend: str) -> list[Case]:
    """Two small networks, one of each kind, written to a folder of this user's."""
    from featreg_onnx.cases import cases

    return cases()
