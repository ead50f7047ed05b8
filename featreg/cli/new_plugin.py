"""``featreg new-plugin``: a backend as a distribution of its own, which passes the conformance kit from the start."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

import featreg
from featreg.errors import MissingDependencyError, RequestError, SpecError, StoreExistsError
from featreg.registry import default_registry
from featreg.requirements import FEATURES, extras

__all__ = ["check_name", "new_plugin", "render_plugin", "template_folder"]

TEMPLATE = "featreg-plugin-template"
SHIPPED = "plugin_template"
"""The template's name inside the wheel."""

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")

NEXT_STEPS = """\
{folder} holds the backend {name!r}. Next:
  cd {folder}
  pip install -e ".[test]"
  pytest
README.md says which file is for what."""


@click.command(name="new-plugin")
@click.argument("name")
@click.option(
    "--into",
    default=".",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder that will hold the new one; this one by default.",
)
def new_plugin(name: str, into: Path) -> None:
    """Write a new plugin with a backend of your own.

    The folder featreg-NAME will hold a working backend called NAME, with its tests, for you to change.
    """
    folder = render_plugin(name, into)
    click.echo(NEXT_STEPS.format(folder=folder, name=name))


def render_plugin(name: str, into: Path) -> Path:
    """Render the template into the folder ``featreg-NAME`` of another one; gives its path.

    Raises SpecError for a name that cannot be a backend's, RequestError for one that is taken and where there is no
    folder ``into``, StoreExistsError where the new one is, and MissingDependencyError without the extra
    ``featreg[new-plugin]``.
    """
    check_name(name)
    if not into.is_dir():
        raise RequestError(
            f"there is no folder {str(into)!r}", "one that exists", remedy="make it, or choose another --into"
        )
    folder = into / f"featreg-{name.replace('_', '-')}"
    if folder.exists():
        raise StoreExistsError(
            f"{str(folder)!r} exists", "a new folder", "a file or folder", remedy="remove it, or choose another --into"
        )
    run_copy = _copier()
    answers = {"name": name, "featreg_version": featreg.__version__}
    try:
        run_copy(str(template_folder()), folder, data=answers, defaults=True, quiet=True)
    except OSError as error:
        raise RequestError(
            f"{str(folder)!r} cannot be written", got=error.strerror or str(error), remedy="choose another --into"
        ) from error
    return folder


def check_name(name: str) -> None:
    """Raise SpecError for a name that is no Python name as well, RequestError for one of another backend."""
    if not NAME.fullmatch(name):
        likely = "_".join(re.findall(r"[a-z0-9]+", re.sub(r"^[^a-z]+", "", name.lower())))
        raise SpecError(
            f"{name!r} cannot name a new backend",
            "lower-case letters and digits, in words joined by '_', beginning with a letter",
            repr(name),
            (likely,) if likely else (),
        )
    if name in default_registry().names() or name in extras():
        what = "an extra of featreg" if name in FEATURES else "a backend that exists"
        raise RequestError(f"{name!r} is {what}", "a name of its own", repr(name), remedy="choose another name")


def template_folder() -> Path:
    """Where the template is: in the installed package, or beside it in a checkout."""
    package = Path(featreg.__file__).parent
    shipped = package / SHIPPED
    return shipped if shipped.is_dir() else package.parent / TEMPLATE


def _copier() -> Any:
    try:
        from copier import run_copy
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"rendering a plugin needs {error.name}, which is not installed",
            "the extra featreg[new-plugin]",
            remedy='pip install "featreg[new-plugin]"',
        ) from error
    return run_copy
