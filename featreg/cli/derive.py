"""The command ``featreg derive``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from featreg.cli.catalogue import json_option
from featreg.cli.forecast import forecast
from featreg.cli.options import parse_part
from featreg.cli.summary import document, report
from featreg.recipe import RECIPE_FORM
from featreg.steps import FORMS

if TYPE_CHECKING:
    from featreg.engine.planning.estimate import Estimate

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
@click.option("--dry-run", is_flag=True, help="Say what it would take, and stop.")
@json_option
def derive(store: str, recipes: tuple[str, ...], part: str | None, dry_run: bool, as_json: bool, **fields: Any) -> None:
    """Derive new layers of STORE from those that it has.

    They are pooled, joined, normalised, centred, reduced or projected, without the model or the source, and with as
    much memory as one block of rows takes. A run that stopped is gone on with by the same command, or by
    'featreg worker'.

    As in: featreg derive features.zarr small=C5:avg:center:pca=64
    """
    import featreg
    from featreg.engine.deriving import estimate_derived

    if dry_run:
        told = estimate_derived(store, recipes, **fields)
        click.echo(json.dumps(told.document(), indent=2) if as_json else forecast(told))
        told.check_room()
        return

    def begin(estimate: Estimate) -> None:
        click.echo(forecast(estimate), err=True)

    found = featreg.derive(store, recipes, part=parse_part(part), progress=True, on_estimate=begin, **fields)
    click.echo(json.dumps(document(found), indent=2) if as_json else report(found))
