"""The run file: every option of ``featreg extract`` in one document, read from YAML and written to it."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path as File
from typing import Any, TypeVar

import attrs
import cattrs
from cattrs import ClassValidationError, IterableValidationError
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn, override

import featreg
from featreg.engine.runfile.choices import LayerChoice
from featreg.engine.runfile.plainyaml import Path, dump, load
from featreg.engine.runfile.runconfig import RunConfig
from featreg.errors import FeatregError, SpecError, near_matches
from featreg.pool import Pool
from featreg.recipe import Recipe
from featreg.request import thaw
from featreg.schema import json_schema
from featreg.serialize import strict_converter

__all__ = ["config_schema", "from_plain", "load_config", "save_config", "to_plain", "write_schema"]

T = TypeVar("T")

DOCS = "the options of docs/extraction.md"


def load_config(path: str | os.PathLike[str]) -> RunConfig:
    """The run that a YAML file describes.

    Raises SpecError that names the line, the place within the document, what was expected and what comes nearest.
    """
    try:
        text = File(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"the run file {os.fspath(path)!r} cannot be read",
            "a YAML file in UTF-8",
            f"{type(error).__name__}: {error}",
        ) from error
    try:
        document = load(text)
    except SpecError as error:
        raise attrs.evolve(error, problem=f"{os.fspath(path)}, {error.problem}") from error
    return from_plain(document.value, name=os.fspath(path), lines=document.lines)


def save_config(config: RunConfig, path: str | os.PathLike[str]) -> None:
    """Write a run file that starts the same run again, from any folder; an older file gives way.

    Raises SpecError where it cannot be written.
    """
    head = f"# featreg {featreg.__version__}: run it with: featreg extract --config FILE\n"
    aside = File(path).with_name(f".{File(path).name}.{os.getpid()}")
    try:
        aside.write_text(head + dump(to_plain(config.located())), encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise SpecError(
            f"the run file {os.fspath(path)!r} cannot be written", got=f"{type(error).__name__}: {error}"
        ) from error


def from_plain(plain: Any, *, name: str = "the run file", lines: Mapping[Path, int] | None = None) -> RunConfig:
    """The run in a document of mappings, lists, texts and numbers; raises SpecError that names every mistake."""
    if not isinstance(plain, Mapping):
        raise SpecError(f"{name} holds no mapping", f"{DOCS}, each with its value", type(plain).__name__)
    try:
        return _converter().structure(plain, RunConfig)
    except FeatregError as error:
        raise attrs.evolve(error, problem=f"{name}: {error.problem}") from error
    except Exception as error:
        raise _mistakes(list(_leaves(error, ())), name, lines or {}) from error


def to_plain(config: RunConfig) -> dict[str, Any]:
    """A run as mappings, lists, texts and numbers; what was not asked for is left out."""
    plain: dict[str, Any] = {}
    for field in attrs.fields(RunConfig):
        value = getattr(config, field.name)
        if value is not None and value not in ((), {}):
            plain[field.name] = _plain(value)
    if config.part is not None:
        plain["part"] = "{}/{}".format(*config.part)
    return plain


def config_schema() -> dict[str, Any]:
    """The JSON Schema of the document."""
    return json_schema(RunConfig)


def write_schema(folder: File) -> None:
    """Write the JSON Schema into a folder: ``python -m featreg.engine.runfile.config specs/``."""
    (folder / "run-file.schema.json").write_text(json.dumps(config_schema(), indent=2) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, LayerChoice):
        return value.plain
    if isinstance(value, Recipe):
        return _plain_recipe(value)
    if isinstance(value, Pool):
        return str(value)
    if isinstance(value, tuple):
        return list(map(_plain, value))
    return thaw({str(key): item for key, item in value.items()}) if isinstance(value, Mapping) else value


def _plain_recipe(recipe: Recipe) -> Any:
    """Its text, or a mapping where the text would be read as another recipe."""
    try:
        if Recipe.parse(str(recipe)) == recipe:
            return str(recipe)
    except FeatregError:
        pass
    return {name: value for name, value in _converter().unstructure(recipe).items() if value is not None}


@functools.cache
def _converter() -> cattrs.Converter:
    converter = strict_converter()
    for cls in (LayerChoice, Recipe):
        read = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True, **_checked(cls, converter))
        converter.register_structure_hook(cls, functools.partial(_text_or_mapping, cls, read))
    read = make_dict_structure_fn(
        RunConfig, converter, _cattrs_forbid_extra_keys=True, **_checked(RunConfig, converter)
    )
    converter.register_structure_hook(RunConfig, read)
    return converter


def _checked(cls: type, converter: cattrs.Converter) -> dict[str, Any]:
    """Hooks that convert and check each field at once, so that a mistake has its place."""

    def hook(field: attrs.Attribute[Any]) -> Any:
        convert: Any = field.converter
        raw = field.metadata.get("raw", "enum" in getattr(field.validator, "schema", {}))

        def read(value: Any, kind: Any) -> Any:
            made = value if raw else converter.structure(value, kind)
            made = made if convert is None else convert(made)
            if field.validator is not None:
                field.validator(None, field, made)
            return made

        return override(struct_hook=read)

    return {field.name: hook(field) for field in attrs.fields(attrs.resolve_types(cls))}


def _text_or_mapping(cls: Any, read: Any, value: Any, kind: Any) -> Any:
    if isinstance(value, str):
        return cls.parse(value)
    if cls is LayerChoice and type(value) is int:
        return LayerChoice(value)
    if not isinstance(value, Mapping):
        raise SpecError(f"no {cls.__name__}", "a text, or a mapping", repr(value))
    return read(value, kind)


def _leaves(error: BaseException, path: Path) -> Iterator[tuple[Path, BaseException]]:
    """Every mistake and where it is, out of the groups that cattrs makes of them."""
    if isinstance(error, ClassValidationError):
        named, rest = error.group_exceptions()
        for inner, note in named:
            yield from _leaves(inner, (*path, note.name))
        for inner in rest:
            yield from _leaves(inner, path)
    elif isinstance(error, IterableValidationError):
        items, rest = error.group_exceptions()
        for inner, item in items:
            yield from _leaves(inner, (*path, item.index))
        for inner in rest:
            yield from _leaves(inner, path)
    elif isinstance(error, ForbiddenExtraKeysError):
        known = [field.name for field in attrs.fields(error.cl)]
        for key in sorted(error.extra_fields, key=str):
            found = near_matches(str(key), known, limit=3)
            yield (*path, key), SpecError("there is no such option", ", ".join(known), matches=found)
    else:
        yield path, error


def _mistakes(found: list[tuple[Path, BaseException]], name: str, lines: Mapping[Path, int]) -> SpecError:
    """One mistake with all its fields, or several with a line each."""
    found = sorted(found, key=lambda one: _line(one[0], lines) or 0)
    errors = [(_where(path, lines), _as_error(error)) for path, error in found]
    if len(errors) == 1:
        where, error = errors[0]
        return SpecError(f"{name}, {where}: {error.problem}", error.expected, error.got, error.matches, error.remedy)
    told = "".join(f"\n    {where}: {str(error).replace(chr(10), ';')}" for where, error in errors)
    return SpecError(f"{name} has {len(errors)} mistakes:{told}", DOCS)


def _as_error(error: BaseException) -> FeatregError:
    if isinstance(error, FeatregError):
        return error
    if isinstance(error, KeyError):
        return SpecError(f"{error.args[0]!r} is missing")
    return SpecError(str(error))


def _where(path: Path, lines: Mapping[Path, int]) -> str:
    """``line 7, layers[2].pool``; without a line where there is no text."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    line = _line(path, lines)
    return ", ".join([*([] if line is None else [f"line {line}"]), text or "the whole"])


def _line(path: Path, lines: Mapping[Path, int]) -> int | None:
    """The line of a value, or of the nearest one around it that has a line."""
    return next((lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in lines), None)


if __name__ == "__main__":
    write_schema(File(sys.argv[1]))
