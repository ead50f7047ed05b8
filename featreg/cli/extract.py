"""The command ``featreg extract``."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

from featreg.cli.summary import document, report
from featreg.errors import FeatregError, StoreError
from featreg.pool import FORMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featreg.spec import Layer
    from featreg.stores import FeatureStore

__all__ = ["INTERRUPTED", "extract", "option_option", "parse_options", "parse_part", "stride_option", "weights_option"]

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended: 128 and the number of SIGINT."""

NOTHING_READ = 1
"""The exit code of a run in which every image failed."""

_INTEGER = re.compile(r"-?[0-9]+")
_PART = re.compile(r"([0-9]+)/([0-9]+)")


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
@click.option("--model", metavar="BACKEND:MODEL", help="As 'featreg models BACKEND' lists them.")
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="LAYER[:POOL]",
    help="Level, head, index or native name, with a pooling of its own, as in C4:avgpool=10,10,4; repeatable.",
)
@click.option("--pool", metavar="POOL", help=f"How the layers without one of their own are pooled: {FORMS}.")
@click.option("--flatten", is_flag=True, help="Make one vector of each image's features, after pooling.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Samples at a time.  [default: 32, or what STORE was begun with]"
)
@click.option("--device", default=None, help="Where the model runs, such as cpu or cuda:0.  [default: cpu]")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="[default: float32]")
@weights_option
@stride_option
@option_option
@click.option("--limit", type=click.IntRange(min=1), help="Only the first images.")
@click.option(
    "--overwrite", is_flag=True, help="Replace a feature store that is in the way, once the new one is complete."
)
@click.option(
    "--part",
    metavar="I/N",
    help="This is run I of N on one store, counted from 0, as in an array job: begin with that part, then help.",
)
@click.option(
    "--add-layer",
    "added",
    multiple=True,
    metavar="LAYER[:POOL]",
    help="Compute this layer too, of the model that STORE has, and no other; repeatable.",
)
@click.option("--append", "appending", is_flag=True, help="Give what is new in SOURCE new rows at the end of STORE.")
@click.option(
    "--on-error",
    type=click.Choice(["record", "raise"]),
    help="A sample that fails becomes a row with an error, or stops the run.  [default: record]",
)
@click.option(
    "--max-error-rate", type=click.FloatRange(0, 1), help="Stop once more than this share of all rows has failed."
)
@click.option("--num-workers", type=click.IntRange(min=1), help="Threads that read and decode.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.pass_context
def extract(
    ctx: click.Context,
    /,
    *,
    source: str,
    store: str,
    model: str | None,
    layers: tuple[str, ...],
    added: tuple[str, ...],
    appending: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    """Run a model over the samples in SOURCE and write their features to STORE.

    Images in sub-folders get the sub-folder as their class. A sample that cannot be read becomes a row with an error;
    where that is so for every one, the exit code is 1. A run that stopped is gone on with by the same command, and any
    number of them may work on one store at once.
    """
    given = {name: value for name, value in fields.items() if value is not None and value != () and value is not False}
    try:
        if added or appending:
            _check_addition(
                added, appending, given | ({"model": model} if model else {}) | ({"layer": layers} if layers else {})
            )
            result = _add(source, store, added, given)
        elif model is None or not layers:
            raise click.UsageError("what to extract is not given: --model and --layer")
        else:
            result = _extract(source, store, model, layers, given)
    except KeyboardInterrupt as interrupt:
        click.echo(f"interrupted: {_notes(interrupt) or _state(store)}", err=True)
        ctx.exit(INTERRUPTED)
    except FeatregError as error:
        if _notes(error):
            click.echo(_notes(error), err=True)
        raise
    click.echo(json.dumps(document(result), indent=2) if as_json else report(result))
    if result.summary.failed == len(result):
        click.echo(f"no image could be read and extracted: all {len(result)} rows of {result.uri} are errors", err=True)
        ctx.exit(NOTHING_READ)


def _extract(source: str, store: str, model: str, layers: Sequence[str], given: dict[str, Any]) -> FeatureStore:
    import featreg

    asked = [_parse_layer(layer) for layer in layers]
    part = given.pop("part", None)
    return featreg.extract(
        source,
        store,
        model,
        [layer for layer, _ in asked],
        pool=_pooling(asked, given.pop("pool", None)),
        options=parse_options(given.pop("options", ())),
        part=parse_part(part),
        progress=True,
        **given,
    )


_ADDING = {"batch_size", "num_workers", "part", "max_error_rate"}


def _add(source: str, store: str, added: Sequence[str], given: dict[str, Any]) -> FeatureStore:
    """More layers, or more rows where there are none of them; all that decides the values is that of the store."""
    from featreg.engine import add_layers, append

    run = {**given, "part": parse_part(given.get("part")), "progress": True}
    if not added:
        return append(store, source=source, **run)
    asked = [_parse_layer(layer) for layer in added]
    return add_layers(store, [layer for layer, _ in asked], pool=_pooling(asked, None), source=source, **run)


def _check_addition(added: Sequence[str], appending: bool, given: dict[str, Any]) -> None:
    besides = sorted(f"--{name.replace('_', '-')}" for name in set(given) - _ADDING)
    if besides or (added and appending):
        raise click.UsageError(
            "--add-layer and --append take the model from the store, and go one after the other; "
            f"leave out {', '.join(besides) or 'one of them'}"
        )


def parse_part(text: str | None) -> tuple[int, int] | None:
    """A part as it is written: ``2/8``."""
    if text is None:
        return None
    match = _PART.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{text!r} is no I/N, as in 0/8", param_hint="--part")
    return int(match[1]), int(match[2])


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
