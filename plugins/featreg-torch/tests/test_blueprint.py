"""What a blueprint remembers of its network."""

import functools

from torch import nn

from featreg_torch.blueprint import Blueprint, Plan
from featreg_torch.infer import run_module
from featreg_torch.shapes import build_on_meta
from featreg_torch.taps import HookTaps, Outlet


def test_where_a_run_may_end_is_found_once_for_a_set_of_layers():
    network = build_on_meta(lambda: nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))))
    runs = []
    network[0].register_forward_hook(lambda *_: runs.append(1))
    outlets = [Outlet("0", kind="map"), Outlet("1", kind="map"), Outlet("1", head="features", kind="map")]
    blueprint = Blueprint(
        network, Plan(outlets, ["0", "1", "2"], functools.partial(HookTaps, run=run_module)), (64, 64)
    )
    runs.clear()
    first = blueprint.cut(outlets[:2])
    assert first.stop_after == 2
    assert first.used == {"0.weight", "0.bias", "1.weight", "1.bias"}
    once = len(runs)
    assert once > 0
    assert blueprint.cut([outlets[2], outlets[0]]) == first, "the same places in another order, one by another name"
    assert len(runs) == once
    assert blueprint.cut(outlets[:1]).used == {"0.weight", "0.bias"}
    assert len(runs) > once
