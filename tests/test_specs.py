"""The folder ``specs/``: schemas that are current, examples that both readers judge alike, tables that add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from featreg.errors import SpecError
from featreg.schema import json_schema, write_schemas
from featreg.serialize import DOCUMENTS, dumps, from_dict, loads, schema_name, to_dict

SPECS = Path(__file__).parents[1] / "specs"
CLASSES = {schema_name(cls).removesuffix(".schema.json"): cls for cls in DOCUMENTS}
VALID = sorted((SPECS / "examples" / "valid").rglob("*.json"))
INVALID = sorted((SPECS / "examples" / "invalid").rglob("*.json"))
ARCHITECTURES = sorted((SPECS / "architectures").glob("*.json"))


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def validator(path: Path) -> jsonschema.Draft202012Validator:
    schema = json.loads(path.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("cls", DOCUMENTS)
def test_schema_is_current(cls: type) -> None:
    assert json.loads((SPECS / schema_name(cls)).read_text()) == json_schema(cls), (
        "run: python -m featreg.schema specs/"
    )


def test_generator_writes_what_is_committed(tmp_path: Path) -> None:
    write_schemas(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        schema_name(cls): (SPECS / schema_name(cls)).read_text() for cls in DOCUMENTS
    }


@pytest.mark.parametrize("examples", [VALID, INVALID])
def test_every_class_has_examples(examples: list[Path]) -> None:
    assert {path.parent.name for path in examples} == set(CLASSES)


@pytest.mark.parametrize("path", VALID, ids=name)
def test_valid_example(path: Path) -> None:
    cls, plain = CLASSES[path.parent.name], json.loads(path.read_text())
    schema = validator(SPECS / schema_name(cls))
    schema.validate(plain)
    document: Any = from_dict(cls, plain)
    assert to_dict(document).items() >= plain_with_nested_defaults(cls, plain).items()
    schema.validate(to_dict(document))
    assert loads(cls, dumps(document)) == document


def plain_with_nested_defaults(cls: type, plain: dict[str, Any]) -> dict[str, Any]:
    """The fields of a document whose values hold no further document, which would gain defaults."""
    return {field: value for field, value in plain.items() if field not in ("features", "preprocess", "input_rule")}


@pytest.mark.parametrize("path", INVALID, ids=name)
def test_invalid_example(path: Path) -> None:
    cls, plain = CLASSES[path.parent.name], json.loads(path.read_text())
    assert validator(SPECS / schema_name(cls)).is_valid(plain) == path.stem.startswith("code-only-")
    with pytest.raises(SpecError, match=f"not a valid {cls.__name__}"):
        from_dict(cls, plain)


@pytest.mark.parametrize("path", INVALID, ids=name)
def test_invalid_example_breaks_one_rule_only(path: Path) -> None:
    """The schema finds fault at one place; the code, which stops later, names one problem."""
    cls, plain = CLASSES[path.parent.name], json.loads(path.read_text())
    places = {tuple(error.absolute_path)[:1] for error in validator(SPECS / schema_name(cls)).iter_errors(plain)}
    assert len(places) <= 1
    with pytest.raises(SpecError) as caught:
        from_dict(cls, plain)
    assert caught.value.problem.count(" @ $") == 1


@pytest.mark.parametrize("path", ARCHITECTURES, ids=lambda path: path.stem)
def test_architecture(path: Path) -> None:
    table = json.loads(path.read_text())
    validator(SPECS / "architecture.schema.json").validate(table)
    assert table["architecture"] == path.stem
    height, width = table["input_size"]
    levels = [entry["level"] for entry in table["levels"]]
    assert levels == sorted(set(levels))
    for entry in table["levels"]:
        assert entry["reduction"] == 2 ** int(entry["level"][1:])
        assert entry["shape"] == [entry["channels"], height // entry["reduction"], width // entry["reduction"]]
    for library in table["backends"].values():
        layers = library.get("names") or library.get("indices")
        assert list(layers) == levels
        assert len(set(layers.values())) == len(levels)


def test_architectures_cover_the_families() -> None:
    families = {path.stem.split("_")[0].rstrip("0123456789") for path in ARCHITECTURES}
    assert families == {
        "convnext", "densenet", "efficientnet", "mobilenet", "regnet", "resnet", "resnext", "swin", "vgg", "vit",
    }  # fmt: skip


@pytest.mark.parametrize("page", sorted(SPECS.glob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    import re

    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_page_and_schema_is_in_the_index() -> None:
    index = (SPECS / "README.md").read_text()
    for path in [*SPECS.glob("*.md"), *SPECS.glob("*.schema.json")]:
        assert path.name == "README.md" or f"({path.name})" in index, path.name
