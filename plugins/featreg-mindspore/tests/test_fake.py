"""Fake tensors against real runs, and the state of the process that they borrow."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pytest

from featreg.plugin import errors
from featreg_mindspore import networks
from featreg_mindspore.fake import faking, unfilled
from featreg_mindspore.libraries import mindcv, mindspore, nn
from featreg_mindspore.onednn import cap_instruction_set
from featreg_mindspore.runtime import check_device
from featreg_mindspore.trace import Event, trace

# Between them they take every Python method of a tensor that mindcv needs: sum, transpose, var, mean, chunk, …
MODELS = ["coat_lite_tiny", "mobilenet_v3_small_075", "pit_ti", "pvt_v2_b0", "resnest14", "visformer_tiny"]


@pytest.fixture(scope="module", autouse=True)
def _cap() -> None:
    cap_instruction_set()


def shape_of(array: Any) -> Any:
    if isinstance(array, list | tuple):
        return [shape_of(part) for part in array]
    return tuple(array.shape) if isinstance(array, mindspore.Tensor) else array


def outputs(events: list[Event]) -> list[Any]:
    return [(event.name, shape_of(event.output)) for event in events]


@pytest.mark.parametrize("model", MODELS)
def test_fake_shapes_are_the_real_ones(model: str) -> None:
    size = networks.default_size(model)
    fake, real = (networks.build(model, filled=False) for _ in range(2))
    assert outputs(trace(fake, size, fake=True)) == outputs(trace(real, size))


@pytest.mark.parametrize("size", [(193, 257), (33, 47)])
def test_fake_shapes_are_the_real_ones_at_odd_sizes(size: tuple[int, int]) -> None:
    fake, real = (networks.build("convnextv2_atto", filled=False) for _ in range(2))
    assert outputs(trace(fake, size, fake=True)) == outputs(trace(real, size))


def test_a_method_without_a_fake_of_its_own_gives_none_in_mindspore_and_a_shape_here() -> None:
    """Tensor.transpose is Python in MindSpore, and its device ``meta`` has nothing to run for it."""
    tensor, other = (mindspore.Tensor(np.zeros((2, 3, 4), np.float32)) for _ in range(2))
    with mindspore.DeviceCtx("meta"):
        assert tensor.transpose(0, 2, 1) is None
    with faking():
        assert tensor.transpose(0, 2, 1).shape == (2, 4, 3)
        assert tensor.is_meta  # read as a view, it is real no more: hence a network of its own for fake runs
    assert other.transpose(0, 2, 1).asnumpy().shape == (2, 4, 3)


def test_assigning_to_a_part_of_a_fake_tensor_raises() -> None:
    """The raw operation reads memory that a fake tensor does not have, and ends the process."""
    tensor = mindspore.Tensor(np.zeros((2, 3), np.float32))
    with faking(), pytest.raises(NotImplementedError, match="assign"):
        tensor[0] = 1
    tensor[0] = 1
    np.testing.assert_array_equal(tensor.asnumpy(), [[1, 1, 1], [0, 0, 0]])


@pytest.mark.parametrize("operation", [operator.iadd, operator.isub, operator.imul, operator.itruediv])
def test_an_operation_in_place_minds_the_shapes(operation: Callable[[Any, Any], Any]) -> None:
    """The raw device lets it pass, and complains on leaving, if at all: ResNeSt would seem to take any size."""
    with contextlib.suppress(ValueError), mindspore.DeviceCtx("meta"):
        one, other = (mindspore.Tensor(np.ones((2, side), np.float32)) + 0 for side in (3, 4))
        assert operation(one, other).shape == (2, 3)
    with faking():
        one, other = (mindspore.Tensor(np.ones((2, side), np.float32)) + 0 for side in (3, 4))
        with pytest.raises(ValueError, match="broadcast"):
            operation(one, other).shape  # noqa: B018  (errors come when the result is needed)
    with faking():  # anew: MindSpore may report an error again within one pass
        one = mindspore.Tensor(np.ones((2, 3), np.float32)) + 0
        assert operation(one, one).shape == (2, 3)


@pytest.mark.parametrize("fails", [False, True])
def test_device_mode_and_methods_come_back(fails: bool) -> None:
    before = dict(vars(mindspore.Tensor))
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    try:
        with pytest.raises(ZeroDivisionError) if fails else faking(), faking():
            assert mindspore.get_context("mode") == mindspore.PYNATIVE_MODE
            if fails:
                raise ZeroDivisionError
        assert mindspore.get_context("mode") == mindspore.GRAPH_MODE
    finally:
        mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    assert mindspore.get_context("device_target") == "CPU"
    assert {name: vars(mindspore.Tensor)[name] for name in before} == before
    assert not mindspore.Tensor(np.zeros(2)).is_meta
    np.testing.assert_array_equal((mindspore.Tensor(np.ones(2)) + 1).asnumpy(), [2, 2])


def test_a_network_that_is_refused_fake_leaves_no_hook() -> None:
    network = nn.Conv2d(4, 8, 3)
    with pytest.raises(errors.InputError) as caught:
        trace(network, (8, 8), fake=True)
    assert "8x8" in caught.value.got
    assert not network._forward_hook


def test_unfilled_parameters_cost_no_initialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("an initialiser ran")

    monkeypatch.setattr(mindspore.common.initializer.Normal, "_initialize", refuse)
    monkeypatch.setattr(mindspore.common.initializer.HeUniform, "_initialize", refuse)
    with pytest.raises(AssertionError, match="ran"):
        nn.Dense(3, 4, weight_init="normal")
    with unfilled():
        assert nn.Dense(3, 4, weight_init="normal").weight.shape == (4, 3)
        assert mindcv.create_model("resnet18").classifier.weight.shape == (1000, 512)
    with pytest.raises(AssertionError, match="ran"):
        nn.Dense(3, 4, weight_init="normal")


def test_another_thread_waits_until_the_device_computes_again() -> None:
    with ThreadPoolExecutor(1) as pool:
        with faking():
            asked = pool.submit(check_device, "cpu")
            wait([asked], timeout=0.2)  # enough to fail in, if it did not wait
        asked.result()
