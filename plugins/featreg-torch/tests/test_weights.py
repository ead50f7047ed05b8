"""Checkpoints: tensors only, whatever they are wrapped in, every key accounted for."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from featreg.plugin import WeightsReport, errors
from featreg_torch.weights import Checkpoint, load_into, pair_in_order, read_checkpoint


def make_network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.fixture
def network():
    torch.manual_seed(3)
    return make_network()


@pytest.fixture
def averaged(network):
    """The moving average of the network: every tensor is another."""
    return {name: value + 1 for name, value in network.state_dict().items()}


def as_checkpoint(state):
    return Checkpoint(state, WeightsReport("w.pth"))


def saved(content, tmp_path, name="w.pth"):
    torch.save(content, tmp_path / name)
    return str(tmp_path / name)


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".tar", ".torch"])
def test_a_state_dict_comes_back(network, tmp_path, suffix):
    read = read_checkpoint(saved(network.state_dict(), tmp_path, f"w{suffix}"))
    twin = make_network()
    report = load_into(twin, read)
    assert_same(twin.state_dict(), network.state_dict())
    assert report == WeightsReport(str(tmp_path / f"w{suffix}"), loaded=7)
    assert report.steps() == []


def test_safetensors_and_npz_come_back(network, tmp_path):
    save_file(dict(network.state_dict()), tmp_path / "w.safetensors")
    np.savez(tmp_path / "w.npz", **{name: value.numpy() for name, value in network.state_dict().items()})
    for suffix in ("safetensors", "npz"):
        assert_same(read_checkpoint(str(tmp_path / f"w.{suffix}")).state, network.state_dict())


def test_an_npz_with_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "w.npz", weight=np.array([{"a": 1}], dtype=object))
    with pytest.raises(errors.WeightsError, match="cannot be read"):
        read_checkpoint(str(tmp_path / "w.npz"))


class Trap:
    def __reduce__(self):
        return (open, ("/dev/null",))


def test_a_pickle_is_refused_and_the_error_says_how_to_convert_it(network, tmp_path):
    torch.save(network, tmp_path / "module.pth")
    torch.save({"state_dict": network.state_dict(), "best": np.float64(0.5), "args": Trap()}, tmp_path / "more.pth")
    (tmp_path / "trap.pth").write_bytes(pickle.dumps(Trap()))
    for name in ("module.pth", "more.pth", "trap.pth"):
        with pytest.raises(errors.WeightsError) as caught:
            read_checkpoint(str(tmp_path / name))
        assert name in str(caught.value)
        assert "torch.save the state_dict" in caught.value.remedy


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04rest"])
def test_rubbish_is_a_weights_error(tmp_path, content):
    for suffix in (".pth", ".safetensors", ".npz"):
        (tmp_path / f"w{suffix}").write_bytes(content)
        with pytest.raises(errors.WeightsError):
            read_checkpoint(str(tmp_path / f"w{suffix}"))


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(errors.WeightsError, match="no checkpoint"):
            read_checkpoint(str(path))


# --- fitting ----------------------------------------------------------------------------------------------------------


def test_wrappings_are_taken_off_and_reported(network, tmp_path):
    state = {f"module.model.{name}": value for name, value in network.state_dict().items()}
    read = read_checkpoint(saved({"epoch": 7, "model": {"state_dict": state}}, tmp_path))
    assert_same(read.state, network.state_dict())
    assert read.report.unwrapped == ("model", "state_dict")
    assert read.report.prefixes == ("module.", "model.")


def test_the_moving_average_is_preferred_unless_it_is_declined(network, averaged, tmp_path):
    path = saved({"state_dict": network.state_dict(), "state_dict_ema": averaged}, tmp_path)
    taken, declined = read_checkpoint(path), read_checkpoint(path, average=False)
    assert_same(taken.state, averaged)
    assert taken.report.averaged
    assert taken.report.unwrapped == ("state_dict_ema",)
    assert_same(declined.state, network.state_dict())
    assert not declined.report.averaged


def test_torchs_own_averaged_model_loads(network, tmp_path):
    average = torch.optim.swa_utils.AveragedModel(network)
    read = read_checkpoint(saved({"model": {}, "model_ema": average.state_dict()}, tmp_path))
    assert_same(read.state, network.state_dict())
    assert read.report.ignored == ("n_averaged",)


def test_every_key_that_does_not_fit_is_listed(network):
    state = dict(network.state_dict())
    state["0.weight"] = torch.zeros(4, 3, 5, 5)
    state["extra"] = state.pop("1.bias")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(errors.WeightsError) as caught:
        load_into(network, as_checkpoint(state))
    text = str(caught.value)
    assert "1 missing: 1.bias" in text
    assert "1 unexpected: extra" in text
    assert "0.weight (4, 3, 5, 5) for (4, 3, 3, 3)" in text
    assert_same(network.state_dict(), before)


def test_the_error_says_how_the_weights_were_unwrapped(network, tmp_path):
    with pytest.raises(errors.WeightsError, match="unwrapped: model") as caught:
        load_into(network, read_checkpoint(saved({"model": {"module.0.weight": torch.zeros(1)}}, tmp_path)))
    assert "taken off every name: 'module.'" in caught.value.got


def test_counters_may_be_missing_and_other_types_are_refused(network):
    state = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    load_into(network, as_checkpoint(state))
    with pytest.raises(errors.WeightsError, match=r"of another type: 0\.weight torch\.int8"):
        load_into(network, as_checkpoint({**state, "0.weight": state["0.weight"].to(torch.int8)}))


@pytest.mark.parametrize(
    "change",
    [
        {"1.weight": torch.zeros(9), "1.bias": torch.zeros(9)},  # other classes
        {"1.weight": None, "1.bias": None},  # no classifier
        {"1.weight": None, "1.bias": None, "1.0.weight": torch.zeros(2), "1.2.weight": torch.zeros(2)},  # another make
    ],
)
def test_what_is_not_needed_may_differ_and_is_reported(network, change):
    state = {name: value for name, value in {**network.state_dict(), **change}.items() if value is not None}
    spare = frozenset({"1.weight", "1.bias", "1.running_mean", "1.running_var"})
    with pytest.raises(errors.WeightsError):
        load_into(make_network(), as_checkpoint(state))
    twin = make_network()
    report = load_into(twin, as_checkpoint(state), lambda: spare)
    assert torch.equal(twin[0].weight, network[0].weight)
    assert report.kept == ("1.bias", "1.weight")
    assert report.ignored == tuple(sorted(name for name in change if name.count(".") == 2))


def test_a_weight_of_another_shape_is_not_said_to_be_absent(network):
    state = {**network.state_dict(), "1.weight": torch.zeros(9)}
    del state["1.bias"]
    report = load_into(make_network(), as_checkpoint(state), lambda: frozenset({"1.weight", "1.bias"}))
    assert (report.kept, report.misshaped) == (("1.bias", "1.weight"), ("1.weight",))
    assert "not in the file and not needed: 1.bias" in report.steps()
    assert report.loaded == 5


@pytest.mark.parametrize("wide", [9, None])
def test_in_order_another_classifier_is_left_out_where_it_is_not_needed(wide):
    names = ["body.weight", "body.bias", "fc.weight", "fc.bias"]
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    values = [torch.randn(4, 3), torch.randn(4), *([torch.zeros(wide, 4), torch.zeros(wide)] if wide else [])]
    checkpoint = as_checkpoint(dict(zip(names, values, strict=False)))
    with pytest.raises(errors.WeightsError, match="paired in order"):
        pair_in_order(network, checkpoint)
    spare = frozenset({"1.weight", "1.bias"})
    report = load_into(network, pair_in_order(network, checkpoint, lambda: spare), lambda: spare)
    assert torch.equal(network[0].weight, values[0])
    assert (report.loaded, report.kept) == (2, ("1.bias", "1.weight"))


def test_what_is_needed_may_not_differ(network):
    state = {**network.state_dict(), "0.weight": torch.zeros(4, 3, 5, 5)}
    with pytest.raises(errors.WeightsError, match=r"1 mis-shaped: 0\.weight"):
        load_into(network, as_checkpoint(state), lambda: frozenset({"1.weight", "1.bias"}))
