"""Taps keep what a module made, at the moment it made it."""

import threading

import pytest
import torch
from torch import nn

from featreg.plugin import FeatureInfo, errors
from featreg_torch.taps import HookTaps, Take


class Copy(nn.Module):
    """Keeps the tensor as the network made it."""

    def forward(self, inputs, output):
        return output.clone()


class Net(nn.Module):
    """An in-place activation overwrites ``norm``, ``act`` runs twice, ``head`` comes last, ``spare`` never runs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)
        self.spare = nn.Linear(2, 2)
        self.ran = []

    def forward(self, images):
        x = self.act(self.norm(self.conv(images)))
        x = self.act(self.second(x))
        self.ran.append("body")
        x = self.head(x.mean((2, 3)))
        self.ran.append("head")
        return x


def run(network, images, wanted):
    yield "scores", network(images)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 8, 8)


def copies(*sources):
    return [Copy() for _ in sources]


def taps_on(network, *sources, stop_after=None):
    return HookTaps(network, sources, copies(*sources), stop_after, run=run)


@torch.no_grad()
def test_in_place_operations_do_not_reach_a_tap(network, images):
    (found,) = taps_on(network, "norm")(images)
    expected = network.norm(network.conv(images))
    assert (expected < 0).any()  # the activation that follows would have removed these
    assert torch.equal(found, expected)


@torch.no_grad()
def test_a_module_that_runs_twice_counts_with_its_last_output(network, images):
    taps = taps_on(network, "act")
    (found,) = taps(images)
    first = network.act(network.norm(network.conv(images)))
    assert torch.equal(found, network.second(first).relu())
    assert taps.events == 2


@torch.no_grad()
def test_order_is_the_request_s_and_repeats_have_storage_of_their_own(network, images):
    scores, conv, again = taps_on(network, "scores", "conv", "conv")(images)
    assert torch.equal(scores, network(images))
    assert torch.equal(conv, again)
    assert conv.data_ptr() != again.data_ptr()


@torch.no_grad()
def test_the_network_stops_after_the_last_tap(network, images):
    taps = taps_on(network, "norm", "second")
    taps(images)
    assert network.ran == ["body", "head"]
    network.ran.clear()
    stopped = taps_on(network, "norm", "second", stop_after=taps.events)
    assert torch.equal(stopped(images)[0], network.norm(network.conv(images)))
    assert network.ran == []


def hooks_of(network):
    return sum(len(module._forward_hooks) for module in network.modules())


@torch.no_grad()
def test_no_hook_stays_behind(network, images):
    taps = taps_on(network, "conv")
    taps(images)
    assert hooks_of(network) == 0
    with pytest.raises(RuntimeError):
        taps(torch.zeros(2, 5, 8, 8))
    assert hooks_of(network) == 0


def test_what_does_not_run_or_is_no_tensor_is_refused(network, images):
    with pytest.raises(errors.CapabilityError, match="spare did not run"):
        taps_on(network, "spare")(images)

    class Two(nn.Module):
        def forward(self, images):
            return images, images

    take = Take(FeatureInfo("0", 3, 1, "map"), "nchw", 0)
    with pytest.raises(errors.CapabilityError, match="one tensor"):
        HookTaps(nn.Sequential(Two()), ["0"], [take], run=run)(images)


@torch.no_grad()
def test_threads_get_their_own_batches(network, images):
    taps = taps_on(network, "conv")
    batches = [torch.full((1, 3, 8, 8), float(k)) for k in range(16)]
    expected = [network.conv(batch) for batch in batches]
    found = [None] * 16

    def work(k):
        found[k] = taps(batches[k])[0]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_take_arranges_every_layout():
    inputs = torch.zeros(2, 3, 16, 24)
    info = FeatureInfo("x", 5, 8, "map")
    nhwc = torch.randn(2, 2, 3, 5)
    assert torch.equal(Take(info, "nhwc", 0)(inputs, nhwc), torch.einsum("nhwc->nchw", nhwc))
    tokens = torch.randn(2, 7, 5)
    grid = Take(info, "nld", 1)(inputs, tokens)
    assert grid.shape == (2, 5, 2, 3)
    assert torch.equal(grid[:, :, 1, 2], tokens[:, 6])
    assert torch.equal(grid[:, :, 0, 1], tokens[:, 2])
    assert torch.equal(Take(info, "lnd", 1)(inputs, tokens.transpose(0, 1)), grid)
    kept = FeatureInfo("x", 5, 8, "tokens", prefix_tokens=1)
    assert torch.equal(Take(kept, "lnd", 1)(inputs, tokens.transpose(0, 1)), tokens)
    for output in (
        Take(info, "nchw", 0)(inputs, grid),
        Take(FeatureInfo("v", 5, None, "vector"), "nd", 0)(inputs, tokens[0]),
    ):
        assert output.is_contiguous()
        assert output.untyped_storage().nbytes() == output.nbytes


def test_gradients_go_through(network, images):
    images.requires_grad_()
    (found,) = taps_on(network, "norm")(images)
    found.square().sum().backward()
    expected = torch.autograd.grad(network.norm(network.conv(images)).square().sum(), images)[0]
    assert torch.equal(images.grad, expected)
