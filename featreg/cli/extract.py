"""The command ``featreg extract``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from featreg.cli.extract_options import all_options
from featreg.cli.forecast import forecast
from featreg.cli.options import GroupedCommand, check_lasting, parse_options, parse_part
from featreg.cli.summary import document, report
from featreg.errors import FeatregError, StoreError

if TYPE_CHECKING:
    from featreg.engine.planning.estimate import Estimate
    from featreg.engine.runfile.runconfig import RunConfig
    from featreg.stores import FeatureStore

__all__ = ["INTERRUPTED", "extract"]

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended: 128 and the number of SIGINT."""

NOTHING_READ = 1
"""The exit code of a run in which every image failed."""


@click.command(cls=GroupedCommand)
@click.argument("source", required=False)
@click.argument("store", required=False)
@all_options
@click.pass_context
def extract(
    ctx: click.Context,
    /,
    *,
    config_file: str | None,
    saved_file: str | None,
    dry_run: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Run a model over the samples in SOURCE and write their features to STORE.

    Images in sub-folders get the sub-folder as their class. A sample that cannot be read becomes a row with an error;
    where that is so for every one, the exit code is 1. A run that stopped is gone on with by the same command, and any
    number of them may work on one store at once.
    """
    config = _config(config_file, flags)
    check_lasting(config.store)
    if dry_run:
        _tell_estimate(config, as_json, saved_file)
        return
    try:
        result = _run(config, saved_file)
    except KeyboardInterrupt as interrupt:
        click.echo(f"interrupted: {_notes(interrupt) or _state(str(config.store))}", err=True)
        ctx.exit(INTERRUPTED)
    except FeatregError as error:
        if _notes(error):
            click.echo(_notes(error), err=True)
        raise
    click.echo(json.dumps(document(result), indent=2) if as_json else report(result))
    if result.summary.failed == len(result):
        click.echo(f"no image could be read and extracted: all {len(result)} rows of {result.uri} are errors", err=True)
        ctx.exit(NOTHING_READ)


def _config(file: str | None, flags: dict[str, Any]) -> RunConfig:
    """The run of a file, if there is one, and of the flags, which count more."""
    import attrs

    from featreg.engine.runfile.config import load_config
    from featreg.engine.runfile.runconfig import RunConfig

    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    for name, flag in (("options", "--option"), ("source_options", "--source-option")):
        if name in given:
            given[name] = parse_options(given[name], flag)
    if "part" in given:
        given["part"] = parse_part(given["part"])
    return attrs.evolve(RunConfig() if file is None else load_config(file), **given)


def _run(config: RunConfig, saved_file: str | None) -> FeatureStore:
    from featreg.engine.runfile.config import save_config
    from featreg.engine.runfile.launch import run_config

    def begin(found: Estimate) -> None:
        click.echo(forecast(found), err=True)
        if saved_file is not None:
            save_config(config, saved_file)

    return run_config(config, progress=True, on_begin=begin)


def _tell_estimate(config: RunConfig, as_json: bool, saved_file: str | None) -> None:
    from featreg.engine.runfile.launch import estimate_config

    if saved_file is not None:
        raise click.UsageError("--dry-run writes nothing, so leave out --save-config")
    found = estimate_config(config)
    click.echo(json.dumps(found.document(), indent=2) if as_json else forecast(found))
    found.check_room()


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
