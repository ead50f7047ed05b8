from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from featreg_mindspore import onednn

X86 = platform.machine().lower() in {"x86_64", "amd64"}
AVX2 = 0x7

OPEN = "from featreg_mindspore.backend import MindsporeBackend; backend = MindsporeBackend(); "
EFFECTIVE = (
    "import ctypes; from featreg_mindspore.onednn import library_path; "
    "isa = ctypes.CDLL(str(library_path())).dnnl_get_effective_cpu_isa(); "
)
TORCH = "import torch; torch.nn.functional.conv2d(torch.zeros(2, 16, 56, 56), torch.zeros(64, 16, 3, 3))"


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in onednn.USER_SETTINGS}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    return result.stdout.strip().splitlines()[-1]


@pytest.mark.skipif(not X86, reason="the cap concerns x86 alone")
def test_the_cap_reaches_the_library_and_leaves_the_environment() -> None:
    code = f"import os; before = dict(os.environ); {OPEN}{EFFECTIVE}print(backend.cap, isa, before == dict(os.environ))"
    cap, isa, same = last_line(python(code)).split()
    assert cap == "capped"
    assert int(isa) & ~AVX2 == 0
    assert same == "True"


@pytest.mark.skipif(not X86, reason="the cap concerns x86 alone")
@pytest.mark.parametrize("variable", onednn.USER_SETTINGS)
def test_a_users_own_setting_stands(variable: str) -> None:
    cap, isa = last_line(python(f"{OPEN}{EFFECTIVE}print(backend.cap, isa)", **{variable: "SSE41"})).split()
    assert cap == "user"
    assert isa == "1"  # dnnl_cpu_isa_sse41


@pytest.mark.skipif(not X86, reason="the cap concerns x86 alone")
def test_torch_keeps_its_own_instruction_set() -> None:
    def isa_of_torch(code: str) -> str:
        lines = python(code, ONEDNN_VERBOSE="1").stdout.splitlines()
        return next(line for line in lines if ",cpu,isa:" in line)

    assert isa_of_torch(OPEN + TORCH) == isa_of_torch(TORCH)


@pytest.mark.skipif(not X86, reason="the cap concerns x86 alone")
def test_a_cap_that_comes_too_late_is_told() -> None:
    result = python(f"{EFFECTIVE}{OPEN}print(isa, backend.cap)")
    isa, _, cap = last_line(result).partition(" ")
    late = bool(int(isa) & ~AVX2)
    assert cap == ("too late" if late else "capped")
    assert ("RuntimeWarning: MindSpore ran before" in result.stderr) == late


@pytest.mark.skipif(not X86, reason="the cap concerns x86 alone")
def test_capping_twice_is_no_news() -> None:
    result = python(f"{OPEN}network = backend.info('resnet18'); {OPEN}print(backend.cap)")
    assert last_line(result) == "capped"
    assert "RuntimeWarning" not in result.stderr


def test_a_library_without_the_function_is_told_and_borne(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onednn, "library_path", lambda: tmp_path / "libdnnl.so")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for name in onednn.USER_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    with pytest.warns(RuntimeWarning, match="cannot be capped"):
        assert onednn.cap_instruction_set() == "unavailable"


def test_other_architectures_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    for name in onednn.USER_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    assert onednn.cap_instruction_set() == "other architecture"


def test_the_light_module_imports_no_framework() -> None:
    code = "import sys, featreg_mindspore; print({'mindspore', 'mindcv', 'torch'} & set(sys.modules))"
    assert last_line(python(code)) == "set()"


def test_a_process_that_ends_with_a_network_alive_says_nothing() -> None:
    result = python(f"{OPEN}from featreg_mindspore.networks import build; network = build('resnet18'); print('done')")
    assert last_line(result) == "done"
    assert "Exception ignored" not in result.stderr
