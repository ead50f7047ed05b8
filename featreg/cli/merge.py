"""The command ``featreg merge``."""

from __future__ import annotations

import click

from featreg.cli.options import check_lasting

__all__ = ["merge"]


@click.command()
@click.argument("out")
@click.argument("stores", nargs=-1, required=True, metavar="STORE...")
@click.option(
    "--prefix",
    "prefixes",
    multiple=True,
    metavar="TEXT",
    help="What to put before the keys of a store, as in train/; once for each store, in their order.",
)
@click.option("--overwrite", is_flag=True, help="Replace a feature store, once the new one is complete.")
def merge(out: str, stores: tuple[str, ...], prefixes: tuple[str, ...], overwrite: bool) -> None:
    """Write the rows of finished stores, in the order given, to the new store OUT.

    The stores have the same layers, fingerprint and classes, and no key in common.
    """
    from featreg.engine.merge import merge_stores

    check_lasting(out)
    store = merge_stores(out, stores, prefixes=prefixes or None, overwrite=overwrite)
    summary = store.summary
    click.echo(f"rows: {summary.rows}, failed: {summary.failed}, stores: {len(stores)}, store: {store.uri}")
