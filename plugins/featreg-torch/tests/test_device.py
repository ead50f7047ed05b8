"""Devices by name, never a silent CPU."""

import pytest
import torch

from featreg.plugin import errors
from featreg_torch.device import find_device


def test_the_cpu_is_there():
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["nonsense", "mps:0", "meta"])
def test_other_devices_are_refused(name):
    with pytest.raises(errors.DeviceError):
        find_device(name)


def test_cuda_without_cuda_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(errors.DeviceError, match="no CUDA device"):
        find_device("cuda")


def test_a_cuda_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(errors.DeviceError, match="cuda:0 to cuda:1"):
        find_device("cuda:2")
