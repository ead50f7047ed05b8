"""The command ``featreg derive``."""

from __future__ import annotations

import json
from typing import Any

import click

from featreg.cli.catalogue import json_option
from featreg.cli.options import parse_part
from featreg.cli.summary import document, report
from featreg.recipe import RECIPE_FORM
from featreg.steps import FORMS

__all__ = ["derive"]


@click.command(epilog=f"RECIPE is {RECIPE_FORM}, and STEP is {FORMS}.")
@click.argument("store")
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@click.option("--fit-from", metavar="OTHER", help="Take what has to be learnt from this store, which derived the same.")
@click.option(
    "--store-dtype",
    type=click.Choice(["float32", "float16"]),
    help="How the new layers are stored.  [default: float16 where the model computes in it, else float32]",
)
@click.option("--part", metavar="I/N", help="This is run I of N on one store, counted from 0: begin with that part.")
@json_option
def derive(store: str, recipes: tuple[str, ...], part: str | None, as_json: bool, **fields: Any) -> None:
    """Derive new layers of STORE from those that it has.

    They are pooled, joined, normalised, centred, reduced or projected, without the model or the source, and with as
    much memory as one block of rows takes. A run that stopped is gone on with by the same command, or by
    'featreg worker'.

    As in: featreg derive features.zarr small=C5:avg:center:pca=64
    """
    import featreg

    found = featreg.derive(store, recipes, part=parse_part(part), progress=True, **fields)
    click.echo(json.dumps(document(found), indent=2) if as_json else report(found))
