"""Projection heads: what the options leave open is read off the checkpoint, and what contradicts it is refused."""

import pytest
import torch
from torch import nn

from featreg.plugin import WeightsReport, errors
from featreg_torch.projection import build_projection, check_head, check_use, report_head
from featreg_torch.weights import Checkpoint

PARTS = {
    "linear relu linear": {"0.clf.0": (6, 8), "0.clf.2": (4, 6)},
    "linear linear": {"0.clf.0": (6, 8), "0.clf.1": (4, 6)},
    "two parts": {"0.clf.0": (6, 8), "1.clf.0": (4, 6)},
}


def checkpoint(parts):
    head = {}
    for name, (narrow, wide) in PARTS[parts].items():
        head |= {f"{name}.weight": torch.randn(narrow, wide), f"{name}.bias": torch.randn(narrow)}
    return Checkpoint({}, WeightsReport("v.torch"), head)


def kinds(projection):
    return [type(part) for part in projection]


@pytest.mark.parametrize("fields", [{}, {"relu": True}, {"bias": True}, {"bn": False}])
def test_the_file_says_whether_there_is_an_activation_where_the_option_does_not(fields):
    projection = build_projection({"head": {"mlp": [8, 6, 4], **fields}}, checkpoint("linear relu linear"), 8)
    assert kinds(projection) == [nn.Linear, nn.ReLU, nn.Linear]


@pytest.mark.parametrize(
    ("parts", "fields"),
    [
        ("linear relu linear", {"relu": False}),
        ("linear relu linear", {"bn": True}),
        ("linear relu linear", {"bias": False}),
        ("linear relu linear", {"mlp": [8, 5, 4]}),
        ("linear linear", {"relu": True}),
    ],
)
def test_an_option_that_contradicts_the_file_is_refused(parts, fields):
    with pytest.raises(errors.WeightsError, match="as the option 'head' describes it"):
        build_projection({"head": {"mlp": [8, 6, 4], **fields}}, checkpoint(parts), 8)


def test_what_no_name_tells_is_the_options_to_say():
    for relu in (True, False):
        projection = build_projection({"head": {"mlp": [8, 6, 4], "relu": relu}}, checkpoint("two parts"), 8)
        assert (nn.ReLU in kinds(projection)) == relu
    with pytest.raises(errors.WeightsError, match="does not say by itself"):
        build_projection({}, checkpoint("two parts"), 8)


def test_an_activation_at_the_end_of_one_layer_changes_nothing():
    """Of one layer nothing follows that it could stand before."""
    given = Checkpoint(
        {}, WeightsReport("v.torch"), {"0.clf.0.weight": torch.ones(4, 8), "0.clf.0.bias": torch.ones(4)}
    )
    assert kinds(build_projection({"head": {"mlp": [8, 4], "relu": True}}, given, 8)) == [nn.Linear]


@pytest.mark.parametrize(
    ("head", "problem", "got"),
    [
        (None, "describes a projection", "None"),
        ([8, 4], "describes a projection", "[8, 4]"),
        ({}, "describes a projection", "{}"),
        ({"mlp": "x"}, "'mlp' of the option 'head' lists widths", "'x'"),
        ({"mlp": [8]}, "'mlp' of the option 'head' lists widths", "[8]"),
        ({"mlp": [8, 0]}, "'mlp' of the option 'head' lists widths", "[8, 0]"),
        ({"mlp": [8, 4.5]}, "'mlp' of the option 'head' lists widths", "[8, 4.5]"),
        ({"mlp": [8, True]}, "'mlp' of the option 'head' lists widths", "[8, True]"),
        ({"mlp": [8, 4], "relus": True}, "no field 'relus'", "'relus'"),
        ({"mlp": [8, 4], "relu": 1}, "'relu' of the option 'head' is a switch", "1"),
    ],
)
def test_an_option_that_describes_no_projection_says_what_is_wrong_with_it(head, problem, got):
    with pytest.raises(errors.SpecError, match=problem) as caught:
        check_head({"head": head})
    assert caught.value.got == got
    assert "options={'head'" in caught.value.remedy
    assert caught.value.matches == (("relu",) if "relus" in (head or ()) else ())


def test_a_projection_that_the_model_does_not_fit_says_whose_fault_it_is():
    with pytest.raises(errors.SpecError, match="the option 'head' does not fit") as caught:
        build_projection({"head": {"mlp": [6, 4]}}, None, 8)
    assert (caught.value.got, caught.value.remedy) == ("6", "begin 'mlp' with 8")
    with pytest.raises(errors.WeightsError, match="the projection head of 'v\\.torch' does not fit") as caught:
        build_projection({}, checkpoint("linear relu linear"), 16)
    assert "architecture" in caught.value.remedy
    with pytest.raises(errors.WeightsError, match="holds no projection head") as caught:
        build_projection({"head": {"mlp": [8, 4]}}, Checkpoint({}, WeightsReport("v.torch")), 8)
    assert "leave the layer 'head' out" in caught.value.remedy


def test_a_projection_without_its_layer_or_beside_one_of_that_name_is_refused():
    options = {"head": {"mlp": [8, 4]}}
    check_use({}, ["pooled"], ["head"])
    check_use(options, ["pooled", "head"], ["layer4"])
    for layers, names in ((["pooled"], ["layer4"]), (["head"], ["layer4", "head"])):
        with pytest.raises(errors.CapabilityError, match="the option 'head'"):
            check_use(options, layers, names)


def test_the_report_says_what_became_of_the_head():
    given, projection = checkpoint("two parts"), nn.Sequential(nn.Linear(1, 1))
    said = [
        report_head(given.report, given, *arguments).notes[0].removeprefix("projection head of 4 weights ")
        for arguments in ((projection, ["head"]), (None, ["head"]), (None, ["pooled"]))
    ]
    assert said == [
        "loaded",
        "not loaded: the layer 'head' is the model's own",
        "not loaded: the layer 'head' was not asked for",
    ]
