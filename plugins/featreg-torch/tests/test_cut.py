"""Parameters that no requested layer reads are dropped; those that are read, however it is done, stay."""

import torch
from torch import nn
from torch.nn import functional

from featreg_torch.cut import Watch, drop_unused


class Net(nn.Module):
    """``body`` and ``bias`` are read, ``mask`` and ``head`` are not; ``tied`` is the weight of ``body``."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.bias = nn.Parameter(torch.zeros(4))
        self.mask = nn.Parameter(torch.zeros(4))
        self.register_buffer("scale", torch.ones(4))
        self.head = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.tied = nn.Conv2d(3, 4, 3)
        self.tied.weight = self.body.weight

    def forward(self, images):
        x = self.norm(self.body(images)) + self.bias.view(1, -1, 1, 1)
        x = functional.relu(x).flatten(2).transpose(1, 2)
        return self.attention(x, x, x)[0]


def read_by(network, images):
    with Watch(network) as watch:
        network(images)
    return watch.seen


def test_what_a_run_reads_is_found_also_where_no_module_reads_it():
    network = Net().eval()
    names = read_by(network, torch.rand(1, 3, 8, 8))
    read = {"body.weight", "body.bias", "bias", "norm.weight", "norm.running_mean", "attention.in_proj_weight"}
    assert read <= names
    assert "tied.weight" in names, "one tensor, two names"
    assert not names & {"mask", "head.1.weight", "tied.bias", "scale"}


@torch.no_grad()
def test_what_is_not_read_is_let_go_and_the_values_stay():
    torch.manual_seed(0)
    network, images = Net().eval(), torch.rand(2, 3, 8, 8)
    expected = network(images)
    drop_unused(network, read_by(network, images))
    assert torch.equal(network(images), expected)
    left = dict(network.named_parameters())
    assert not [name for name in left if name.startswith("head") or name in ("mask", "tied.bias")]
    assert not list(network.head.buffers())
    assert network.norm.num_batches_tracked is not None, "training counts batches, though evaluation does not"
    assert network.scale is not None, "a buffer of a module in use stays"


def test_nothing_read_is_nothing_left():
    network = Net()
    drop_unused(network, frozenset())
    assert not list(network.parameters())
    assert not list(network.buffers())
