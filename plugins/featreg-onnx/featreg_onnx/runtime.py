"""Sessions of onnxruntime."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as states

from featreg.plugin import errors
from featreg_onnx.reading import follow_links, loading

__all__ = ["Session", "find_providers", "has_cuda", "open_session"]

Session = Any
"""onnxruntime.InferenceSession, which has no types."""

_CUDA = "CUDAExecutionProvider"
_SILENT = 4  # what goes wrong is raised, and need not be printed too
_FOLDER = "session.model_external_initializers_file_folder_path"

Providers = list[tuple[str, dict[str, Any]]]


def has_cuda() -> bool:
    """Whether the onnxruntime that is installed was built for CUDA."""
    return _CUDA in onnxruntime.get_available_providers()


def find_providers(device: str) -> Providers:
    """The execution providers of a device, the wanted one first; raises DeviceError and CapabilityError."""
    cpu: Providers = [("CPUExecutionProvider", {})]
    if device == "cpu":
        return cpu
    found = re.fullmatch(r"cuda(?::(\d+))?", device)
    if found is None:
        raise errors.DeviceError(f"onnxruntime has no device {device!r} here", "cpu, cuda or cuda:N", device)
    if not has_cuda():
        raise errors.CapabilityError(
            "the onnxruntime that is installed has no CUDA",
            "device='cpu'",
            device,
            remedy="pip install onnxruntime-gpu",
        )
    return [(_CUDA, {"device_id": int(found[1] or 0), "use_tf32": 0}), *cpu]


def open_session(
    model: onnx.ModelProto, file: Path, providers: Providers, threads: int = 0, *, optimized: bool = True
) -> Session:
    """A session of a model, or of a part of one, whose weights may lie beside ``file``.

    Raises CapabilityError for an operator that onnxruntime does not have, DeviceError where the first provider does not
    work, and WeightsError for a graph that is none.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.use_deterministic_compute = True
    options.intra_op_num_threads = threads
    options.add_session_config_entry(_FOLDER, str(follow_links(model, file)))
    if not optimized:
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted = providers[0][0]
    with loading(file):
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
        except (states.NotImplemented, states.Fail) as error:
            raise errors.CapabilityError(
                f"onnxruntime {onnxruntime.__version__} does not run {str(file)!r}",
                "operators and a version of ONNX that it knows",
                str(error).splitlines()[0],
                remedy="pip install -U onnxruntime, or export the model for an older opset",
            ) from error
    if wanted not in session.get_providers():
        raise errors.DeviceError(f"onnxruntime cannot use {wanted}", wanted, ", ".join(session.get_providers()))
    return session
