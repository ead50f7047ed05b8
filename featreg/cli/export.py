"""The command ``featreg export``."""

from __future__ import annotations

import json

import click

from featreg.cli.tables import format_table

__all__ = ["export"]

FORMATS = ("npy", "npz", "safetensors", "hdf5", "parquet", "mat", "csv", "txt")


@click.command()
@click.argument("store")
@click.argument("out")
@click.option("--format", "kind", type=click.Choice(FORMATS), required=True, help="What to write.")
@click.option(
    "--layer", "layers", multiple=True, metavar="LAYER", help="A layer of the store; repeatable.  [default: all]"
)
@click.option("--where", type=click.Choice(["ok"]), help="Leave out the rows that failed, which are NaN otherwise.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export, once the new one is complete.")
@click.option("--json", "as_json", is_flag=True, help="Print export.json and nothing else.")
def export(  # noqa: PLR0917  (click gives them by name)
    store: str, out: str, kind: str, layers: tuple[str, ...], where: str | None, overwrite: bool, as_json: bool
) -> None:
    """Write the features of STORE to the folder OUT in another format.

    OUT holds the arrays of the layers and of the targets: a file for each (npy, parquet, csv, txt) or one for all
    (features.npz, .safetensors, .h5, .mat). Beside them, samples.csv has the key and the status of every row, and
    export.json the shape of every array. In text, a row of any shape is one line.
    """
    from featreg.export import export_store
    from featreg.stores import open_store

    opened = open_store(store)
    asked = [_layer(layer, opened.layers) for layer in layers] or None
    folder = export_store(opened, out, kind, layers=asked, where=where, overwrite=overwrite)
    text = (folder / "export.json").read_text(encoding="utf-8")
    if as_json:
        click.echo(text)
        return
    document = json.loads(text)
    rows = [
        (name, "x".join(map(str, array["shape"])), array["dtype"], array["file"])
        for name, array in document["arrays"].items()
    ]
    click.echo(format_table(("array", "shape", "dtype", "file"), rows))
    click.echo(f"\nrows: {document['rows']}, export: {folder}")


def _layer(text: str, known: tuple[str | int, ...]) -> str | int:
    """A layer as it was asked for: an index is a number."""
    return next((layer for layer in known if str(layer) == text), text)
