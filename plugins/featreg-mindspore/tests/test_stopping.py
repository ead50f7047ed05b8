"""A network runs no further than to the last layer asked for, and holds no parameters that lie behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import featreg
from featreg_mindspore.libraries import mindcv, mindspore, nn
from featreg_mindspore.taps import Tap, collect, drop, find_unused
from featreg_mindspore.trace import Source

IMAGES = np.random.default_rng(2).standard_normal((1, 3, 64, 64)).astype(np.float32)

# Model, the layers asked for, and what a network cut behind them consists of: its direct cells, by hand.
CUTS = [
    ("resnet18", ["C2"], ("conv1", "bn1", "relu", "max_pool", "layer1")),
    ("resnet18", ["C4", "C1"], ("conv1", "bn1", "relu", "max_pool", "layer1", "layer2", "layer3")),
    ("resnet18", ["features"], ("conv1", "bn1", "relu", "max_pool", "layer1", "layer2", "layer3", "layer4")),
    ("mobilenet_v3_small_075", ["C3"], tuple(f"features.{n}" for n in range(6))),
    ("convnextv2_atto", ["C3"], tuple(f"feature.{n}" for n in range(4))),
]


def size(network: Any) -> int:
    return sum(parameter.nbytes for parameter in network.get_parameters())


@pytest.fixture
def started() -> Iterator[list[Any]]:
    """Every cell that starts while the test runs, outside of any hook of the backend's own."""
    cells: list[Any] = []
    original = nn.Cell.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        cells.append(self)
        return original(self, *args, **kwargs)

    nn.Cell.__call__ = call
    try:
        yield cells
    finally:
        nn.Cell.__call__ = original


@pytest.mark.parametrize(("model", "layers", "kept"), CUTS)
def test_cells_behind_the_last_layer_do_not_run(
    model: str, layers: list[str], kept: tuple[str, ...], started: list[Any]
) -> None:
    with featreg.create_extractor(f"mindspore:{model}", layers) as extractor:
        names = {id(cell): name for name, cell in extractor.module.cells_and_names()}
        started.clear()
        extractor(IMAGES)
        ran = {names[id(cell)] for cell in started}
    leaves = {name for name in ran if name and not any(other.startswith(f"{name}.") for other in ran)}
    assert {
        name for name in leaves if not name.startswith(tuple(f"{part}." for part in kept)) and name not in kept
    } == set()
    assert all(any(name == part or name.startswith(f"{part}.") for name in leaves) for part in kept)


@pytest.mark.parametrize(("model", "layers", "kept"), CUTS)
def test_only_the_parameters_of_a_hand_cut_network_are_left(
    model: str, layers: list[str], kept: tuple[str, ...]
) -> None:
    raw = mindcv.create_model(model)
    parts = dict(raw.cells_and_names())
    by_hand = sum(size(parts[part]) for part in kept)
    with featreg.create_extractor(f"mindspore:{model}", layers) as extractor:
        assert size(extractor.module) == by_hand < size(raw)


def test_a_cut_network_computes_what_the_whole_one_does() -> None:
    with (
        featreg.create_extractor("mindspore:resnet18", ["C2", "C3"]) as cut,
        featreg.create_extractor("mindspore:resnet18", ["C3", "logits", "C2"]) as whole,
    ):
        features, all_features = cut(IMAGES), whole(IMAGES)
        for layer in ("C2", "C3"):
            np.testing.assert_array_equal(features[layer], all_features[layer])
        with pytest.raises(AttributeError):
            cut.module.classifier.weight  # noqa: B018
        assert whole.module.classifier.weight.shape == (1000, 512)


class Twice(nn.Cell):
    """Runs one activation twice, as the stem of an HRNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2, stride=2)

    def construct(self, x: Any) -> Any:
        return self.pool(self.relu(self.pool(self.relu(x))))


@pytest.mark.parametrize(("call", "side", "ran"), [(0, 64, 1), (1, 32, 3)])
def test_a_cell_that_runs_twice_stops_at_the_run_that_was_asked_for(
    call: int, side: int, ran: int, started: list[Any]
) -> None:
    network = Twice()
    tap = Tap(featreg.FeatureInfo("relu", 3, 1, "map"), Source("relu", call), "plain", 0)
    (output,) = collect(network, [tap], IMAGES, lambda _, array: array.asnumpy())
    assert output.shape == (1, 3, side, side)
    assert len([cell for cell in started if cell is not network]) == ran


class Reader(nn.Cell):
    """Reads the parameters of a cell that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Dense(3, 3)
        self.relu = nn.ReLU()
        self.head = nn.Dense(3, 2)

    def construct(self, x: Any) -> Any:
        x = self.relu(x * self.scale.bias.reshape(1, 3, 1, 1))
        return self.head(x.mean((2, 3)))


def test_parameters_that_another_cell_reads_stay() -> None:
    info = featreg.FeatureInfo("relu", 3, 1, "map")
    unused = find_unused(Reader(), [Tap(info, Source("relu", 0), "plain", 0)], (8, 8), fake=True)
    assert unused == frozenset()


def test_what_is_dropped_comes_back_and_nothing_else_goes() -> None:
    network = nn.SequentialCell(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    info = featreg.FeatureInfo("1", 4, 1, "map")
    unused = find_unused(network, [Tap(info, Source("1", 0), "plain", 0)], (8, 8), fake=False)
    assert unused == {"2"}
    assert network(mindspore.Tensor(np.zeros((1, 3, 8, 8), np.float32))).shape == (1, 5, 8, 8)
    drop(network, unused)
    assert [parameter.shape for parameter in network.get_parameters()] == [(4, 3, 3, 3)]
