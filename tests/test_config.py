"""The run file: the schema and the class judge alike, mistakes have their place, and what was saved runs again."""

import json
import re
from pathlib import Path

import attrs
import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import featreg
from featreg.cli.extract import extract
from featreg.cli.main import cli
from featreg.engine.runfile.choices import LayerChoice
from featreg.engine.runfile.config import config_schema, load_config, save_config, to_plain, write_schema
from featreg.engine.runfile.launch import arguments, check_config
from featreg.engine.runfile.plainyaml import dump, load
from featreg.engine.runfile.runconfig import RunConfig
from featreg.errors import LayerError, SpecError
from featreg.pool import Pool
from featreg.recipe import Recipe

ROOT = Path(__file__).parent.parent
PHOTOS = str(ROOT / "photos")
SCHEMA = json.loads((ROOT / "specs/run-file.schema.json").read_text())
VALID = sorted((ROOT / "specs/examples/valid/run-file").glob("*.yaml"))
INVALID = sorted((ROOT / "specs/examples/invalid/run-file").glob("*.yaml"))


def command(*arguments):
    return CliRunner().invoke(cli, ["extract", *map(str, arguments)])


def file(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# --- the schema and the class -----------------------------------------------------------------------------------------


def test_the_schema_is_current(tmp_path):
    write_schema(tmp_path)
    assert (tmp_path / "run-file.schema.json").read_text() == (ROOT / "specs/run-file.schema.json").read_text(), (
        "run: python -m featreg.engine.runfile.config specs/"
    )
    jsonschema.Draft202012Validator.check_schema(config_schema())


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_valid_example(path):
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.validate(yaml.safe_load(path.read_text()))
    config = load_config(path)
    plain = to_plain(config)
    validator.validate(plain)
    assert yaml.safe_load(dump(plain)) == plain


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_an_invalid_example(path):
    plain = yaml.safe_load(path.read_text())
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(plain) == path.stem.startswith("code-only-")
    with pytest.raises(SpecError) as caught:
        load_config(path)
    assert caught.value.problem.startswith(f"{path}, line ")


def test_the_example_with_every_option_has_every_option():
    besides = {"add_layers", "append"}  # these two go without a model
    plain = yaml.safe_load((ROOT / "specs/examples/valid/run-file/every-option.yaml").read_text())
    assert set(plain) | besides == {field.name for field in attrs.fields(RunConfig)}


def test_the_command_and_the_file_have_the_same_options():
    of_the_command_alone = {"config_file", "saved_file", "dry_run", "as_json"}
    parameters = {parameter.name for parameter in extract.params}
    assert parameters - of_the_command_alone == {field.name for field in attrs.fields(RunConfig)}


def test_the_page_has_every_option_once():
    page = (ROOT / "docs/extraction.md").read_text(encoding="utf-8").partition("## Every option")[2]
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    flags = [flag for row in rows for flag in re.findall(r"--[a-z-]+", row[0])]
    options = [one for one in extract.params if one.param_type_name == "option"]
    known = {flag for one in options for flag in (*one.opts, *one.secondary_opts)}
    assert sorted(flags) == sorted(known)
    names = [name for row in rows for name in re.findall(r"`([a-z_]+)", row[1])]
    assert sorted(names) == sorted(field.name for field in attrs.fields(RunConfig))


def test_the_run_file_of_the_page_is_one(tmp_path):
    (text,) = re.findall("```yaml\n(.*?)```", (ROOT / "docs/extraction.md").read_text(encoding="utf-8"), re.DOTALL)
    config = load_config(file(tmp_path, text))
    assert config.layers[2] == LayerChoice("output:0", "avg")
    check_config(config)


def test_the_kinds_of_the_command_are_those_of_the_sources():
    from featreg.cli.extract_options import KINDS
    from featreg.sources import KINDS as THERE

    assert tuple(THERE) == KINDS


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem", "expected", "matches"),
    [
        ("model: a\nlayer: [C5]\n", "line 2, layer: there is no such option", "layers", ("layers",)),
        ("layers:\n- C5\n- C4:avgg\n", "line 3, layers[1]: no pooling 'avgg'", "avgpool=K,S,P", ("avg",)),
        ("layers:\n- layer: C5\n  poool: avg\n", "line 3, layers[0].poool: there is no such", "pool", ("pool",)),
        ("layers:\n- layer: C5\n  flatten: 1\n", "line 3, layers[0].flatten: expected bool, got 1", "", ()),
        ("limit: 3.0", "line 1, limit: expected int, got 3.0", "", ()),
        ("weights: 8", "line 1, weights: expected str, got 8", "", ()),
        ("kind: tarr", "line 1, kind: there is no kind of source 'tarr'", "tar, parquet", ("tar",)),
        ("derive:\n- C5:pcaa=3\n", "line 2, derive[0]: ", "", None),
        ("concat: ['C4:l2']", "line 1, concat: concat joins several layers", "C3,C4", ()),
        ("store_dtype: {C4: float61}", "line 1, store_dtype: ", "float32 or float16", ("float16",)),
        ("batch_size: atuo", "line 1, batch_size: batch_size is out of range", "'auto'", ()),
        ("part: 0-8", "line 1, part: '0-8' is no I/N", "0/8", ()),
        ("- model: a", "holds no mapping", "each with its value", ()),
        ("", "empty", "a mapping", ()),
        ("model: [a", "line 1: this is no YAML", "a mapping", ()),
        ("model: a\n---\nmodel: b\n", "line 2: this is no YAML", "a mapping", ()),
    ],
)
def test_a_mistake_has_its_place(tmp_path, text, problem, expected, matches):
    with pytest.raises(SpecError) as caught:
        load_config(file(tmp_path, text))
    assert problem in caught.value.problem
    assert "run.yaml" in caught.value.problem
    assert expected in caught.value.expected
    if matches is not None:
        assert caught.value.matches[: len(matches)] == matches


def test_several_mistakes_are_told_at_once(tmp_path):
    text = "limit: 0\nlayers:\n- C5\n- C4:avgg\nlayer: C3\n"
    with pytest.raises(SpecError) as caught:
        load_config(file(tmp_path, text))
    lines = caught.value.problem.splitlines()
    assert lines[0].endswith("run.yaml has 3 mistakes:")
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "line 1, limit", "line 4, layers[1]", "line 5, layer",
    ]  # fmt: skip


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError, match="cannot be read"):
        load_config(path)


# --- YAML that means one thing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    ["no", "Yes", "on", "OFF", "010", "0o10", "0x1F", "1_000", "1:30", "1e-3", "1E5", ".5", "5.", ".inf", "-.NaN",
     "+3", "2020-01-01", "=", "<<", "!!binary aGk=", "!!python/name:os.system", "!!set {a}", "!mine x"],
)  # fmt: skip
def test_what_readers_of_yaml_do_not_agree_on_is_refused(value):
    with pytest.raises(SpecError, match="line 2: "):
        load(f"a: 1\nb: {value}\n")


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("False", False), ("~", None), ("", None), ("null", None), ("0", 0), ("-12", -12), ("0.5", 0.5),
     ("1.0e-3", 0.001), ("'no'", "no"), ('"1e-3"', "1e-3"), ("'010'", "010"), ("C5", "C5"), ("v1.2.3", "v1.2.3"),
     ("[1, [a, b]]", [1, ["a", "b"]]), ("{a: {b: 1}}", {"a": {"b": 1}}), ("|\n  x\n  y\n", "x\ny\n"), ("y", "y")],
)  # fmt: skip
def test_what_they_agree_on_is_read(text, value):
    assert load(f"a: {text}\n").value == {"a": value}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: the second 'a'"),
        ("a: &x [1]\nb: *x\n", r"line 2: the alias \*x"),
        ("a: 1\nno: 2\n", "line 2: 'no'"),
        ("a: 1\n0.5: 2\n", "line 2: the key '0.5'"),
        ("? [a]\n: 1\n", "line 1: a key that is a list"),
        ("a: [C4:maxpool=2,2,0]\n", "line 1: the comma behind 'C4:maxpool=2'"),
        ("a: \x01\n", "no YAML"),
        ("a: " + "[" * 100_000, "line 1: what is nested"),
    ],
)
def test_surprises_are_refused(text, said):
    with pytest.raises(SpecError, match=said):
        load(text)


TEXTS = st.one_of(st.text(), st.sampled_from(["no", "1e-3", "010", "0x1", "1:30", "=", "~", "", "- a", "#", "\udc80"]))
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=60)
@given(value=PLAIN)
def test_what_is_written_reads_back_equal(value):
    found = load(dump(value)).value
    assert found == value
    assert json.dumps(found) == json.dumps(value)  # no 1 for true, no 1.0 for 1


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("C5", LayerChoice("C5")),
        ("-1", LayerChoice(-1)),
        ("C4:avgpool=10,10,4", LayerChoice("C4", Pool.parse("avgpool=10,10,4"))),
        ("C4:avg:flatten:float16", LayerChoice("C4", "avg", True, "float16")),
        ("blocks.3:flatten", LayerChoice("blocks.3", flatten=True)),
        ("0:float32", LayerChoice(0, dtype="float32")),
    ],
)
def test_the_text_of_a_layer(text, choice):
    assert LayerChoice.parse(text) == choice
    assert str(choice) == text


@pytest.mark.parametrize(
    "text", ["", ":avg", "C4:", "C4:avg:max", "C4:flatten:flatten", "C4:float16:float32", "C4:fp16"]
)
def test_texts_that_are_no_layer(text):
    with pytest.raises((SpecError, LayerError)):
        LayerChoice.parse(text)


NAMES = st.one_of(st.integers(-9, 9), st.text(min_size=1), st.sampled_from(["a:0", "-1", "C5:avg", "x:flatten"]))
CHOICES = st.builds(
    LayerChoice,
    NAMES,
    st.sampled_from([None, "avg", "gem=4", "maxpool=2,2,0"]),
    st.booleans(),
    st.sampled_from([None, "float16", "float32"]),
)
RECIPES = st.builds(
    lambda inputs, steps: Recipe(tuple(inputs), tuple(Recipe.parse("a:l2:pca=3").steps[:steps])),
    st.lists(st.sampled_from(["C4", "C5", "a:0", -1]), min_size=1, max_size=3, unique=True),
    st.integers(1, 2),
)
CONFIGS = st.builds(
    RunConfig,
    source=st.none() | st.text(min_size=1),
    layers=st.lists(CHOICES, max_size=3),
    derive=st.lists(RECIPES, max_size=2),
    pool=st.sampled_from([None, "avg", "gem=4"]),
    fraction=st.none() | st.floats(0, 1, exclude_min=True),
    seed=st.integers(0, 2**64 - 1),
    batch_size=st.none() | st.just("auto") | st.integers(1, 99),
    part=st.sampled_from([None, (0, 8), (7, 8)]),
    store_dtype=st.none() | st.just("float16") | st.just({"C5": "float16", -1: "float32"}),
    options=st.dictionaries(st.text(), PLAIN, max_size=2),
    overwrite=st.booleans(),
)


@settings(max_examples=40)
@given(config=CONFIGS)
def test_a_run_survives_its_file(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(dump(to_plain(config)), encoding="utf-8")
    assert load_config(path) == config
    jsonschema.Draft202012Validator(SCHEMA).validate(to_plain(config))


# --- from the file to the run -----------------------------------------------------------------------------------------


def test_what_layers_say_themselves_counts_more():
    config = RunConfig(
        source="s", store="t", model="m", pool="avg", store_dtype="float32", derive=["d=C5:l2"],
        layers=["C3", "C4:max:flatten", "C5:float16"], device="cuda", options={"ema": True},
    )  # fmt: skip
    assert arguments(config) == {
        "source": "s",
        "store": "t",
        "model": "m",
        "layers": ["C3", "C4", "C5"],
        "pool": [("C3", Pool("avg")), ("C4", Pool("max")), ("C5", Pool("avg"))],
        "flatten": ["C4"],
        "options": {"ema": True},
        "device": "cuda",
        "derive": (Recipe.parse("d=C5:l2"),),
        "store_dtype": {"C3": "float32", "C4": "float32", "C5": "float16", "d": "float32"},
        **dict.fromkeys(("batch_size", "limit", "fraction", "num_workers", "fit_from")),
        "seed": 0,
        "overwrite": False,
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "what to extract"),
        ({"source": None}, "source or the store"),
        ({"layers": "C5", "num_gpus": 1}, "those of Ray"),
        ({"layers": "C5", "append": True}, "--layer"),
        ({"model": None, "append": True, "add_layers": "C4"}, "one after the other"),
        ({"model": None, "add_layers": "C4", "fraction": 0.5}, "--fraction"),
    ],
)
def test_what_does_not_go_together(options, said):
    with pytest.raises(SpecError, match=said):
        check_config(RunConfig(**{"source": "s", "store": "t", "model": "m", **options}))


def test_flags_count_more_than_the_file(tmp_path):
    path = file(
        tmp_path, f"source: {PHOTOS}\nstore: nowhere\nmodel: numpy:tinynet\nlayers: [C1]\nflatten: true\nlimit: 5\n"
    )
    store = tmp_path / "s"
    result = command(
        PHOTOS, store, "--config", path, "--layer", "C5:avg", "--layer", "pooled", "--no-flatten", "--json"
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [layer["key"] for layer in document["layers"]] == ["C5", "pooled"]
    assert document["rows"] == 5
    assert not featreg.open_store(store).manifest.request.flatten


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_saved_run_makes_the_same_store(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    monkeypatch.chdir(ROOT)
    flags = ["--layer", "C4:avgpool=2:float16", "--layer", "C5:flatten", "--layer", "-1:max",
             "--weights", "synthetic:3", "--derive", "small=C5,pooled:pca=2", "--fraction", "0.9",
             "--seed", "5", "--limit", "9", "--batch-size", "4", "--num-workers", "2",
             "--max-error-rate", "0.5"]  # fmt: skip
    saved, again = tmp_path / "run.yaml", tmp_path / "again.yaml"
    first = command("photos", tmp_path / "s", "--model", "numpy:tinynet", *flags, "--save-config", saved)
    assert first.exit_code == 0, first.output
    before = content(tmp_path / "s")
    monkeypatch.chdir(tmp_path)
    resumed = command("--config", saved, "--json")
    assert json.loads(resumed.stdout)["done_before"] > 0  # the same fingerprint and the same source: nothing is refused
    second = command("--config", saved, "--overwrite", "--save-config", again)
    assert second.exit_code == 0, second.output
    assert content(tmp_path / "s") == before
    assert attrs.evolve(load_config(again), overwrite=False) == load_config(saved)


def test_a_saved_file_replaces_another_and_nothing_else(tmp_path):
    path = file(tmp_path, "limit: 1\n")
    save_config(RunConfig(limit=2), path)
    assert load_config(path).limit == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(SpecError, match="cannot be written"):
        save_config(RunConfig(), tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "run.yaml"]


def test_only_a_run_that_begins_is_saved(tmp_path):
    saved = tmp_path / "run.yaml"
    flags = ["--save-config", saved, "--limit", "3"]
    assert command(PHOTOS, tmp_path / "s", "--model", "numpy:tinynet", "--layer", "C9", *flags).exit_code == 2
    assert list(tmp_path.iterdir()) == []
    assert command(PHOTOS, tmp_path / "s", "--model", "numpy:tinynet", "--layer", "C5", *flags).exit_code == 0
    assert load_config(saved).limit == 3
    assert command(PHOTOS, tmp_path / "s", "--add-layer", "C4:avg", "--save-config", saved).exit_code == 0
    assert load_config(saved).add_layers == (LayerChoice("C4", "avg"),)
    missing = tmp_path / "missing/run.yaml"
    refused = command(PHOTOS, tmp_path / "t", "--model", "numpy:tinynet", "--layer", "C5", "--save-config", missing)
    assert refused.exit_code == 2
    assert "cannot be written" in refused.stderr
    assert not (tmp_path / "t").exists()


def test_a_saved_file_goes_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = RunConfig(source="a", store="s3://bucket/b", weights="w.pth", fit_from="../c", metrics="m.jsonl")
    save_config(config, "run.yaml")
    found = load_config("run.yaml")
    assert (found.source, found.store, found.weights) == (str(tmp_path / "a"), "s3://bucket/b", "w.pth")
    assert (found.fit_from, found.metrics) == (str(tmp_path / "../c"), str(tmp_path / "m.jsonl"))


def test_errors_of_the_file_leave_nothing(tmp_path):
    path = file(tmp_path, "model: numpy:tinynet\nlayers: [C5]\nfractoin: 0.1\n")
    result = command(PHOTOS, tmp_path / "s", "--config", path)
    assert result.exit_code == 2
    assert "line 3, fractoin" in result.stderr
    assert "did you mean: fraction" in result.stderr
    assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
