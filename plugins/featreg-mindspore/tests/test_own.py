"""Cells of one's own through ``featreg.from_module``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import featreg
from featreg.plugin import errors
from featreg_mindspore.libraries import mindspore, nn

SIZE = (64, 64)
IMAGES = np.random.default_rng(3).standard_normal((2, 3, *SIZE)).astype(np.float32)


class Layer(nn.Cell):
    """Halves the resolution: a convolution, a norm and an activation."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, stride=2)
        self.norm = nn.BatchNorm2d(after)
        self.relu = nn.ReLU()

    def construct(self, x: Any) -> Any:
        return self.relu(self.norm(self.conv(x)))


class Net(nn.Cell):
    """Three layers as children of their own, pooled and classified: scenario 1 of mindcv's guide where it declares."""

    def __init__(self, feature_info: list[dict[str, Any]] | None = None) -> None:
        super().__init__()
        self.layer1, self.layer2, self.layer3 = Layer(3, 8), Layer(8, 12), Layer(12, 16)
        self.head = nn.Dense(16, 5)
        if feature_info is not None:
            self.feature_info = feature_info

    def construct(self, x: Any) -> Any:
        return self.head(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class Flat(nn.Cell):
    """One sequential cell with all layers: scenario 2."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.SequentialCell([Layer(3, 8), Layer(8, 12), Layer(12, 16)])
        self.feature_info = [entry(8, 2, "layers.0"), entry(12, 4, "layers.1"), entry(16, 8, "layers.2")]
        self.flatten_sequential = True

    def construct(self, x: Any) -> Any:
        return self.layers(x)


class Rewritten(nn.Cell):
    """Returns its levels, the last of them made by no cell: scenario 3."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1, self.stage2 = Layer(3, 8), Layer(8, 12)
        self.feature_info = [entry(8, 2, "stage1"), entry(12, 4, "sum")]
        self.is_rewritten = True

    def construct(self, x: Any) -> Any:
        first = self.stage1(x)
        second = self.stage2(first)
        return [first, second + second]


class Convolved(nn.Cell):
    """Pads in cells of their own, gates its channels, and classifies the pooled map by a 1x1 convolution (as BiT does).

    The gate squeezes to as many channels as there are classes.
    """

    def __init__(self, pool: bool = True) -> None:
        super().__init__()
        self.stem, self.pad = nn.Conv2d(3, 8, 3, stride=2), nn.ConstantPad2d(1, 0.0)
        self.max_pool = nn.MaxPool2d(3, 2, pad_mode="valid")
        self.layer = nn.SequentialCell(nn.Pad(((0, 0), (0, 0), (1, 1), (1, 1))), nn.Conv2d(8, 16, 3, 2, "valid"))
        self.squeeze, self.excite = nn.Conv2d(16, 5, 1), nn.Conv2d(5, 16, 1)
        self.pool = nn.AdaptiveAvgPool2d(1) if pool else nn.AvgPool2d(4, 4)
        self.classifier = nn.Conv2d(16, 5, 1, has_bias=True)

    def construct(self, x: Any) -> Any:
        x = self.layer(self.max_pool(self.pad(self.stem(x))))
        x = x * self.excite(self.squeeze(x.mean((2, 3), keep_dims=True))).sigmoid()
        return self.classifier(self.pool(x)).mean((2, 3))


def entry(channels: int, reduction: int, name: str) -> dict[str, Any]:
    return {"chs": channels, "reduction": reduction, "name": name}


def test_a_cell_is_identified_by_its_state_as_it_is_now() -> None:
    net = Net()
    with featreg.from_module(net, "layer1", input_size=SIZE) as extractor:
        before = extractor.weights_identity()
        assert before.startswith("state sha256:")
        assert extractor.weights_identity() == before
        net.head.bias.set_data(net.head.bias + 1)
        assert extractor.weights_identity() != before


def by_hand(network: Any, cells: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    found: dict[str, np.ndarray[Any, Any]] = {}
    named = dict(network.cells_and_names())
    handles = []
    for name in cells:

        def keep(_: Any, inputs: Any, output: Any, name: str = name) -> None:
            found[name] = output.asnumpy().copy()

        handles.append(named[name].register_forward_hook(keep))
    network(mindspore.Tensor(IMAGES))
    for handle in handles:
        handle.remove()
    return found


def test_levels_heads_and_names_of_a_cell_are_inferred() -> None:
    network = Net()
    wanted = ["C1", "C2", "C3", "features", "logits", "pooled", "layer2.conv"]
    with featreg.from_module(network, wanted, input_size=SIZE) as extractor:
        features = extractor(IMAGES)
        assert extractor.output_shapes((1, 3, 45, 70))["C3"] == (1, 16, 6, 9)
        assert featreg.from_module(network, 0, input_size=SIZE).info.model == "Net"
    network.set_train(False)
    cells = ["layer1", "layer2", "layer3", "layer3", "head"]
    expected = by_hand(network, [*cells, "layer2.conv"])
    for layer, cell in zip(wanted, cells, strict=False):
        np.testing.assert_array_equal(features[layer], expected[cell], err_msg=layer)
    np.testing.assert_array_equal(features["layer2.conv"], expected["layer2.conv"])
    assert features["pooled"].shape == (2, 16)


def test_a_convolution_of_one_position_takes_the_pooled_vector() -> None:
    network = Convolved()
    with featreg.from_module(network, ["pooled", "pool"], input_size=SIZE) as extractor:
        assert extractor.output_shapes((3, 3, 45, 70)) == {"pooled": (3, 16), "pool": (3, 16, 1, 1)}
        features = extractor(IMAGES)
    expected = by_hand(network.set_train(False), ["pool"])["pool"]
    np.testing.assert_array_equal(features["pool"], expected)
    np.testing.assert_array_equal(features["pooled"], expected[:, :, 0, 0])


def test_a_convolution_of_one_position_at_some_sizes_only_takes_no_vector() -> None:
    """A window of 4x4 leaves one position of an image of 32 to 63 pixels, and four of one of 64."""
    info = featreg.from_module(Convolved(pool=False), "C1", input_size=(32, 32)).info
    assert [feature.head for feature in info.features if feature.kind == "vector"] == ["logits"]


def test_padding_ends_no_level() -> None:
    """Alone or last, it computes nothing; with a layer behind it, it is a part of that layer's container."""
    info = featreg.from_module(Convolved(), "C1", input_size=SIZE).info
    found = {feature.level: (feature.name, feature.shape(1, *SIZE)[2:]) for feature in info.features if feature.level}
    assert found == {"C1": ("stem", (32, 32)), "C2": ("max_pool", (16, 16)), "C3": ("layer", (8, 8))}


def test_a_layer_is_a_layer_whatever_it_is_called() -> None:
    class ConvPad(nn.Conv2d):
        """A convolution, named after how it pads."""

    network = nn.SequentialCell(ConvPad(3, 8, 3, 2), Layer(8, 12))
    info = featreg.from_module(network, "C1", input_size=SIZE).info
    assert {feature.level: feature.name for feature in info.features if feature.level} == {"C1": "0", "C2": "1"}


def test_the_cell_keeps_its_parameters_its_mode_and_its_statistics() -> None:
    network = Net()
    network.set_train(True)
    network.layer2.set_train(False)
    before = {name: value.asnumpy().copy() for name, value in network.parameters_dict().items()}
    modes = [cell.training for _, cell in network.cells_and_names()]
    with featreg.from_module(network, "C1", input_size=SIZE) as extractor:
        extractor(IMAGES)
        assert extractor.module is network
    assert [cell.training for _, cell in network.cells_and_names()] == modes
    assert list(network.parameters_dict()) == list(before)
    for name, value in network.parameters_dict().items():
        np.testing.assert_array_equal(value.asnumpy(), before[name], err_msg=name)


@pytest.mark.parametrize(
    ("network", "channels"),
    [
        (Net([entry(8, 2, "layer1"), entry(16, 8, "layer3")]), {"C1": 8, "C3": 16}),
        (Flat(), {"C1": 8, "C2": 12, "C3": 16}),
        (Rewritten(), {"C1": 8, "C2": 12}),
    ],
    ids=["children", "flatten_sequential", "is_rewritten"],
)
def test_a_declaration_is_taken_at_its_word(network: Any, channels: dict[str, int]) -> None:
    with featreg.from_module(network, list(channels), input_size=SIZE) as extractor:
        info = extractor.info
        features = extractor(IMAGES)
        assert {feature.level: feature.channels for feature in info.features if feature.level} == channels
        assert [info.resolve(index).name for index in range(len(channels))] == [e["name"] for e in network.feature_info]
        for level, width in channels.items():
            assert features[level].shape == (2, width, *(side // 2 ** int(level[1]) for side in SIZE))
            assert extractor.output_shapes((1, 3, 33, 47))[level][1] == width


def test_an_element_of_a_rewritten_output_is_that_element() -> None:
    network = Rewritten().set_train(False)
    with featreg.from_module(network, ["C2", "C1"], input_size=SIZE) as extractor:
        features = extractor(IMAGES)
    first, second = network(mindspore.Tensor(IMAGES))
    np.testing.assert_array_equal(features["C1"], first.asnumpy())
    np.testing.assert_array_equal(features["C2"], second.asnumpy())


@pytest.mark.parametrize(
    ("wrong", "expected", "got"),
    [
        (entry(9, 4, "layer2"), "chs=9", "chs=12"),
        (entry(12, 8, "layer2"), "reduction=8", "reduction=4"),
        (entry(5, 4, "head"), "chs=5", "vector"),
        (entry(12, 4, "layer4"), "name of a cell", "layer4"),
        ({"chs": 12, "name": "layer2"}, "dict(chs", "layer2"),
    ],
    ids=["channels", "stride", "vector", "name", "form"],
)
def test_a_wrong_declaration_names_the_entry(wrong: dict[str, Any], expected: str, got: str) -> None:
    """mindcv's own wrapper takes each of these, or fails with a KeyError from inside."""
    with pytest.raises(errors.SpecError, match=r"feature_info\[1\]") as caught:
        featreg.from_module(Net([entry(8, 2, "layer1"), wrong]), "C1", input_size=SIZE)
    assert expected in caught.value.expected
    assert got in caught.value.got


class Uneven(nn.Cell):
    """Two branches round their halves differently: they add up for whole halves, and where one has one position."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 4, 4, "valid"), nn.Conv2d(8, 8, 3, 2)
        self.pool = nn.AvgPool2d(2, 2)

    def construct(self, x: Any) -> Any:
        x = self.stem(x)
        return self.conv(x) + self.pool(x)


def test_a_single_position_that_is_added_to_any_grid_hides_no_multiple() -> None:
    rule = featreg.from_module(Uneven(), "C3", input_size=SIZE).info.input_rule
    assert (rule.multiple_of, rule.minimum) == (8, (8, 8))


def test_a_cell_that_does_not_run_is_an_input_error() -> None:
    with pytest.raises(errors.InputError, match="size"):
        featreg.from_module(nn.Conv2d(4, 8, 3), "C0", input_size=SIZE)


def test_a_cell_takes_no_options() -> None:
    with pytest.raises(errors.CapabilityError, match="options"):
        featreg.from_module(Net(), "C1", input_size=SIZE, options={"padding": "torch"})
