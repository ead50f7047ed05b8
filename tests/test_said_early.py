"""What is refused before a run begins, and what an error says of the way out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import featreg
from featreg.cli.main import cli
from featreg.derived import check_enough
from featreg.errors import (
    CapabilityError,
    ImageError,
    LayerError,
    RequestError,
    SourceError,
    SpecError,
    StoreExistsError,
    StoreFullError,
    StoreMismatchError,
)

MODEL = "numpy:tinynet"
COUNT = 4


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def store(photos, tmp_path_factory):
    return featreg.extract(photos, tmp_path_factory.mktemp("stores") / "s", MODEL, "pooled").path


def command(*arguments):
    return CliRunner().invoke(cli, [*map(str, arguments)])


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


# --- fits that cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "count", "got"),
    [
        ("a=C1:pca=300:fit=20", 1000, "20 of 1000 rows"),
        ("a=C1:pca=300:fit=500", 200, "200 of 200 rows"),
        ("a=C1:pca=300", 299, "299 of 299 rows"),
        ("a=C1:pca=0.9", 1, "1 of 1 rows"),
    ],
)
def test_more_components_than_rows_are_refused(recipe, count, got):
    with pytest.raises(RequestError, match="cannot be fitted") as caught:
        check_enough([featreg.Recipe.parse(recipe)], count)
    assert caught.value.got == got


def test_as_many_components_as_rows_are_none_of_that():
    recipes = [featreg.Recipe.parse(text) for text in ("a=C1:pca=20:fit=20", "b=C1:pca=0.5", "c=C1:center", "d=C1:l2")]
    check_enough(recipes, 20)


def test_a_dry_run_and_a_run_say_so_before_anything_is_read(photos, tmp_path, monkeypatch):
    from featreg.sources import FolderSource

    monkeypatch.setattr(FolderSource, "read", lambda *_: pytest.fail("a sample was read"))
    for run in (featreg.estimate, featreg.extract):
        with pytest.raises(RequestError, match="pca=9 of 'a' cannot be fitted"):
            run(photos, tmp_path / "s", MODEL, derive="a=pooled:pca=9")
    assert listing(tmp_path) == []


# --- sources of the wrong sort ----------------------------------------------------------------------------------------


def test_texts_are_no_source_of_images(tmp_path):
    (tmp_path / "prompts.txt").write_text("a dog\na cat\n")
    result = command(
        "extract", tmp_path / "prompts.txt", tmp_path / "s", "--model", MODEL, "--layer", "C5", "--kind=text"
    )
    assert result.exit_code == 2
    assert "holds texts, and the layers of numpy:tinynet take images" in result.output
    with pytest.raises(SourceError, match="holds texts"):
        featreg.estimate(featreg.open_source(tmp_path / "prompts.txt", kind="text"), tmp_path / "s", MODEL, "C5")
    assert listing(tmp_path) == ["prompts.txt"]


# --- recipes that take each other -------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [featreg.extract, featreg.estimate])
def test_a_recipe_that_takes_another_is_sent_to_derive(photos, tmp_path, run):
    with pytest.raises(LayerError, match="'b' takes 'a', which is derived in the same run") as caught:
        run(photos, tmp_path / "s", MODEL, derive=["a=pooled:l2", "b=a:center"])
    assert caught.value.remedy == "afterwards: featreg derive STORE 'b=a:center', with 'a' in the store"


def test_a_layer_that_nobody_has_is_as_ever(photos, tmp_path):
    with pytest.raises(LayerError, match="has no layer 'z'"):
        featreg.extract(photos, tmp_path / "s", MODEL, derive=["a=pooled:l2", "b=z:center"])


# --- what errors say --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_the_sample_that_stops_a_run_is_named(photos, tmp_path, threads):
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in photos.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "1.png").write_bytes(b"no")
    with pytest.raises(ImageError) as caught:
        featreg.extract(folder, tmp_path / "s", MODEL, "pooled", on_error="raise", num_workers=threads)
    assert caught.value.__notes__ == [f"sample '1.png', {folder / '1.png'}", "row 1"]
    recorded = featreg.extract(folder, tmp_path / "t", MODEL, "pooled", num_workers=threads)
    assert list(recorded.errors) == ["1.png"]
    assert "sample" not in recorded.errors["1.png"]


@pytest.mark.parametrize("foreign", [True, False])
def test_overwriting_is_only_advised_where_it_would_be_done(store, tmp_path, photos, foreign):
    path = photos if foreign else store
    with pytest.raises(StoreExistsError) as caught:
        featreg.merge_stores(path, [store])
    assert ("overwrite" in caught.value.remedy) is not foreign
    assert caught.value.remedy.startswith("another path")


@pytest.mark.parametrize(
    ("fields", "expected"), [({"device": "cuda"}, "device='cpu'"), ({"dtype": "float16"}, "dtype='float32'")]
)
def test_what_goes_with_every_backend_is_said(fields, expected):
    with pytest.raises(CapabilityError) as caught:
        featreg.create_extractor(MODEL, "C5", **fields)
    assert caught.value.expected == expected


def test_a_batch_size_may_be_auto():
    result = command("extract", "a", "b", "--batch-size", "x")
    assert result.exit_code == 2
    assert "'x' is neither a whole number of at least 1 nor auto" in result.output


def test_a_merge_of_fits_of_their_own_is_sent_to_fit_from(photos, tmp_path):
    for name, limit in (("a", 3), ("b", 4)):
        featreg.extract(photos, tmp_path / name, MODEL, derive="m=pooled:center", limit=limit)
    with pytest.raises(StoreMismatchError) as caught:
        featreg.merge_stores(tmp_path / "m", [tmp_path / "a", tmp_path / "b"], prefixes=["a/", "b/"])
    assert "--fit-from" in caught.value.remedy
    assert str(tmp_path / "a") in caught.value.remedy


def test_a_merge_on_a_full_disk_promises_nothing(store, tmp_path, monkeypatch):
    from featreg.stores.writer import StoreWriter

    def full(*_):
        raise StoreFullError("no room", "room", "none", remedy="run it again: what is finished is kept")

    monkeypatch.setattr(StoreWriter, "commit", full)
    with pytest.raises(StoreFullError, match="no room") as caught:
        featreg.merge_stores(tmp_path / "m", [store])
    assert caught.value.remedy == "make room and merge again; nothing of the new store is left"
    assert listing(tmp_path) == []


# --- what is not written into a store, or into memory -----------------------------------------------------------------


@pytest.mark.parametrize("below", ["sub", "c/deep/er"])
def test_an_export_is_no_part_of_a_store(store, below):
    before = listing(store)
    with pytest.raises(SpecError, match="the export would lie in the store"):
        featreg.export_store(store, store / below, "npy")
    assert listing(store) == before


def test_metrics_are_no_part_of_a_store(store, photos, tmp_path):
    for new in (tmp_path / "new", store):
        with pytest.raises(SpecError, match="metrics would lie in the store"):
            featreg.extract(photos, new, MODEL, "pooled", metrics=new / "m.jsonl")
    with pytest.raises(SpecError, match="metrics would lie in the store"):
        featreg.work(store, metrics=store / "m.jsonl")
    assert listing(tmp_path) == []
    assert "m.jsonl" not in listing(store)


def test_a_store_in_memory_is_nothing_for_a_command(photos, store):
    pytest.importorskip("fsspec")
    for arguments in (
        ["extract", photos, "memory://x/y.zarr", "--model", MODEL, "--layer", "pooled"],
        ["merge", "memory://x/y.zarr", store],
    ):
        result = command(*arguments)
        assert result.exit_code == 2
        assert "a store in memory is gone when the command ends" in result.output


def test_a_warning_on_the_command_line_is_one_line():
    code = (
        "import sys, warnings, click, featreg.cli.main as main, featreg.engine.monitoring.metrics as metrics\n"
        "metrics.Metrics._document = lambda *_, **__: {}\n"
        "main.cli = lambda prog_name: metrics.Metrics('/nowhere/at/all', 'w', 0).close(None)\n"
        "main.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.startswith("warning: the metrics cannot be written to '/nowhere/at/all', the run goes on:")
    assert done.stderr.count("\n") == 1
    assert Path(featreg.__file__).name not in done.stderr
