"""The sweep of the zoos: a wrong prediction is found, lost workers are outcomes, and a sweep can be resumed."""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import attrs
import numpy as np
import pytest
from click.testing import CliRunner

sys.path.append(str(Path(__file__).parent.parent))  # zoo is no part of the distribution; at the end, so that wheels win

from featreg.spec import FeatureInfo, InputRule, MeasuredGrid
from zoo.arrange import Frame, Mismatch, arrange, arranged_shape, is_near
from zoo.claims import check_levels
from zoo.completeness import Entry, check_classifier, check_declaration, check_embeddings, check_stages
from zoo.ledger import Ledger
from zoo.opening import ALWAYS, is_to_open
from zoo.oracles import RawRefusal
from zoo.page import page, write
from zoo.pool import Limits, Lost, run_tasks
from zoo.records import Finding, Layer, Record, SizeCheck, Task, ValueCheck, from_plain, to_plain
from zoo.selection import SLICE, Selection, select
from zoo.sizes import allows, plan
from zoo.stages import find_stages
from zoo.stricter import reasons
from zoo.survey import Module, Survey, level_number
from zoo.sweep import sweep
from zoo.verdict import complaints, missing

EXACT = Record("timm:one", "exact", input_size=(224, 224), layers=(Layer("C5", "layer4", "map", 512, 32, "ceil"),))


# --- raw outputs as the specification lays them out -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "kind", "predicted", "expected"),
    [
        ((3, 96, 49, 65), "map", (3, 96, 49, 65), (3, 96, 49, 65)),
        ((3, 49, 65, 96), "map", (3, 96, 49, 65), (3, 96, 49, 65)),
        ((3, 1 + 12 * 16, 192), "map", (3, 192, 12, 16), (3, 192, 12, 16)),
        ((12 * 16, 3, 192), "map", (3, 192, 12, 16), (3, 192, 12, 16)),
        ((3, 193, 192), "tokens", (3, 193, 192), (3, 193, 192)),
        ((3, 12, 16, 192), "tokens", (3, 192, 192), (3, 192, 192)),
        ((3, 512, 1, 1), "vector", (3, 512), (3, 512)),
        ((3, 512), "vector", (3, 512), (3, 512)),
    ],
)
def test_raw_outputs_are_arranged_without_asking_the_prediction(raw, kind, predicted, expected):
    assert arranged_shape(raw, kind, predicted, Frame(3, (193, 257), prefix=1)) == expected


@pytest.mark.parametrize(
    ("raw", "kind", "predicted"),
    [
        ((3, 1 + 12 * 16, 192), "map", (3, 192, 16, 12)),  # rows and columns swapped
        ((3, 2 + 12 * 16, 192), "map", (3, 192, 12, 16)),  # two tokens too many
        ((4, 96, 49, 65), "map", (3, 96, 49, 65)),
        ((3, 512, 2, 2), "vector", (3, 512)),
        ((3, 512), "map", (3, 512, 1, 1)),
    ],
)
def test_outputs_that_fit_no_kind_are_a_mismatch(raw, kind, predicted):
    with pytest.raises(Mismatch):
        arranged_shape(raw, kind, predicted, Frame(3, (193, 257), prefix=1))


def test_values_are_arranged_row_by_row():
    tokens = np.arange(2 * 7 * 3).reshape(2, 7, 3)
    found = arrange(tokens, "map", (2, 3, 2, 3), Frame(2, (64, 96), prefix=1))
    assert found[1, 2].tolist() == tokens[1, 1:, 2].reshape(2, 3).tolist()


@pytest.mark.parametrize(
    ("grid", "size", "reduction", "near"),
    [
        ((71, 71), (299, 299), 4, True),  # inception_v3 pads nothing
        ((1, 2), (33, 40), 32, True),
        ((14, 14), (224, 224), 8, False),
        ((12, 12), (224, 224), 14, True),
        ((16, 8), (256, 256), 16, False),
    ],
)
def test_a_reduction_must_be_near_what_the_grid_says(grid, size, reduction, near):
    assert is_near(grid, size, reduction) == near


# --- sizes and claims -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "sizes"),
    [
        (InputRule(), [(224, 224), (193, 257), (225, 225)]),
        (InputRule(fixed=(224, 224)), [(224, 224), (193, 257), (225, 225)]),
        (InputRule(multiple_of=32), [(224, 224), (193, 257), (225, 225), (224, 288)]),
        (InputRule(minimum=(33, 33)), [(224, 224), (193, 257), (225, 225), (33, 33), (32, 224)]),
        (
            InputRule(multiple_of=32, minimum=(40, 40)),
            [(224, 224), (193, 257), (225, 225), (224, 288), (64, 64)],
        ),
    ],
)
def test_sizes_hold_the_three_and_the_edges_of_the_rule(rule, sizes):
    assert plan((224, 224), rule) == sizes
    restricted = rule != InputRule()
    assert all(allows(rule, size) for size in sizes) != restricted


def level(key, reduction, name="stage", kind="map"):
    return FeatureInfo(name, 8, reduction, kind, level=key)


@pytest.mark.parametrize(
    ("levels", "dilated", "complaints_"),
    [
        ([level("C1", 2, "a"), level("C2", 4, "b")], False, []),
        ([level("C4", 14)], False, []),
        ([level("C2", 4, "a"), level("C1", 2, "b")], False, ["levels"]),
        ([level("C1", 2, "a"), level("C1", 2, "a")], False, ["levels"]),
        ([level("C2", 4, "b"), level("C3", 8, "a")], False, ["order of the levels"]),
        ([level("C4", 8)], False, ["reduction of C4"]),
        ([level("C4", 8)], True, []),
        ([level("C4", 32)], True, ["reduction of C4"]),
        ([level("C4", 16, kind="tokens")], False, ["kind of C4"]),
    ],
)
def test_levels_keep_their_own_claims(levels, dilated, complaints_):
    assert [finding.what for finding in check_levels(levels, ("a", "b"), dilated)] == complaints_


def findings(found):
    return [(finding.what, finding.got) for finding in found]


def test_a_level_is_the_librarys_last_declared_entry_and_none_is_left_out():
    features = [level("C1", 2, "stem"), level("C2", 4, "layer1")]
    entries = [Entry(("stem",), 2), Entry(("layer1",), 4), Entry(("layer2", "other"), 4)]

    def found(*strides):
        return findings(check_declaration(features, entries, strides))

    assert found(2, 4, None) == []  # the last gives no map
    assert found(2, 4, 4) == [("name of C2", "layer1")]
    assert found(2, 4, 8) == [("level of stride 8", "none")]
    assert found(4, 4, None) == []  # a map is named after the stride that it has


# --- the raw network's own stages and heads ---------------------------------------------------------------------------

SIZE = (256, 384)


def surveyed(*modules, classes=None, result=None):
    """A survey of modules in the order in which they finish: (name, k of its stride or shape, class, further fields).

    A network with classes returns a score of each unless ``result`` says otherwise.
    """
    outputs, inputs, parts = {}, {}, {}
    for name, gives, *rest in modules:
        kind, fields = (rest[0] if rest else "Block"), (rest[1] if len(rest) > 1 else {})
        inputs |= {name: fields["input"]} if "input" in fields else {}
        parts[name] = Module(name, kind, **{key: value for key, value in fields.items() if key != "input"})
        outputs[name] = gives if isinstance(gives, tuple) else (3, 8, SIZE[0] >> gives, SIZE[1] >> gives)
    return Survey(SIZE, 3, parts, outputs, inputs, result or (classes and (3, classes)), prefix=1, classes=classes)


def convolution(width, kernel=3):
    return "Conv2d", {"kernel": (kernel, kernel), "takes": 8, "width": width}


def linear(takes, width, given=None):
    return "Linear", {"kernel": (1, 1), "takes": takes, "width": width, "input": given or (3, takes)}


def tokens(count):
    return (3, count, 8)


BACKBONE = [
    ("conv", 1, *convolution(8)),
    ("norm", 1, "BatchNorm2d"),
    ("pool", 2, "MaxPool2d"),
    ("layer1.0.conv", 2, *convolution(8)),
    ("layer1.0", 2),
    ("layer1.1.conv", 2, *convolution(8)),
    ("layer1.1", 2),
    ("layer1", 2),
    ("layer2.0.conv", 2, *convolution(8)),
    ("layer2.0", 3),
    ("layer2", 3),
]
SCORES = ("head.fc", (3, 9), *linear(8, 9))
STAGES = {
    "of a residual network": (BACKBONE, ["conv", "layer1", "layer2"]),
    "in a wrapper": (
        [*((f"body.{name}", *rest) for name, *rest in BACKBONE), ("body", 3)],
        ["body.conv", "body.layer1", "body.layer2"],
    ),
    "before a closing convolution": (
        [*BACKBONE, ("last.0", 3, *convolution(8, 1)), ("last.1", 3, "ReLU"), ("last", 3), SCORES],
        ["conv", "layer1", "layer2"],
    ),
    "with a convolution that hidden layers follow": (
        [*BACKBONE, ("last.0", 3, *convolution(7, 1)), ("last", 3), SCORES],
        ["conv", "layer1", "last"],
    ),
    "of an encoder": ([*BACKBONE, ("up.0", 2, *convolution(8)), ("up", 2)], ["conv", "layer1", "layer2"]),
    "that halve at their end": (
        [
            ("embed", 2),
            ("one.blocks.0.conv", 2, *convolution(8)),
            ("one.blocks.0", 2),
            ("one.reduce", 3, *convolution(8)),
            ("one", 3),
            ("two.conv", 3, *convolution(8)),
            ("two", 3),
        ],
        ["one.blocks.0", "two"],
    ),
    "that give no single map": (
        [("one", 2), ("two.conv", 3, *convolution(8)), ("two", ()), ("three", 4)],
        ["one", "three"],
    ),
    "that are one transition": (
        [("dense", 2), ("step.norm", 2, "BatchNorm2d"), ("step.pool", 3, "AvgPool2d"), ("step", 3)],
        ["dense", "step"],
    ),
    "of a plain transformer": (
        [
            ("patch", 4, *convolution(8, 16)),
            ("body.0", tokens(16 * 24 + 1)),
            ("body.1", tokens(16 * 24 + 1)),
            ("norm", tokens(16 * 24 + 1), "LayerNorm"),
        ],
        ["body.1"],
    ),
    "of tokens of several lengths": (
        [
            ("patch", tokens(64 * 96)),
            ("one.0", tokens(64 * 96)),
            ("one.1", tokens(64 * 96)),
            ("one", tokens(64 * 96)),
            ("two.0", tokens(32 * 48)),
            ("two.1", tokens(32 * 48)),
            ("two", tokens(32 * 48)),
        ],
        ["one", "two"],
    ),
}


@pytest.mark.parametrize("case", STAGES)
def test_stages_are_found_from_raw_outputs(case):
    modules, expected = STAGES[case]
    last = {stage.number: stage.name for stage in find_stages(surveyed(*modules, classes=9)) if stage.whole}
    assert list(last.values()) == expected


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([level("C1", 2, "conv"), level("C2", 4, "layer1"), level("C3", 8, "layer2")], []),
        ([level("C1", 2, "conv"), level("C2", 4, "layer1")], [("level of stride 8", "none")]),
        ([], [("level of stride 2", "none"), ("level of stride 4", "none"), ("level of stride 8", "none")]),
        (
            [level("C1", 2, "conv"), level("C2", 4, "layer1.0"), level("C3", 8, "layer2")],
            [("name of C2", "layer1.0"), ("name of C2", "layer1.0, inside layer1")],
        ),
        (
            [level("C1", 2, "conv"), level("C2", 4, "pool"), level("C3", 8, "layer2")],
            [("name of C2", "pool")],
        ),
        (
            [level("C1", 2, "conv"), level("C2", 4, "layer2.0.conv"), level("C3", 8, "layer2")],
            [("name of C2", "layer2.0.conv, inside layer2")],
        ),
        ([level("C1", 2, "conv"), level("C2", 4, "layer1"), level("C3", 8, "relu")], []),  # an operation at the end
    ],
)
def test_levels_are_the_last_stages_of_a_network_that_declares_none(levels, expected):
    survey = surveyed(*BACKBONE)
    assert findings(check_stages(levels, find_stages(survey), survey, dilated=False)) == expected


def test_a_stage_of_several_maps_has_no_level():
    survey = surveyed(("one", 2), ("two.conv", 2, *convolution(8)), ("two", ()), ("three", 3))
    stages = find_stages(survey)
    assert findings(check_stages([level("C3", 8, "three")], stages, survey, dilated=False)) == []
    inside = [level("C2", 4, "two.conv"), level("C3", 8, "three")]
    assert findings(check_stages(inside, stages, survey, dilated=False)) == [("name of C2", "two.conv, inside two")]


def test_no_level_of_a_dilated_network_is_left_out():
    survey = surveyed(("one", 2), ("two", 2), ("three", 2))
    levels = [level("C2", 4, "one"), level("C3", 4, "two"), level("C4", 4, "three")]
    assert findings(check_stages(levels, find_stages(survey), survey, dilated=True)) == []
    assert findings(check_stages(levels[:2], find_stages(survey), survey, dilated=True)) == [("name of C3", "two")]
    assert findings(check_stages(levels[::2], find_stages(survey), survey, dilated=True)) == [("levels", "C2, C4")]


def vector(head, channels):
    return FeatureInfo(head, channels, None, "vector", head=head)


FINAL = FeatureInfo("layer2", 8, 8, "map", head="features")
HEADS = [FINAL, vector("pooled", 8), vector("logits", 9)]


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (HEADS, []),
        ([], [("logits", "none"), ("pooled", "none"), ("features", "none")]),
        ([*HEADS[:2], vector("logits", 8)], [("channels of logits", "8")]),
        ([FINAL, vector("pooled", 9), HEADS[2]], [("channels of pooled", "9")]),
    ],
)
def test_a_network_with_classes_has_their_heads(heads, expected):
    survey = surveyed(*BACKBONE, SCORES, classes=9)
    assert findings(check_classifier(heads, survey)) == expected


def test_heads_are_asked_for_where_the_network_has_them():
    without = surveyed(*BACKBONE, result=(3, 8))
    assert findings(check_classifier(HEADS[:2], without)) == []
    assert findings(check_classifier(HEADS, without)) == [("logits", "logits")]
    by_convolution = surveyed(*BACKBONE, ("fc", 3, *convolution(9, 1)), classes=9)
    assert findings(check_classifier([FINAL, HEADS[2]], by_convolution)) == []  # SqueezeNet: no vector goes in
    two = surveyed(*BACKBONE, ("a", (3, 9), *linear(4, 9)), ("b", (3, 9), *linear(5, 9)), classes=9)
    assert findings(check_classifier([FINAL, vector("pooled", 9), HEADS[2]], two)) == []
    assert findings(check_classifier([FINAL, vector("pooled", 5), HEADS[2]], two)) == []
    assert findings(check_classifier([FINAL, vector("pooled", 4), HEADS[2]], two)) == [("channels of pooled", "4")]


def test_a_network_of_images_and_texts_embeds_both():
    survey = surveyed(*BACKBONE, result=(3, 8))
    both = [FINAL, vector("embedding", 8), vector("text_embedding", 8)]
    assert findings(check_embeddings(both, survey)) == []
    assert findings(check_embeddings(both[:2], survey)) == [("text_embedding", "none")]
    assert findings(check_embeddings([FINAL, vector("embedding", 9), both[2]], survey)) == [
        ("channels of embedding", "9")
    ]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 8, 32, 48), 3),
        ((3, 32, 48, 8), 3),
        ((3, 32 * 48 + 1, 8), 3),
        ((32 * 48, 3, 8), 3),
        ((3, 8, 31, 47), 3),
        ((3, 8, 18, 27), 4),  # a patch of 14 pixels
        ((3, 8, 32, 24), None),
        ((3, 8, 1, 1), None),
        ((12, 8, 32, 48), None),  # windows
        ((3, 100, 8), None),
        ((3, 8), None),
        ((), None),
    ],
)
def test_the_level_of_a_raw_output(shape, expected):
    assert level_number(shape, SIZE, batch=3, prefix=1) == expected


# --- oracles ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle_of():
    """An oracle for any module that is built by a function of the device."""
    torch = pytest.importorskip("torch")
    from zoo.oracles.modules import TorchOracle

    class Anything(TorchOracle):
        def __init__(self, forward):
            super().__init__("anything")
            self.forward = forward

        @staticmethod
        def models():
            return ["anything"]

        def build(self, device):
            network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1, stride=2), torch.nn.ReLU(inplace=True))
            return network.to(device)

        def call(self, network, images):
            return self.forward(network, images)

        def run(self, network, images, names):
            yield "whole", self.forward(network, images)

    return Anything


def refuse_meta(network, images):
    assert images.device.type == "cpu"
    return network(images)


def needs_numbers(network, images):
    return network(images) if images.sum().item() == 0 else None


@pytest.mark.parametrize(
    ("forward", "how"),
    [(lambda network, images: network(images), "meta"), (refuse_meta, "fake"), (needs_numbers, "real")],
)
def test_oracles_take_the_cheapest_tensors_that_get_through(oracle_of, forward, how):
    oracle = oracle_of(forward)
    assert dict(oracle.shapes(["1", "whole", "gone"], (5, 9))) == {"1": (3, 8, 3, 5), "whole": (3, 8, 3, 5)}
    assert oracle.how == how


def test_oracles_say_when_the_library_refuses(oracle_of):
    with pytest.raises(RawRefusal, match="ZeroDivisionError"):
        oracle_of(lambda *_: 1 // 0).shapes(["1"], (5, 9))


def test_tensors_with_values_say_what_is_beyond_a_table(oracle_of):
    import torch

    def look_up(network, images):
        places = torch.arange(images.shape[3], device=images.device)
        return network(images) + torch.zeros(8, device=images.device)[places].sum()

    oracle = oracle_of(look_up)
    assert dict(oracle.shapes(["1"], (5, 9))) == {"1": (3, 8, 3, 5)}
    oracle.confirm((5, 8))
    with pytest.raises(RawRefusal, match="IndexError"):
        oracle.confirm((5, 9))


def test_in_place_operations_do_not_overwrite_what_an_oracle_keeps(oracle_of):
    images = np.random.default_rng(0).standard_normal((2, 3, 4, 4), dtype=np.float32)
    values = oracle_of(lambda network, images: network(images)).values(["0", "1"], images)
    assert values["0"].min() < 0
    assert np.array_equal(np.maximum(values["0"], 0), values["1"])


def test_torchvisions_names_are_nodes_or_the_last_node_under_a_module():
    pytest.importorskip("torchvision")
    from zoo.oracles.torchvision import TorchvisionOracle

    oracle = TorchvisionOracle("resnet18")
    names = ["fc", "layer2", "layer2.0.relu", "relu", "l.yer1"]
    assert list(oracle.shapes(names, (193, 257)).items()) == [
        ("relu", (3, 64, 97, 129)),
        ("layer2.0.relu", (3, 128, 25, 33)),
        ("layer2", (3, 128, 25, 33)),
        ("fc", (3, 1000)),
    ]


@pytest.fixture
def rewritten(monkeypatch):
    """An oracle of a network that mindcv has a second time, returning its levels, as it has HRNet."""
    mindcv = pytest.importorskip("mindcv")
    from mindcv.models.features import FeatureExtractWrapper
    from mindspore import nn

    from zoo.oracles.mindspore import MindsporeOracle

    class Network(nn.Cell):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, 2, has_bias=True), nn.Conv2d(4, 4, 3, 2)
            self.relu = nn.ReLU()
            self.stage1 = nn.SequentialCell(nn.SequentialCell(nn.Conv2d(4, 6, 3, 2), nn.ReLU()))
            self.stage2 = nn.SequentialCell(nn.Conv2d(6, 7, 3, 2))

        def levels(self, x):
            stem = self.relu(self.conv1(x))
            first = self.stage1(self.relu(self.conv2(stem)))
            return [stem, first, self.stage2(first) + 1]

        def construct(self, x):
            return self.levels(x)[-1].mean((2, 3))

    class Levels(Network):
        is_rewritten = True
        feature_info = (
            {"chs": 4, "reduction": 2, "name": "stem"},
            {"chs": 6, "reduction": 8, "name": "first"},
            {"chs": 7, "reduction": 16, "name": "stage2"},
        )

        def construct(self, x):
            return self.levels(x)

    def create(model, features_only=False):
        return FeatureExtractWrapper(Levels()) if features_only else Network()

    monkeypatch.setattr(mindcv, "create_model", create)
    return MindsporeOracle("network")


def test_mindcvs_levels_come_from_the_network_that_returns_them(rewritten):
    """Each is named after the outermost cell that gives it, and after its declaration where no cell has that name."""
    rewritten.survey((64, 96))
    declared = {entry.names: (entry.reduction, entry.channels) for entry in rewritten.declared()}
    assert declared == {("relu in run 1 of 2", "stem"): (2, 4), ("stage1", "first"): (8, 6), ("no cell",): (16, 7)}
    names = ["stage2", "relu", "stem", "first", "gone"]
    assert list(rewritten.shapes(names, (64, 96)).items()) == [
        ("stem", (1, 4, 32, 48)),
        ("first", (1, 6, 8, 12)),
        ("relu", (1, 4, 16, 24)),
        ("stage2", (1, 7, 4, 6)),
    ]


def test_mindcvs_network_of_levels_has_the_weights_of_the_checkpoint(rewritten, tmp_path):
    images = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
    before = rewritten.values(["first"], images)["first"]
    rewritten.checkpoint(tmp_path)
    values = rewritten.values(["conv1", "stem", "stage1", "first"], images)
    assert np.abs(values["first"] - before).max() > 0
    np.testing.assert_array_equal(values["stem"], np.maximum(values["conv1"], 0))
    np.testing.assert_array_equal(values["first"], values["stage1"])


# --- one model judged -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judging():
    """The judge and featreg's own calls; the models are timm's smallest."""
    pytest.importorskip("timm")
    import zoo.judge

    return zoo.judge


def judged(judging, model="timm:resnet10t", change=None, real=False, edit=None, **parts):
    """A record of a model each of whose features went through ``change``, and all of them through ``edit``."""
    import featreg

    def describe(*arguments):
        info = featreg.describe(*arguments)
        features = info.features if change is None else map(change, info.features)
        return attrs.evolve(info, features=tuple(features if edit is None else edit(tuple(features))))

    backend, _, name = model.partition(":")
    return judging.Judge(Task(backend, name, real), describe=describe, **parts).record()


def test_a_right_description_is_exact_in_shapes_and_values(judging):
    record = judged(judging, real=True)
    assert (record.status, record.findings) == ("exact", ())
    assert record.values == ValueCheck("equal")
    assert record.how == "meta"
    assert record.opened
    assert [check.outcome for check in record.sizes] == ["exact", "exact", "exact"]
    assert [layer.key for layer in record.layers if layer.key[0] == "C"] == ["C1", "C2", "C3", "C4", "C5"]


C4_GRIDS = [
    MeasuredGrid((176, 176), (11, 11)),
    MeasuredGrid((193, 257), (13, 17)),
    MeasuredGrid((225, 225), (15, 15)),
]
WRONG = {
    "channels": lambda f: attrs.evolve(f, channels=f.channels + (f.level == "C3")),
    "rounding": lambda f: attrs.evolve(f, rounding="floor") if f.level == "C5" else f,
    "reduction": lambda f: attrs.evolve(f, reduction=64) if f.level == "C5" else f,
    "measured": lambda f: (
        attrs.evolve(f, rounding="measured", reduction=8, measured=C4_GRIDS) if f.level == "C4" else f
    ),
    "level": lambda f: attrs.evolve(f, name="layer1", channels=64, reduction=4) if f.level == "C3" else f,
    "module": lambda f: attrs.evolve(f, name="layer3.0") if f.level == "C4" else f,
    "name": lambda f: attrs.evolve(f, name="layer9") if f.level == "C4" else f,
    "kind": lambda f: attrs.evolve(f, kind="tokens") if f.level == "C4" else f,
    "vector": lambda f: attrs.evolve(f, channels=1) if f.head == "logits" else f,
}


@pytest.mark.parametrize("change", WRONG)
def test_a_planted_wrong_prediction_is_found(judging, change):
    model = "timm:resnet18" if change == "module" else "timm:resnet10t"  # resnet10t has one block in a stage
    record = judged(judging, model, WRONG[change])
    assert record.status == "wrong"
    assert record.findings


def only(*keys):
    return lambda features: [feature for feature in features if feature.level in keys]


def without(*keys):
    return lambda features: [f for f in features if f.level not in keys and f.head not in keys]


def swapped(key, **fields):
    def edit(features):
        return [attrs.evolve(f, **fields) if key in (f.level, f.head) else f for f in features]

    return edit


def logits_as_pooled(features):
    (pooled,) = [feature for feature in features if feature.head == "pooled"]
    return swapped("logits", name=pooled.name, channels=pooled.channels)(features)


LEFT_OUT = {
    "timm: all": ("timm:resnet18", lambda _: (), "level of stride 32"),
    "timm: all but C3": ("timm:resnet18", only("C3"), "level of stride 16"),
    "timm: C5": ("timm:resnet18", without("C5"), "level of stride 32"),
    "timm: heads": ("timm:resnet18", without("features", "pooled", "logits"), "logits"),
    "timm: C5 and heads": ("timm:resnet18", without("C5", "features", "pooled", "logits"), "level of stride 32"),
    "timm: not the last block": ("timm:resnet18", swapped("C4", name="layer3.0"), "name of C4"),
    "timm: other logits": ("timm:resnet18", logits_as_pooled, "channels of logits"),
    "timm: a transformer's level": ("timm:test_vit", without("C4"), "level of stride 16"),
    "timm: an earlier block": ("timm:test_vit", swapped("C4", name="blocks.1"), "name of C4"),
    "torchvision: all": ("torchvision:resnet18", lambda _: (), "level of stride 2"),
    "torchvision: all but C3": ("torchvision:resnet18", only("C3"), "level of stride 16"),
    "torchvision: C5": ("torchvision:resnet18", without("C5"), "level of stride 32"),
    "torchvision: heads": ("torchvision:resnet18", without("features", "pooled", "logits"), "logits"),
    "torchvision: not the last block": ("torchvision:resnet18", swapped("C4", name="layer3.0"), "name of C4"),
    "torchvision: other logits": ("torchvision:resnet18", logits_as_pooled, "channels of logits"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_layer_that_is_left_out_or_another_is_found(judging, case):
    model, edit, what = LEFT_OUT[case]
    pytest.importorskip(model.partition(":")[0])
    record = judged(judging, model, edit=edit, open_extractor=Zeros)
    assert record.status == "wrong"
    assert what in [finding.what for finding in record.findings]


@pytest.mark.parametrize("model", ["timm:resnet18", "timm:test_vit", "torchvision:resnet18"])
def test_the_same_models_as_they_are_are_exact(judging, model):
    pytest.importorskip(model.partition(":")[0])
    record = judged(judging, model)
    assert (record.status, record.findings, record.opened) == ("exact", (), True)


class Zeros:
    """An extractor's place where opening is not the point: zeros of the shape that is described."""

    def __init__(self, model, layers, **_):
        import featreg

        self._info, self._layers = featreg.describe(model), layers

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __call__(self, images):
        size = images.shape[2:]
        return {key: np.zeros(self._info.resolve(key).shape(len(images), *size)) for key in self._layers}


def test_a_model_that_does_not_open_is_found(judging):
    def broken(*_, **__):
        raise AttributeError("no attribute '_tensor_constant0'")

    record = judged(judging, open_extractor=broken)
    assert (record.status, record.opened) == ("wrong", False)
    assert [finding.what for finding in record.findings] == ["opening C5"]


def test_a_model_that_opens_with_another_shape_is_found(judging):
    class Smaller(Zeros):
        def __call__(self, images):
            return {key: array[:, 1:] for key, array in super().__call__(images).items()}

    assert judged(judging, open_extractor=Smaller).status == "wrong"


def test_small_models_are_opened_and_some_large_ones():
    tasks = [Task("timm", f"model_{number}") for number in range(1000)]
    assert all(is_to_open(task, ALWAYS) for task in tasks)
    assert 20 < sum(is_to_open(task, ALWAYS + 1) for task in tasks) < 150
    assert not any(is_to_open(task, 10**10) for task in tasks)


def test_a_rule_that_allows_too_much_is_found(judging):
    import featreg

    def describe(model, size=(224, 224)):
        info = featreg.describe(model)
        shapes = attrs.evolve(info, input_rule=InputRule())
        return attrs.evolve(shapes, input_size=size)

    task = Task("timm", "vit_tiny_patch16_224")
    record = judging.Judge(task, describe=describe).record()
    assert record.status == "wrong"
    assert {finding.what for finding in record.findings} >= {"input size 193x257", "input size 225x225"}


def test_a_rule_that_is_not_kept_or_too_strict_is_found(judging, monkeypatch):
    import featreg

    def loose(model, size=None):
        return attrs.evolve(featreg.describe(model, size), input_rule=InputRule(fixed=(176, 176)))

    def strict(model, size=None):
        InputRule(fixed=(176, 176)).check(*(size or (176, 176)))
        return loose(model, size)

    task = Task("timm", "resnet10t")
    assert judging.Judge(task, describe=loose).record().status == "wrong"
    record = judging.Judge(task, describe=strict, open_extractor=Zeros).record()
    assert record.status == "wrong"
    assert [finding.what for finding in record.findings] == ["input size 193x257", "input size 225x225"]
    monkeypatch.setattr("zoo.stricter.reasons", lambda: {"timm:resnet10*": "a reason"})
    record = judging.Judge(task, describe=strict, open_extractor=Zeros).record()
    assert record.status == "exact"
    assert [check.outcome for check in record.sizes] == ["exact", "stricter", "stricter"]


def test_a_size_that_the_library_refuses_once_there_are_values_is_rightly_refused(judging):
    import featreg

    def strict(model, size=None):
        InputRule(fixed=(176, 176)).check(*(size or (176, 176)))
        return attrs.evolve(featreg.describe(model, size), input_rule=InputRule(fixed=(176, 176)))

    def opened(backend, model):
        oracle = judging.open_oracle(backend, model)
        oracle.confirm = refuse
        return oracle

    def refuse(size):
        raise RawRefusal("IndexError")

    record = judging.Judge(
        Task("timm", "resnet10t"), describe=strict, open_extractor=Zeros, open_oracle=opened
    ).record()
    assert [check.outcome for check in record.sizes] == ["exact", "refused", "refused"]
    assert record.status == "exact"


def test_values_of_another_module_are_found(judging):
    import featreg

    class Swapped:
        def __init__(self, *arguments, **fields):
            self._extractor = featreg.create_extractor(*arguments, **fields)
            self.feature_info = self._extractor.feature_info

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._extractor.close()

        def __call__(self, images):
            return {key: value + (key == "C2") * np.float32(0.5) for key, value in self._extractor(images).items()}

    record = judged(judging, real=True, open_extractor=Swapped)
    assert record.status == "wrong"
    assert record.values is not None
    assert record.values.detail.startswith("C2 by")


def refuse(*_):
    from featreg.errors import CapabilityError

    raise CapabilityError("not supported")


def broken_library(*_):
    raise RawRefusal("the library cannot build it")


def test_refusals_must_be_listed_and_true(judging):
    task = Task("timm", "resnet10t")

    def outcome(listed, describe=refuse, **parts):
        refused = {"resnet10t": "a reason"} if listed else {}
        record = judging.Judge(task, describe=describe, refused=lambda _: refused, **parts).record()
        return record.status, record.kind

    assert outcome(listed=False) == ("failed", "unlisted")
    assert outcome(listed=True, open_oracle=broken_library) == ("refused", "")
    assert outcome(listed=True) == ("refused", "")  # featreg cannot open it even without its list

    from featreg import describe

    calls = []

    def describe_once_lifted(*arguments):
        calls.append(arguments)
        return refuse() if len(calls) == 1 else describe(*arguments)

    assert outcome(listed=True, describe=describe_once_lifted) == ("failed", "stale")
    assert outcome(listed=True, describe=describe)[0] == "wrong"  # it is on the list and opens all the same


@pytest.mark.parametrize(
    ("parts", "kind"),
    [({"describe": lambda *_: 1 // 0}, "featreg"), ({"open_oracle": broken_library}, "oracle")],
)
def test_errors_are_outcomes(judging, parts, kind):
    record = judging.Judge(Task("timm", "resnet10t"), **parts).record()
    assert (record.status, record.kind) == ("failed", kind)
    assert record.reason


# --- workers ----------------------------------------------------------------------------------------------------------


def outcomes(work, todo, **limits):
    return {outcome.task: outcome.result for outcome in run_tasks(work, todo, Limits(**limits))}


def test_workers_return_every_result_and_are_replaced_when_old():
    assert outcomes(math.sqrt, [0, 1, 4, 9], tasks=1) == {0: 0, 1: 1, 4: 2, 9: 3}


def test_a_worker_that_takes_too_long_is_one_lost_task():
    found = outcomes(time.sleep, [3600, 1800], seconds=0.2, workers=1)
    assert [(type(lost), lost.kind) for lost in found.values()] == [(Lost, "timeout")] * 2


def test_a_worker_that_dies_is_one_lost_task():
    found = outcomes(os._exit, [7, 8], workers=1)
    assert [found[code].detail for code in (7, 8)] == [f"the worker ended with exit code {code}" for code in (7, 8)]
    assert outcomes(signal.raise_signal, [signal.SIGKILL])[signal.SIGKILL].kind == "crash"
    assert outcomes(math.sqrt, [-1])[-1].kind == "crash"


def test_a_worker_that_takes_too_much_memory_is_one_lost_task():
    found = outcomes(time.sleep, [3600], gibibytes=0.001)
    assert found[3600].kind == "memory"


def test_nothing_is_started_after_the_deadline():
    assert not list(run_tasks(math.sqrt, [1, 2], deadline=0.0))


# --- sweeps -----------------------------------------------------------------------------------------------------------


def test_a_sweep_goes_on_where_it_was_stopped(tmp_path):
    ledger = Ledger(tmp_path / "zoo.jsonl")
    tasks = [Task("timm", name) for name in ("one", "two", "three")]
    ledger.add(EXACT, "old")
    ledger.add(attrs.evolve(EXACT, id="timm:two"), "new")
    ledger.add(Record("timm:three", "failed", "timeout", "more than 300 seconds"), "new")
    with ledger.path.open("a") as file:
        file.write('{"fingerprint": "new", "rec')  # as a killed process leaves it
    done = sweep(tasks, ledger, Limits(), minutes=0, mark=lambda _: "new")
    assert [record.id for record in done.records] == ["timm:two"]  # judged before, by this code
    assert done.left == 2


def test_what_a_sweep_judges_is_in_the_ledger(tmp_path):
    ledger = Ledger(tmp_path / "zoo.jsonl")
    tasks = [Task("timm", "one"), Task("timm", "two")]
    first = sweep(tasks, ledger, Limits(workers=1, seconds=0.0), mark=lambda _: "now")
    assert [record.kind for record in first.records] == ["timeout", "timeout"]
    assert [json.loads(line)["record"]["id"] for line in ledger.path.read_text().splitlines()] == [
        "timm:one",
        "timm:two",
    ]
    assert ledger.settled({"timm": "now"}) == {}  # a lost worker is asked again
    assert not Ledger(ledger.path, fresh=True).path.exists()


def test_a_task_that_asks_for_values_is_not_answered_by_shapes(tmp_path):
    ledger = Ledger(tmp_path / "zoo.jsonl")
    ledger.add(EXACT, "now")
    assert sweep([Task("timm", "one", real=True)], ledger, Limits(), minutes=0, mark=lambda _: "now").left == 1
    ledger.add(attrs.evolve(EXACT, values=ValueCheck("equal")), "now")
    assert sweep([Task("timm", "one", real=True)], ledger, Limits(), minutes=0, mark=lambda _: "now").left == 0


CATALOGUE = {backend: [f"{backend}_{number}" for number in range(200)] for backend in SLICE}


def test_selections_are_seeded_and_hold_some_of_everything():
    assert len(select(CATALOGUE, Selection())) == 800
    sliced = select(CATALOGUE, Selection(slice=True))
    assert len(sliced) >= 60
    assert {backend: sum(task.backend == backend for task in sliced) for backend in SLICE} == SLICE
    assert {task.backend for task in sliced if task.real} == set(SLICE)
    assert sliced == select({backend: models[::-1] for backend, models in CATALOGUE.items()}, Selection(slice=True))
    assert sliced != select(CATALOGUE, Selection(slice=True, seed=1))
    assert len(select(CATALOGUE, Selection(sample=10))) == 10
    assert [task.id for task in select(CATALOGUE, Selection(("timm:*_7", "mindspore_7")))] == [
        "mindspore:mindspore_7",
        "timm:timm_7",
    ]


def test_a_model_that_is_not_listed_is_missed():
    assert not list(missing({"timm": ["one", "two"]}, {"timm": ["one"]}))
    assert list(missing({"timm": ["one"]}, {"timm": ["one", "two"]})) == [
        "timm:two: a model of the library that featreg does not list"
    ]


def test_verdicts():
    catalogue = {"timm": [f"m{number}" for number in range(100)]}
    whole = [attrs.evolve(EXACT, id=f"timm:m{number}") for number in range(100)]
    assert not list(complaints(whole, catalogue, {}))
    refused = [attrs.evolve(record, status="refused", reason="why") for record in whole[:2]]
    assert not list(complaints([*refused[:1], *whole[1:]], catalogue, {}))
    assert "2 of 100 models are refused; 1 may be" in next(complaints([*refused, *whole[2:]], catalogue, {}))
    assert not list(complaints(refused, catalogue, {}))  # a quota is of a whole zoo
    mindspore = [
        attrs.evolve(record, id=record.id.replace("timm", "mindspore"), upstream="broken") for record in refused
    ]
    assert not list(complaints(mindspore, {"mindspore": ["m0", "m1"]}, {}))
    assert "no model of the library" in next(complaints([], catalogue, {"timm": {"gone": "why"}}))
    for status in ("wrong", "failed"):
        bad = attrs.evolve(EXACT, status=status, kind="crash", findings=(Finding("C2", "64", "65"),))
        assert len(list(complaints([bad], catalogue, {}))) == 1


# --- documents --------------------------------------------------------------------------------------------------------

RECORDS = [
    attrs.evolve(
        EXACT, sizes=(SizeCheck((225, 225), "stricter"),), values=ValueCheck("equal"), opened=True, oracle_seconds=30.0
    ),
    Record("timm:two", "refused", reason="images | of five axes", upstream="ValueError: no\nimage"),
    Record("timm:three", "wrong", findings=(Finding("C2 (layer1)", "(3, 64, 56, 56)", "(3, 65, 56, 56)"),)),
    Record("timm:four", "failed", "timeout", "more than 300 seconds"),
]


def test_records_survive_json():
    assert [from_plain(json.loads(json.dumps(to_plain(record)))) for record in RECORDS] == RECORDS


def test_the_page_says_why_models_are_stricter(monkeypatch):
    assert "Stricter than" not in page(RECORDS, {"timm": ["one"]}, {})
    monkeypatch.setattr("zoo.stricter.reasons", lambda: {"timm:o*": "a reason"})
    monkeypatch.setattr("zoo.page.reasons", lambda: {"timm:o*": "a reason"})
    assert "| timm:o* | 1 | a reason |" in page(RECORDS, {"timm": ["one"]}, {}).splitlines()


def test_the_list_of_stricter_models_gives_reasons_for_models_of_a_backend():
    assert all(pattern.partition(":")[0] in SLICE and reason for pattern, reason in reasons().items())


def test_the_page_holds_totals_refusals_and_levels():
    text = page(RECORDS, {"timm": ["one", "two", "three", "four"]}, {"timm": {"timm": "1.0"}})
    lines = text.splitlines()
    assert "| timm | 4 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 0.5 |" in lines
    assert r"| timm:two | images \| of five axes | ValueError: no image |" in lines
    assert "| timm:three | wrong | C2 (layer1): (3, 64, 56, 56); got (3, 65, 56, 56) |" in lines
    assert "| timm:four | failed | more than 300 seconds |" in lines
    assert "| one | 224x224 |  | C5 512/32 |  |" in lines
    assert "timm 1.0." in lines


def test_documents_are_written_in_a_settled_order(tmp_path):
    for folder, records in (("a", RECORDS), ("b", RECORDS[::-1])):
        write(tmp_path / folder, records, {"timm": ["one"]}, {"timm": {"timm": "1.0"}})
    for name in ("zoo.md", "zoo.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    plain = json.loads((tmp_path / "a" / "zoo.json").read_text())
    assert [entry["id"] for entry in plain["models"]] == ["timm:four", "timm:one", "timm:three", "timm:two"]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command over two models whose records are given; the folder of documents comes with its result."""
    import zoo.cli
    from zoo.sweep import Listing, Sweep

    models = ("one", "two")
    monkeypatch.setattr(zoo.cli, "catalogue", lambda names: {name: Listing(models, models) for name in names})
    monkeypatch.setattr(zoo.cli, "refusals", lambda _: {})
    for name in zoo.cli._ENVIRONMENT:
        monkeypatch.setenv(name, "")  # what the command sets is taken back

    def command(*arguments, records=(), left=0):
        monkeypatch.setattr(zoo.cli, "sweep", lambda tasks, *_, **__: Sweep(tuple(records), left, 0))
        options = [*arguments, "--ledger", str(tmp_path / "zoo.jsonl"), "--docs", str(tmp_path)]
        result = CliRunner().invoke(zoo.cli.main, options)
        return result.exit_code, result.output, (tmp_path / "zoo.md").exists()

    return command


@pytest.mark.parametrize(
    ("arguments", "records", "left", "code", "written"),
    [
        ((), [EXACT], 0, 0, True),
        ((), [EXACT, RECORDS[2]], 0, 1, True),
        ((), [EXACT, RECORDS[3]], 0, 1, True),
        ((), [EXACT], 1, 1, False),
        (("--slice",), [EXACT], 0, 0, False),
        (("--backend", "timm"), [EXACT], 0, 0, False),
        (("--model", "nothing*"), [], 0, 2, False),
    ],
)
def test_the_command_ends_with_zero_where_all_is_well(run, arguments, records, left, code, written):
    assert (run(*arguments, records=records, left=left)[::2]) == (code, written)


def test_the_command_says_what_is_amiss(run):
    output = run(records=RECORDS)[1]
    assert "timm:three: wrong: C2 (layer1): expected (3, 64, 56, 56), got (3, 65, 56, 56)" in output
    assert "timm:four: failed: timeout: more than 300 seconds" in output
    assert "1 exact, 1 wrong, 1 refused, 1 failed" in output
