"""Shapes given at once are those that torch works out, operation by operation; what torch refuses stays refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from featreg_torch.quick import QuickShapes


def on_meta(*shape, dtype=torch.float32, last=False):
    tensor = torch.empty(*shape, device="meta", dtype=dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if last else tensor


def lstm(tensor, **options):
    return nn.LSTM(5, 8, device="meta", **options)(tensor)


CALLS = {
    "batch_norm": lambda: nn.BatchNorm2d(6, device="meta").eval()(on_meta(2, 6, 5, 4, last=True)),
    "batch_norm_training": lambda: functional.batch_norm(on_meta(1, 6, 5), None, None, training=True),
    "layer_norm": lambda: nn.LayerNorm((5, 4), device="meta")(on_meta(2, 6, 5, 4, last=True)),
    "layer_norm_bare": lambda: functional.layer_norm(on_meta(2, 6, 5).transpose(1, 2), (6,)),
    "group_norm": lambda: nn.GroupNorm(3, 6, device="meta")(on_meta(2, 6, 5, 4)),
    "group_norm_last": lambda: nn.GroupNorm(3, 6, device="meta")(on_meta(2, 6, 5, 4, last=True)),
    "gelu": lambda: functional.gelu(on_meta(2, 6, 5).transpose(1, 2), approximate="tanh"),
    "hardswish": lambda: functional.hardswish(on_meta(2, 6, 5, 4, last=True)),
    "softmax": lambda: on_meta(2, 6, 5).transpose(1, 2).softmax(-1),
    "softmax_double": lambda: on_meta(2, 5).softmax(-1, dtype=torch.float64),
    "linear": lambda: nn.Linear(5, 7, device="meta")(on_meta(2, 6, 5)),
    "add_spread": lambda: on_meta(2, 6, 5, 4) + on_meta(6, 1, 1),
    "add_spread_both": lambda: on_meta(2, 1, 5) * on_meta(6, 1),
    "add_mixed": lambda: on_meta(2, 6) + on_meta(2, 6, dtype=torch.float64),
    "add_orders": lambda: on_meta(2, 6, 5, 4) + on_meta(2, 6, 5, 4, last=True),
    "whole_numbers": lambda: on_meta(2, 6, dtype=torch.int64) / 2,
    "power": lambda: on_meta(2, 6, 5).transpose(0, 2) ** 2,
    "upsample": lambda: functional.interpolate(on_meta(2, 6, 5, 4), (9, 7), mode="bilinear"),
    "upsample_last": lambda: functional.interpolate(on_meta(2, 6, 5, 4, last=True), scale_factor=2, mode="bicubic"),
    "lstm": lambda: lstm(on_meta(2, 6, 5), batch_first=True, bidirectional=True)[0],
    "lstm_layers": lambda: lstm(on_meta(6, 2, 5), num_layers=3, bias=False)[1][0],
    "lstm_projected": lambda: lstm(on_meta(2, 6, 5), proj_size=3)[0],
    "lstm_alone": lambda: lstm(on_meta(6, 5))[0],
    "initialisation": lambda: nn.init.trunc_normal_(on_meta(4, 3), std=0.02),
    "attention": lambda: nn.MultiheadAttention(8, 2, batch_first=True, device="meta").eval()(*[on_meta(2, 5, 8)] * 3)[
        0
    ],
}
REFUSED = {
    "lstm": lambda: lstm(on_meta(2, 6, 7)),
    "lstm_states": lambda: nn.LSTM(5, 8, device="meta")(on_meta(2, 6, 5), (on_meta(1, 2, 8), on_meta(1, 6, 8))),
    "batch_norm": lambda: nn.BatchNorm2d(7, device="meta").eval()(on_meta(2, 6, 5, 4)),
    "layer_norm": lambda: nn.LayerNorm(7, device="meta")(on_meta(2, 6)),
    "group_norm": lambda: functional.group_norm(on_meta(2, 6, 5), 3, weight=on_meta(5)),
    "group_norm_groups": lambda: functional.group_norm(on_meta(2, 6, 5), 4),
    "group_norm_operation": lambda: torch.native_group_norm(on_meta(2, 6, 5), None, None, 2, 6, 5, 4, 1e-5),
    "group_norm_no_groups": lambda: torch.native_group_norm(on_meta(2, 6, 5), None, None, 2, 6, 5, 0, 1e-5),
    "normal": lambda: on_meta(4).normal_(0, -1),
    "normal_whole": lambda: on_meta(4, dtype=torch.int64).normal_(),
    "inverse_error": lambda: on_meta(4, dtype=torch.int64).erfinv_(),
    "clamp": lambda: on_meta(4, dtype=torch.int64).clamp_(0.5),
    "clamp_by_nothing": lambda: on_meta(4).clamp_(),
    "linear": lambda: nn.Linear(4, 7, device="meta")(on_meta(2, 6, 5)),
    "add": lambda: on_meta(2, 6) + on_meta(2, 5),
    "upsample": lambda: functional.interpolate(on_meta(2, 6, 5, 4), (0, 7), mode="bilinear"),
}


def layout(tensor):
    """Shape, type, and strides along the axes that have more than one element."""
    strides = [stride for stride, side in zip(tensor.stride(), tensor.shape, strict=True) if side > 1]
    return tuple(tensor.shape), tensor.dtype, tensor.device.type, strides


@pytest.mark.parametrize("name", CALLS)
@torch.no_grad()
def test_layouts_are_those_of_torch(name):
    expected = layout(CALLS[name]())
    with QuickShapes():
        found = layout(CALLS[name]())
    assert found == expected


@pytest.mark.parametrize("name", REFUSED)
@torch.no_grad()
def test_what_torch_refuses_is_refused(name):
    with pytest.raises((RuntimeError, ValueError, ZeroDivisionError)) as expected:
        REFUSED[name]()
    with pytest.raises(expected.type), QuickShapes():
        REFUSED[name]()


@torch.no_grad()
def test_real_tensors_keep_their_values():
    images = torch.randn(2, 3, 4, 4)
    norm = nn.BatchNorm2d(3).eval()
    with QuickShapes():
        assert torch.equal(norm(images) + 1, norm.forward(images).add(1))
        assert torch.all(torch.empty(3).fill_(2).mul_(2) == 4)


@torch.no_grad()
def test_common_operations_are_answered_without_torch_working_them_out():
    class Reached(TorchDispatchMode):
        seen = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen = (*self.seen, str(func))
            return func(*args, **(kwargs or {}))

    norm, tensor = nn.BatchNorm2d(6, device="meta").eval(), on_meta(2, 6, 5, 4)
    with Reached() as reached, QuickShapes():
        norm(tensor)
    assert "aten.native_batch_norm.default" not in reached.seen


@torch.no_grad()
def test_a_recurrent_network_is_not_run_step_by_step():
    class Counted(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    network = nn.LSTM(5, 8, device="meta")
    counts = []
    for length in (2, 50):
        with Counted() as counted, QuickShapes():
            network(on_meta(length, 3, 5))
        counts.append(counted.calls)
    assert counts[0] == counts[1]
