"""``featreg backends``, ``featreg models`` and ``featreg describe``: what there is to choose from."""

from __future__ import annotations

import json
import re
from typing import Any

import attrs
import click

import featreg
from featreg.cli.options import option_option, parse_options, stride_option, weights_option
from featreg.cli.tables import format_fields, format_table
from featreg.errors import FeatregError, InputError, MissingDependencyError, UnknownModelError
from featreg.hookspecs import BackendSpec
from featreg.registry import Plugin, Registry, default_registry
from featreg.requirements import FEATURES, examine_requirement, extras
from featreg.spec import FeatureInfo, ModelInfo, Preprocess

__all__ = [
    "BackendReport",
    "backends",
    "describe",
    "examine",
    "failure_fields",
    "json_option",
    "models",
    "print_json",
    "size_option",
]


def _parse_size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)(?:[xX]([1-9]\d*))?", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a size; write 224, or 224x320 for height x width", ctx, param)
    return int(match[1]), int(match[2] or match[1])


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
size_option = click.option(
    "--size",
    metavar="H[xW]",
    callback=_parse_size,
    help="The height and width of the images; by default the model's own.",
)


@attrs.frozen
class BackendReport:
    """What can be said of one installed backend; ``failure`` is None where nothing is known to be wrong."""

    plugin: Plugin
    spec: BackendSpec | None
    failure: FeatregError | None

    @property
    def status(self) -> str:
        """``ready``, ``missing`` (its framework is absent or of the wrong version) or ``broken``."""
        if self.failure is None:
            return "ready"
        return "missing" if isinstance(self.failure, MissingDependencyError) else "broken"

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "name": self.plugin.name,
            "status": self.status,
            "distribution": self.plugin.distribution,
            "version": self.plugin.version,
            "entry_point": self.plugin.target,
            "spec": None if self.spec is None else attrs.asdict(self.spec),
            "failure": None if self.failure is None else failure_fields(self.failure),
        }


def failure_fields(failure: FeatregError) -> dict[str, Any]:
    """The type and the five fields of an error."""
    return {"type": type(failure).__name__, **attrs.asdict(failure)}


def examine(registry: Registry) -> list[BackendReport]:
    """A report of every installed backend, by name; imports no framework."""
    failures = registry.failures()
    return [
        BackendReport(plugin, registry.declared(plugin.name), failures.get(plugin.name))
        for plugin in registry.plugins()
    ]


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2))


@click.command()
@json_option
def backends(as_json: bool) -> None:
    """List the installed backends and whether they work.

    Reads metadata only: no framework is imported.
    """
    registry = default_registry()
    registry.names()  # raises where FEATREG_STRICT is set and a backend is broken
    reports = examine(registry)
    if as_json:
        print_json([report.to_dict() for report in reports])
        return
    rows = [(report.plugin.name, report.status, report.plugin.owner, _summary(report)) for report in reports]
    click.echo(format_table(("backend", "status", "distribution", "summary"), rows))
    if any(report.failure is not None for report in reports):
        click.echo("\nfeatreg doctor says how to mend what is not ready")
    absent = [name for name, wanted in extras().items() if name not in FEATURES and not all(map(_is_satisfied, wanted))]
    if absent:
        click.echo(f'\nnot installed: {", ".join(absent)} (pip install "featreg[{absent[0]}]")')


def _is_satisfied(requirement: str) -> bool:
    return examine_requirement(requirement).satisfied


def _summary(report: BackendReport) -> str:
    if report.failure is not None:
        return report.failure.problem.splitlines()[0]
    return report.spec.summary if report.spec is not None else ""


@click.command()
@click.argument("backend")
@click.argument("pattern", metavar="[GLOB]", default="*")
@json_option
def models(backend: str, pattern: str, as_json: bool) -> None:
    """List the models of a backend.

    One name a line; with GLOB only those that match it, as in 'resnet*'.
    """
    names = featreg.list_models(backend, pattern)
    if not names:
        matches, remedy = default_registry().suggest(backend, re.sub(r"[*?\[\]!]", "", pattern))
        raise UnknownModelError(
            f"no model of the backend {backend!r} matches {pattern!r}",
            got=repr(pattern),
            matches=matches,
            remedy=remedy,
        )
    if as_json:
        print_json(list(names))
    else:
        click.echo("\n".join(names))


@click.command()
@click.argument("model", metavar="BACKEND:MODEL")
@size_option
@weights_option
@stride_option
@option_option
@json_option
def describe(model: str, size: tuple[int, int] | None, as_json: bool, options: tuple[str, ...], **fields: Any) -> None:
    """Show every layer of a model.

    What to ask for, what it gives, and its shape for images of a size: as it would be opened, without loading weights.
    """
    asked = {**fields, "options": parse_options(options) or None}
    info = featreg.describe(model, size, **{name: value for name, value in asked.items() if value is not None})
    if as_json:
        from featreg.serialize import to_dict

        print_json({**to_dict(info), "shapes": [_shape(feature, info) for feature in info.features]})
        return
    click.echo(_header(info))
    native = [feature for feature in info.native if feature not in info.features]
    rows = [_row(feature.level or feature.head, feature, info) for feature in info.features]
    rows += [_row(feature.name, feature, info) for feature in native]
    click.echo("\n" + format_table(("layer", "index", "native name", "kind", "channels", "reduction", "shape"), rows))


def _row(layer: str | None, feature: FeatureInfo, info: ModelInfo) -> tuple[str | int | None, ...]:
    shape = _shape_text(_shape(feature, info))
    return layer, feature.index, feature.name, feature.kind, feature.channels, feature.reduction, shape


def _shape(feature: FeatureInfo, info: ModelInfo) -> list[str | int] | None:
    """The shape with ``"N"`` for the batch; None where it is not known at this size."""
    try:
        return ["N", *feature.shape(1, *info.input_size)[1:]]
    except InputError:
        return None


def _shape_text(shape: list[str | int] | None) -> str | None:
    return None if shape is None else f"({', '.join(map(str, shape))})"


def _header(info: ModelInfo) -> str:
    fields = {
        "input": f"{info.input_rule.channels} channels, {info.input_rule}",
        "preprocess": _steps_text(info.preprocess),
        "normalise": _normalise_text(info.preprocess),
        "capabilities": ", ".join(info.capabilities) or "none beyond the minimum",
        **({"deviations": "; ".join(info.deviations)} if info.deviations else {}),
    }
    return f"{info.id} at {_size_text(info.input_size)}\n{format_fields(fields)}"


def _steps_text(preprocess: Preprocess) -> str:
    steps = []
    if preprocess.resize is not None:
        verb = {"shortest": "cover", "longest": "fit into", "exact": "resize to"}[preprocess.resize_mode]
        steps.append(f"{verb} {_size_text(preprocess.resize)} ({preprocess.interpolation})")
    if preprocess.crop is not None:
        steps.append(f"crop {_size_text(preprocess.crop)} from the centre")
    return ", ".join(steps) or "none"


def _normalise_text(preprocess: Preprocess) -> str:
    mean, std = (" ".join(f"{value:.4g}" for value in triple) for triple in (preprocess.mean, preprocess.std))
    return f"mean {mean}, std {std}, {preprocess.color}"


def _size_text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
