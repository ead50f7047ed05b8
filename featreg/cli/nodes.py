"""``featreg nodes``: every native name of a model, as a table or as a tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import attrs
import click

import featreg
from featreg.cli.catalogue import json_option, print_json, size_option
from featreg.cli.tables import format_table
from featreg.spec import ModelInfo, NodeInfo

__all__ = ["draw_tree", "nodes"]

Branch: TypeAlias = dict[str, "Branch"]
HEADERS = ("native name", "type", "shape", "layer")


@click.command()
@click.argument("model", metavar="BACKEND:MODEL")
@size_option
@click.option("--tree", "as_tree", is_flag=True, help="Draw the names as the tree that their dots make.")
@click.option("--train", is_flag=True, help="The names in training mode, where they differ.")
@json_option
def nodes(model: str, size: tuple[int, int] | None, as_tree: bool, train: bool, as_json: bool) -> None:
    """List the native names of a model.

    Each that has a shape can be asked for as a layer, besides the levels, heads and indices of 'featreg describe'. A
    row also shows what the name stands for, the shape of its output for one image, and the levels and heads that are
    taken there.
    """
    found = featreg.list_nodes(model, size, train=train)
    marks = _marks(featreg.describe(model, size))
    if as_json:
        print_json([{**attrs.asdict(node), "layers": marks.get(node.name, [])} for node in found])
        return
    rows = [(node.name, *_columns(node, marks)) for node in found]
    click.echo(format_table(HEADERS, list(draw_tree(rows)) if as_tree else rows))


def _marks(info: ModelInfo) -> Mapping[str, list[str]]:
    """The levels and heads that are taken at each name."""
    marks: dict[str, list[str]] = {}
    for feature in info.features:
        for mark in (feature.level, feature.head):
            if mark is not None and mark not in marks.setdefault(feature.name, []):
                marks[feature.name].append(mark)
    return marks


def _columns(node: NodeInfo, marks: Mapping[str, list[str]]) -> tuple[str, str, str]:
    shape = "not a layer" if node.shape is None else f"({', '.join(map(str, node.shape))})"
    return node.type, shape, " ".join(marks.get(node.name, ()))


def draw_tree(rows: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """The rows of a table whose first column holds dotted names, that column drawn as a tree.

    Branches come in the order in which they are first named; one that is no name of its own gets a row without values.
    """
    root: Branch = {}
    for name, *_ in rows:
        branch = root
        for part in name.split("."):
            branch = branch.setdefault(part, {})
    values = {name: columns for name, *columns in rows}
    blank = [""] * max((len(columns) for columns in values.values()), default=0)
    for drawn, name in _draw(root):
        yield (drawn, *values.get(name, blank))


def _draw(branch: Branch, indent: str = "", parent: str = "") -> Iterator[tuple[str, str]]:
    """Every branch as it is drawn, and its whole name."""
    for number, (part, below) in enumerate(branch.items(), start=1):
        last = number == len(branch)
        yield f"{indent}{'└── ' if last else '├── '}{part}", parent + part
        yield from _draw(below, indent + ("    " if last else "│   "), f"{parent}{part}.")
