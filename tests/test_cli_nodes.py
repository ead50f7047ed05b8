"""The command ``featreg nodes``: the table, the tree and the JSON of one small model, written out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from click.testing import CliRunner, Result

import featreg
from featreg.cli.main import cli
from featreg.cli.nodes import draw_tree
from featreg.spec import NodeInfo


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["nodes", *arguments])


def test_table() -> None:
    assert run("numpy:tinynet").stdout.splitlines() == [
        "native name  type         shape         layer",
        "-----------  -----------  ------------  -----------",
        "stage1       convolution  (8, 32, 32)   C1",
        "stage2       convolution  (16, 16, 16)  C2",
        "stage3       convolution  (24, 8, 8)    C3",
        "stage4       convolution  (32, 4, 4)    C4",
        "stage5       convolution  (48, 2, 2)    C5 features",
        "pool         mean         (48)          pooled",
        "classifier   linear       (10)          logits",
    ]


def test_tree_at_a_size() -> None:
    lines = run("numpy:tinynet", "--tree", "--size", "33x65").stdout.splitlines()
    assert lines[2] == "├── stage1      convolution  (8, 17, 33)  C1"
    assert lines[-1] == "└── classifier  linear       (10)         logits"


def test_json() -> None:
    found = json.loads(run("numpy:tinynet", "--json", "--size", "64").stdout)
    assert found[4] == {"name": "stage5", "type": "convolution", "shape": [48, 2, 2], "layers": ["C5", "features"]}
    assert [node["name"] for node in found] == [node.name for node in featreg.list_nodes("numpy:tinynet", (64, 64))]


def test_nested_names_and_nodes_without_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def list_nodes(*arguments: Any, **fields: Any) -> Sequence[NodeInfo]:
        asked.append((arguments, fields))
        return NodeInfo("stage1.0.conv", "Conv", (8, 4, 4)), NodeInfo("stage1", "Stage"), NodeInfo("split", "Split")

    monkeypatch.setattr("featreg.list_nodes", list_nodes, raising=False)
    assert run("numpy:tinynet", "--tree", "--train").stdout.splitlines() == [
        "native name       type   shape        layer",
        "----------------  -----  -----------  -----",
        "├── stage1        Stage  not a layer  C1",
        "│   └── 0",
        "│       └── conv  Conv   (8, 4, 4)",
        "└── split         Split  not a layer",
    ]
    assert asked == [(("numpy:tinynet", None), {"train": True})]


def test_a_tree_keeps_the_order_in_which_branches_are_named() -> None:
    rows = [("b.x", "1"), ("a", "2"), ("b.y.z", "3"), ("b", "4")]
    assert list(draw_tree(rows)) == [
        ("├── b", "4"),
        ("│   ├── x", "1"),
        ("│   └── y", ""),
        ("│       └── z", "3"),
        ("└── a", "2"),
    ]
    assert list(draw_tree([])) == []


@pytest.mark.parametrize(
    "arguments", [["numpy:nonet"], ["numpy:tinynet", "--size", "0"], ["numpy:tinynet", "--size", "x"]]
)
def test_what_cannot_be_is_an_error(arguments: list[str]) -> None:
    found = run(*arguments)
    assert (found.exit_code, found.stdout) == (2, "")


def test_every_node_can_be_asked_for_and_has_the_shape_that_it_says() -> None:
    nodes = featreg.list_nodes("numpy:tinynet", (33, 20))
    extractor = featreg.create_extractor("numpy:tinynet", [node.name for node in nodes])
    shapes = extractor.output_shapes((1, 3, 33, 20))
    assert {node.name: (1, *(node.shape or ())) for node in nodes} == shapes
