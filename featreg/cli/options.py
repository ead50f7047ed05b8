"""Options that several commands share, what their texts mean, and help in which options stand in groups."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import click

from featreg.errors import SpecError

__all__ = [
    "GroupedCommand",
    "check_lasting",
    "grouped",
    "option_option",
    "parse_options",
    "parse_part",
    "stride_option",
    "weights_option",
]

_PART = re.compile(r"([0-9]+)/([0-9]+)")
_WEIGHTS_HELP = "'default', a tag, a file, or synthetic:SEED.  [default: random]"
_STRIDE_HELP = "Dilate the network to this stride."
_OPTION_HELP = "An option of the backend; the value is JSON, or else text, as in ema=false; repeatable."

option_option = click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help=_OPTION_HELP)
stride_option = click.option("--output-stride", type=click.IntRange(min=1), help=_STRIDE_HELP)
weights_option = click.option("--weights", default=None, help=_WEIGHTS_HELP)


class GroupedCommand(click.Command):
    """A command whose help shows its options under their headings, in the order in which they are declared."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(parameter, "heading", "Help"), []).append(record)
        for heading, records in sorted(sections.items(), key=lambda section: section[0] == "Help"):
            with formatter.section(heading):
                formatter.write_dl(records)


def grouped(heading: str, *options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A decorator that adds options under one heading."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
            command.__click_params__[-1].heading = heading
        return command

    return decorate


def parse_options(texts: Sequence[str], flag: str = "--option") -> dict[str, Any]:
    """Options by their names, the values JSON or else text: ``ema=false``, ``head={"mlp": [8]}``, ``names=order``."""
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or name in options:
            raise click.BadParameter(f"{text!r} is no NAME=VALUE, or the second of its name", param_hint=flag)
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def check_lasting(store: str | None) -> None:
    """Raise SpecError for a new store in memory, which is gone when the command ends."""
    if store is not None and store.startswith("memory:"):
        raise SpecError(
            "a store in memory is gone when the command ends",
            "a path, or the URL of something that stays",
            repr(store),
            remedy="featreg.extract in Python, whose process can read it",
        )


def parse_part(text: str | None) -> tuple[int, int] | None:
    """A part as it is written: ``2/8``."""
    if text is None:
        return None
    match = _PART.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{text!r} is no I/N, as in 0/8", param_hint="--part")
    part, parts = int(match[1]), int(match[2])
    if part >= parts:
        raise click.BadParameter(f"there is no part {text}: I of I/N goes from 0 to N - 1", param_hint="--part")
    return part, parts
