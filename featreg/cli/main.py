"""The command ``featreg``. Its subcommands are imported when they are used, so that asking for help costs nothing."""

from __future__ import annotations

import importlib
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import click

import featreg
from featreg.errors import FeatregError

__all__ = ["LazyGroup", "cli", "main"]

COMMANDS = {
    "backends": ("featreg.cli.catalogue:backends", "List the installed backends and whether they work."),
    "models": ("featreg.cli.catalogue:models", "List the models of a backend."),
    "describe": ("featreg.cli.catalogue:describe", "Show every layer of a model."),
    "nodes": ("featreg.cli.nodes:nodes", "List the native names of a model."),
    "extract": (
        "featreg.cli.extract:extract",
        "Run a model over the samples in SOURCE and write their features to STORE.",
    ),
    "worker": ("featreg.cli.store:worker", "Help to complete STORE with its own model and source."),
    "derive": ("featreg.cli.derive:derive", "Derive new layers of STORE from those that it has."),
    "status": ("featreg.cli.store:status", "Show how far STORE is and who works on it."),
    "verify": ("featreg.cli.store:verify", "Check every checksum, every receipt and every row of STORE."),
    "repair": ("featreg.cli.store:repair", "Mend STORE, and plan what is damaged or failed again."),
    "export": ("featreg.cli.export:export", "Write the features of STORE to the folder OUT in another format."),
    "merge": (
        "featreg.cli.merge:merge",
        "Write the rows of finished stores, in the order given, to the new store OUT.",
    ),
    "conform": ("featreg.cli.conform:conform", "Hold a backend against the specification."),
    "new-plugin": ("featreg.cli.new_plugin:new_plugin", "Write a new plugin with a backend of your own."),
    "doctor": ("featreg.cli.doctor:doctor", "Examine this installation and say how to mend it."),
}
"""Each subcommand: where it is, and the line that help shows without importing it."""

INTERRUPTED = 130


class Failure(click.ClickException):
    """A FeatregError on its way out: its message as it is written on standard error, and exit code 2."""

    exit_code = 2

    def __init__(self, error: FeatregError, trace: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.trace = trace

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message, or the whole traceback where it was asked for."""
        text = "".join(traceback.format_exception(self.error)).rstrip() if self.trace else self.message
        click.echo(text, file=file, err=file is None)


class LazyGroup(click.Group):
    """A group whose subcommands are imported on use; errors of featreg end in a message, Ctrl-C in exit code 130."""

    def __init__(self, *arguments: Any, lazy: Mapping[str, tuple[str, str]], **fields: Any) -> None:
        super().__init__(*arguments, **fields)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return None
        module, _, attribute = self.lazy[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self.lazy.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FeatregError as error:
            raise Failure(error, trace=ctx.params["traceback"]) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--traceback",
    is_flag=True,
    envvar="FEATREG_TRACEBACK",
    help="Show the traceback of an error (also FEATREG_TRACEBACK=1).",
)
@click.version_option(featreg.__version__, prog_name="featreg")
def cli(traceback: bool) -> None:
    """Vision features of any framework, by name, in one format.

    A model is named BACKEND:MODEL, as in timm:resnet50.
    """


def main() -> None:
    """The entry point of the console script; a warning of featreg is one line, without the place in its source."""
    with warnings.catch_warnings():
        show: Any = warnings.showwarning

        def tell(message: Warning | str, category: type[Warning], filename: str, *more: Any, **fields: Any) -> None:
            if Path(filename).is_relative_to(Path(featreg.__file__).parent):
                click.echo(f"warning: {message}", err=True)
            else:
                show(message, category, filename, *more, **fields)

        warnings.showwarning = tell
        cli(prog_name="featreg")
