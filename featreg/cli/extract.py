"""The command ``featreg extract``."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

from featreg.cli.tables import format_table
from featreg.errors import FeatregError, StoreError
from featreg.pool import FORMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featreg.spec import Layer
    from featreg.stores import FeatureStore

__all__ = ["extract", "option_option", "parse_options", "stride_option", "weights_option"]

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended: 128 and the number of SIGINT."""

NOTHING_READ = 1
"""The exit code of a run in which every image failed."""

SHOWN_ERRORS = 3

_INTEGER = re.compile(r"-?[0-9]+")


option_option = click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the backend; the value is JSON, or else text, as in ema=false; repeatable.",
)
stride_option = click.option("--output-stride", type=click.IntRange(min=1), help="Dilate the network to this stride.")
weights_option = click.option(
    "--weights", default=None, help="'default', a tag, a file, or synthetic:SEED.  [default: random]"
)


@click.command()
@click.argument("source")
@click.argument("store")
@click.option("--model", required=True, metavar="BACKEND:MODEL", help="As 'featreg models BACKEND' lists them.")
@click.option(
    "--layer",
    "layers",
    multiple=True,
    required=True,
    metavar="LAYER[:POOL]",
    help="Level, head, index or native name, with a pooling of its own, as in C4:avgpool=10,10,4; repeatable.",
)
@click.option("--pool", metavar="POOL", help=f"How the layers without one of their own are pooled: {FORMS}.")
@click.option("--flatten", is_flag=True, help="Make one vector of each image's features, after pooling.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Images at a time.")
@click.option("--device", default=None, help="Where the model runs, such as cpu or cuda:0.  [default: cpu]")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="[default: float32]")
@weights_option
@stride_option
@option_option
@click.option("--limit", type=click.IntRange(min=1), help="Only the first images.")
@click.option(
    "--overwrite", is_flag=True, help="Replace a feature store that is in the way, once the new one is complete."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.pass_context
def extract(
    ctx: click.Context,
    /,
    *,
    source: str,
    store: str,
    model: str,
    layers: tuple[str, ...],
    pool: str | None,
    options: tuple[str, ...],
    batch_size: int,
    limit: int | None,
    overwrite: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    """Run a model over the images in the folder SOURCE and write their features to STORE.

    Images in sub-folders get the sub-folder as their class. An image that cannot be read becomes a row with an error;
    where that is so for every image, the exit code is 1.
    """
    import featreg

    asked = [_parse_layer(layer) for layer in layers]
    try:
        result = featreg.extract(
            source,
            store,
            model,
            [layer for layer, _ in asked],
            pool=_pooling(asked, pool),
            options=parse_options(options),
            batch_size=batch_size,
            limit=limit,
            overwrite=overwrite,
            progress=True,
            **{name: value for name, value in fields.items() if value is not None},
        )
    except KeyboardInterrupt as interrupt:
        click.echo(f"interrupted: {_notes(interrupt) or _state(store)}", err=True)
        ctx.exit(INTERRUPTED)
    except FeatregError as error:
        if _notes(error):
            click.echo(_notes(error), err=True)
        raise
    click.echo(json.dumps(_document(result), indent=2) if as_json else _report(result))
    if result.summary.failed == len(result):
        click.echo(
            f"no image could be read and extracted: all {len(result)} rows of {result.path} are errors", err=True
        )
        ctx.exit(NOTHING_READ)


def _parse_layer(text: str) -> tuple[Layer, str | None]:
    """A layer and the text of its pooling: ``C4:avgpool=10,10,4``; no library has names with a colon."""
    name, colon, pool = text.partition(":")
    layer = int(name) if _INTEGER.fullmatch(name) else name
    return layer, pool if colon else None


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """The backend's options: ``ema=false``, ``head={"mlp": [2048, 128]}``, ``names=order``."""
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or name in options:
            raise click.BadParameter(f"{text!r} is no NAME=VALUE, or the second of its name", param_hint="--option")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def _pooling(layers: Sequence[tuple[Layer, str | None]], rest: str | None) -> Any:
    """One pooling for all, or those of the layers that have their own, ``rest`` for the others."""
    if all(own is None for _, own in layers):
        return rest
    return [(layer, rest if own is None else own) for layer, own in layers]


def _notes(error: BaseException) -> str:
    """What a run said of the store that it was to replace."""
    return "; ".join(getattr(error, "__notes__", ()))


def _state(path: str) -> str:
    """What an interrupted run has left behind."""
    from featreg.stores import open_store

    try:
        store = open_store(path)
    except StoreError:
        return f"no store was written to {path}"
    done = len(store) - store.summary.pending
    return f"the store {path} can be opened; {done} of its {len(store)} rows are finished"


def _layers(store: FeatureStore) -> list[dict[str, Any]]:
    return [
        {
            "key": record.key,
            "name": record.info.name,
            "kind": record.info.kind,
            "shape": [len(store), *record.shape],
            "dtype": record.dtype,
        }
        for record in store.manifest.layers
    ]


def _document(store: FeatureStore) -> dict[str, Any]:
    summary = store.summary
    return {
        "store": str(store.path),
        "model": store.manifest.request.model,
        "weights": store.manifest.request.weights,
        "rows": summary.rows,
        "failed": summary.failed,
        "skipped": summary.skipped,
        "classes": store.classes,
        "stray": store.manifest.source.stray,
        "seconds": summary.seconds,
        "images_per_second": summary.images_per_second,
        "layers": _layers(store),
        "errors": store.errors,
    }


def _report(store: FeatureStore) -> str:
    summary, request = store.summary, store.manifest.request
    speed = summary.images_per_second or 0.0
    rows = [(layer["key"], "x".join(map(str, layer["shape"])), layer["dtype"]) for layer in _layers(store)]
    lines = [
        format_table(("layer", "shape", "dtype"), rows),
        "",
        f"rows: {summary.rows}, failed: {summary.failed}, files skipped: {summary.skipped}, images/s: {speed:.1f}",
        f"classes: {_classes(store)}",
        *_failures(store),
        f"model: {request.model}, weights: {request.weights or 'random (seeded), no pretrained weights'}",
        f"store: {store.path}",
    ]
    return "\n".join(lines)


def _classes(store: FeatureStore) -> str:
    """How many classes there are; where stray images are why there are none, their number."""
    stray = store.manifest.source.stray
    if store.classes is not None:
        return str(len(store.classes))
    images = "image lies" if stray == 1 else "images lie"
    return f"none ({stray} {images} outside of any sub-folder)" if stray else "none"


def _failures(store: FeatureStore) -> list[str]:
    """The first errors, a line each; the key in quotes, since a file name may hold anything."""
    lines = [f"  {key!r}: {error.splitlines()[0]}" for key, error in list(store.errors.items())[:SHOWN_ERRORS]]
    more = len(store.errors) - len(lines)
    return [*lines, f"  and {more} more: open_store(...).errors"] if more > 0 else lines
