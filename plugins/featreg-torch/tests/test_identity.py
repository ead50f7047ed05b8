"""What a module's weights are: others after a step, in another structure, or where an unsaved buffer differs."""

import pytest
import torch
from torch import nn

import featreg
from featreg_torch.identity import identify_module, watch_module


class Net(nn.Module):
    """A convolution, a norm, and a scale that no state_dict holds."""

    def __init__(self, stride=2):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, images):
        return self.norm(self.conv(images)) * self.scale


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def twin(net, **fields):
    other = Net(**fields)
    other.load_state_dict(net.state_dict())
    return other


def test_a_module_of_your_own_is_identified_by_its_state_as_it_is_now(net):
    with featreg.from_module(net, "conv", input_size=(32, 32)) as extractor:
        before = extractor.weights_identity()
        assert before.startswith("state sha256:")
        assert before == extractor.weights_identity()
        with torch.no_grad():
            net.conv.weight[0, 0, 0, 0] += 1
        assert extractor.weights_identity() != before


def test_weights_are_what_was_loaded_until_they_change(net):
    identify = watch_module(net, lambda: "loaded")
    net.eval()(torch.zeros(1, 3, 8, 8))
    net.scale += 1  # no part of the weights
    assert identify() == "loaded"
    for change in (
        lambda: torch.optim.SGD([net.conv.weight], 0.1).step(net.conv.weight.sum().backward),
        lambda: net.train()(torch.ones(2, 3, 8, 8)),  # statistics of the norm
        lambda: net.load_state_dict(Net().state_dict()),
        lambda: setattr(net.conv, "weight", nn.Parameter(torch.zeros_like(net.conv.weight))),
    ):
        identify = watch_module(net, lambda: "loaded")
        change()
        assert identify() == identify_module(net) != "loaded"


def test_equal_modules_are_equal_and_others_are_not(net):
    first, other = identify_module(net), twin(net)
    assert identify_module(other) == first
    assert identify_module(other.train(not other.training)) == first
    other.scale += 1
    assert identify_module(other) != first
    assert identify_module(twin(net, stride=1)) != first
    assert identify_module(twin(net).double()) != first


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_every_kind_of_tensor_has_an_identity(net):
    net.extra = nn.ParameterDict({"sparse": nn.Parameter(torch.eye(3).to_sparse()), "empty": torch.zeros(0, 2)})
    net.brief = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    net.register_buffer("flags", torch.tensor([True, False]))
    net.register_buffer("int8", torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.qint8))
    first = identify_module(net)
    net.brief.data[1] = 2
    assert identify_module(net) != first


def test_what_a_module_saves_besides_tensors_counts(net):
    class Threshold(nn.Identity):
        value = 1

        def get_extra_state(self):
            return {"value": self.value}

    net.threshold = Threshold()
    first = identify_module(net)
    net.threshold.value = 2
    assert identify_module(net) != first
