"""The cap on MindSpore's own oneDNN, without which its convolutions crawl on machines with AVX-512.

MindSpore 2.10 asks its oneDNN for convolutions on plain NCHW arrays. For those larger than 1x1 the implementation that
oneDNN picks with AVX-512 wraps its reference kernel (``jit_uni_ncsp:conv+ref:any`` in ``ONEDNN_VERBOSE=1``), tens of
times slower than the one that it picks when capped at AVX2 (``x64:gemm:jit``). The cap is set through
``dnnl_set_max_cpu_isa`` (oneDNN's manual, "CPU dispatcher control") on the very library file that MindSpore has loaded:
other frameworks in the process carry their own oneDNN and are not touched, nor is the environment. A user who sets
``ONEDNN_MAX_CPU_ISA`` or ``DNNL_MAX_CPU_ISA`` decides alone.
"""

from __future__ import annotations

import ctypes
import os
import platform
import warnings
from pathlib import Path
from typing import Literal, TypeAlias

from featreg_mindspore.libraries import mindspore

__all__ = ["USER_SETTINGS", "Outcome", "cap_instruction_set", "library_path"]

Outcome: TypeAlias = Literal["capped", "user", "other architecture", "unavailable", "too late"]

USER_SETTINGS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_AVX2 = 0x7  # dnnl_cpu_isa_avx2
_SUCCESS = 0
_X86 = ("x86_64", "amd64", "i386", "i686", "x86")


def cap_instruction_set() -> Outcome:
    """Cap MindSpore's oneDNN at AVX2, before its first primitive; says what came of it. Harmless when repeated.

    Warns, and goes on at the library's own speed, where the library or its function is not to be found
    (``unavailable``) or has already settled on an instruction set (``too late``).
    """
    if any(os.environ.get(name) for name in USER_SETTINGS):
        return "user"
    if platform.machine().lower() not in _X86:
        return "other architecture"
    try:
        library = ctypes.CDLL(str(library_path()))
        refused = library.dnnl_set_max_cpu_isa(_AVX2) != _SUCCESS
        beyond = refused and library.dnnl_get_effective_cpu_isa() & ~_AVX2
    except (OSError, AttributeError) as error:
        _warn(f"MindSpore's oneDNN cannot be capped ({error})")
        return "unavailable"
    if beyond:  # asking settles it as well, so it is asked only where it had been settled before
        _warn("MindSpore ran before its oneDNN could be capped")
        return "too late"
    return "capped"


def library_path() -> Path:
    """The oneDNN library inside the installed MindSpore; raises FileNotFoundError."""
    folder = Path(mindspore.__file__).parent / "lib"
    found = sorted(folder.glob("*dnnl*"))
    if not found:
        raise FileNotFoundError(f"no oneDNN library in {folder}")
    return found[0]


def _warn(problem: str) -> None:
    remedy = "if convolutions are slow, set ONEDNN_MAX_CPU_ISA=AVX2 before Python starts"
    warnings.warn(f"{problem}; {remedy}", RuntimeWarning, stacklevel=4)
