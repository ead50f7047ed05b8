"""The options of ``featreg extract``, each under its heading; those of a run file bear its names."""

from __future__ import annotations

from typing import Any

import click

from featreg.cli.options import grouped, option_option, stride_option, weights_option
from featreg.pool import FORMS
from featreg.recipe import RECIPE_FORM

__all__ = ["KINDS", "all_options"]

KINDS = ("folder", "imagefolder", "list", "tar", "parquet", "numpy", "hdf5", "huggingface", "text")
"""Those of ``featreg.sources``, which needs more than the core to be imported."""


class _BatchSize(click.ParamType[Any]):
    name = "integer|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "auto":
            return value
        try:
            return click.IntRange(min=1).convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is neither a whole number of at least 1 nor auto", param, ctx)


_DATA = grouped(
    "Data",
    click.option("--kind", type=click.Choice(KINDS), help="What SOURCE is.  [default: its name or its content tells]"),
    click.option(
        "--source-option",
        "source_options",
        multiple=True,
        metavar="NAME=VALUE",
        help="An option of the kind of source, such as a column: image=jpg, target=label; repeatable.",
    ),
    click.option("--limit", type=click.IntRange(min=1), help="Only the first samples; with --fraction, of that part."),
    click.option("--fraction", type=click.FloatRange(0, 1, min_open=True), help="About this share of the samples."),
    click.option("--seed", type=click.IntRange(min=0), help="Which samples --fraction draws.  [default: 0]"),
)
_MODEL = grouped(
    "Model",
    click.option("--model", metavar="BACKEND:MODEL", help="As 'featreg models BACKEND' lists them."),
    weights_option,
    option_option,
    stride_option,
    click.option("--device", help="Where the model runs, such as cpu or cuda:0.  [default: cpu]"),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float16", "bfloat16"]),
        help="What the model computes in.  [default: float32]",
    ),
)
_LAYERS = grouped(
    "Layers",
    click.option(
        "--layer",
        "layers",
        multiple=True,
        metavar="LAYER[:POOL][:flatten][:DTYPE]",
        help="Level, head, index or native name, with a pooling and a stored type of its own, as in "
        "C4:avgpool=10,10,4:float16; repeatable.",
    ),
    click.option("--pool", metavar="POOL", help=f"How the layers without one of their own are pooled: {FORMS}."),
    click.option(
        "--flatten/--no-flatten", default=None, help="Make one vector of each sample's features, after pooling."
    ),
    click.option(
        "--derive",
        multiple=True,
        metavar="RECIPE",
        help=f"A layer that is computed from others, which are not kept for it: {RECIPE_FORM}; repeatable.",
    ),
    click.option(
        "--concat",
        multiple=True,
        metavar="RECIPE",
        help="The same of several layers side by side, as in name=C3,C4,pooled:pca=256; repeatable.",
    ),
    click.option("--fit-from", metavar="STORE", help="Take means and components from this store's derived layers."),
    click.option(
        "--store-dtype",
        type=click.Choice(["float32", "float16"]),
        help="How features are stored.  [default: float16 where the model computes in it, else float32]",
    ),
)
_RUN = grouped(
    "Run",
    click.option(
        "--batch-size",
        type=_BatchSize(),
        metavar="N|auto",
        help="Samples at a time; auto tries what is fastest.  [default: 32, or what STORE was begun with]",
    ),
    click.option("--num-workers", type=click.IntRange(min=1), help="How many read and decode."),
    click.option(
        "--on-error",
        type=click.Choice(["record", "raise"]),
        help="A sample that fails becomes a row with an error, or stops the run.  [default: record]",
    ),
    click.option(
        "--max-error-rate", type=click.FloatRange(0, 1), help="Stop once more than this share of all rows has failed."
    ),
    click.option(
        "--part",
        metavar="I/N",
        help="This is run I of N on one store, counted from 0, as in an array job: begin with that part, then help.",
    ),
    click.option("--metrics", metavar="FILE", help="Write what the run measures to this file, as JSON lines."),
    click.option("--engine", type=click.Choice(["local", "ray"]), help="What does the work.  [default: local]"),
    click.option("--num-gpus", type=click.FloatRange(min=0), help="GPUs for --engine ray."),
    click.option("--address", help="The cluster of --engine ray.  [default: one on this machine]"),
)
_STORE = grouped(
    "Store",
    click.option(
        "--overwrite/--no-overwrite",
        default=None,
        help="Replace a feature store that is in the way, once the new one is complete.",
    ),
    click.option(
        "--add-layer",
        "add_layers",
        multiple=True,
        metavar="LAYER[:POOL]",
        help="Compute this layer too, of the model that STORE has, and no other; repeatable.",
    ),
    click.option("--append/--no-append", default=None, help="Give what is new in SOURCE new rows at the end of STORE."),
)
_COMMAND = grouped(
    "Run file and output",
    click.option("--config", "config_file", metavar="RUN.yaml", help="Take options from a run file; flags count more."),
    click.option("--save-config", "saved_file", metavar="RUN.yaml", help="Write the run file of this run."),
    click.option("--dry-run", is_flag=True, help="Say what the run would take, and stop; nothing is written."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."),
)


def all_options(command: Any) -> Any:
    """A decorator that adds them all."""
    for group in reversed((_DATA, _MODEL, _LAYERS, _RUN, _STORE, _COMMAND)):
        command = group(command)
    return command
