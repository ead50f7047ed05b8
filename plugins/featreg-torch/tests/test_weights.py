"""Checkpoints: tensors only, every key accounted for."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from featreg.plugin import errors
from featreg_torch.weights import is_path, load_into, read_checkpoint


@pytest.fixture
def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.mark.parametrize(
    "wrap", [lambda state: state, lambda state: {"state_dict": state}, lambda state: {"model": state}]
)
def test_a_state_dict_comes_back(network, tmp_path, wrap):
    torch.save(wrap(network.state_dict()), tmp_path / "w.pth")
    twin = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    load_into(twin, read_checkpoint(str(tmp_path / "w.pth")), "w.pth")
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in network.state_dict().items())


def test_safetensors_come_back(network, tmp_path):
    save_file(dict(network.state_dict()), tmp_path / "w.safetensors")
    read = read_checkpoint(str(tmp_path / "w.safetensors"))
    assert read.keys() == network.state_dict().keys()
    assert torch.equal(read["0.weight"], network[0].weight)


class Trap:
    def __reduce__(self):
        return (open, ("/dev/null",))


def test_a_pickle_is_refused(network, tmp_path):
    torch.save(network, tmp_path / "module.pth")
    (tmp_path / "trap.pth").write_bytes(pickle.dumps(Trap()))
    for name in ("module.pth", "trap.pth"):
        with pytest.raises(errors.WeightsError) as caught:
            read_checkpoint(str(tmp_path / name))
        assert name in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04rest"])
def test_rubbish_is_a_weights_error(tmp_path, content):
    for suffix in (".pth", ".safetensors"):
        (tmp_path / f"w{suffix}").write_bytes(content)
        with pytest.raises(errors.WeightsError):
            read_checkpoint(str(tmp_path / f"w{suffix}"))


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(errors.WeightsError, match="no checkpoint"):
            read_checkpoint(str(path))


def test_no_state_dict_is_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(errors.WeightsError, match="no state_dict"):
        read_checkpoint(str(tmp_path / "list.pth"))


def test_every_key_that_does_not_fit_is_listed(network):
    state = dict(network.state_dict())
    state["0.weight"] = torch.zeros(4, 3, 5, 5)
    state["extra"] = state.pop("1.bias")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(errors.WeightsError) as caught:
        load_into(network, state, "w.pth")
    text = str(caught.value)
    assert "1 missing: 1.bias" in text
    assert "1 unexpected: extra" in text
    assert "0.weight (4, 3, 5, 5) for (4, 3, 3, 3)" in text
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_paths_and_tags_are_told_apart(tmp_path):
    (tmp_path / "plain").touch()
    assert is_path("w.pth")
    assert is_path("./weights")
    assert is_path(str(tmp_path / "plain"))
    assert not is_path("IMAGENET1K_V2")
    assert not is_path("a1_in1k")


def test_the_prefix_of_data_parallel_is_taken_off(network, tmp_path):
    torch.save(nn.DataParallel(network).state_dict(), tmp_path / "w.pth")
    assert read_checkpoint(str(tmp_path / "w.pth")).keys() == network.state_dict().keys()


def test_counters_may_be_missing_and_other_types_are_refused(network):
    state = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    load_into(network, state, "w.pth")
    with pytest.raises(errors.WeightsError, match=r"of another type: 0\.weight torch\.int8"):
        load_into(network, {**state, "0.weight": state["0.weight"].to(torch.int8)}, "w.pth")
