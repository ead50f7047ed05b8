"""Every further flag of ``featreg extract``, and texts."""

import contextlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner

import featreg
from featreg.cli.main import cli
from featreg.engine import append
from featreg.errors import SourceError, SpecError
from featreg.registry import default_registry
from featreg.sources import open_source

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT / "photos"
MODEL = ["--model", "numpy:tinynet"]
COFFEE, ROCKET = PHOTOS / "objects/coffee.jpg", PHOTOS / "objects/rocket.jpg"


def command(*arguments):
    return CliRunner().invoke(cli, ["extract", *map(str, arguments)])


def extracted(*arguments):
    result = command(*arguments)
    assert result.exit_code == 0, result.output
    return featreg.open_store(arguments[1])


def alone(tmp_path, path, layer="pooled"):
    """The features of one photo, from a folder of its own."""
    folder = tmp_path / f"only-{path.stem}"
    folder.mkdir(exist_ok=True)
    (folder / path.name).write_bytes(path.read_bytes())
    return featreg.extract(folder, tmp_path / f"{path.stem}-{layer}", "numpy:tinynet", layer)[layer][0]


# --- data -------------------------------------------------------------------------------------------------------------


def test_columns_of_parquet(tmp_path):
    table = {"jpg": [COFFEE.read_bytes(), ROCKET.read_bytes()], "thumb": [b"x", b"y"], "what": ["cup", "rocket"]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "data.bin")
    options = ["--source-option", "image=jpg", "--source-option", "target=what"]
    store = extracted(tmp_path / "data.bin", tmp_path / "s", *MODEL, "--layer", "pooled", "--kind", "parquet", *options)
    assert store.classes == ("cup", "rocket")
    assert store.targets.tolist() == [0, 1]
    assert np.array_equal(store["pooled"][0], alone(tmp_path, COFFEE))
    assert dict(store.manifest.source.options)["image"] == "jpg"


def test_columns_of_a_table_and_the_extension_in_tars(tmp_path):
    (tmp_path / "list.csv").write_text(f"path;class\n{COFFEE};4\n{ROCKET};2\n")
    options = ["--source-option", "uri=path", "--source-option", "target=class", "--source-option", "delimiter=;"]
    store = extracted(tmp_path / "list.csv", tmp_path / "s", *MODEL, "--layer", "pooled", *options)
    assert store.targets.tolist() == [4, 2]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, path in (("1.left.jpg", COFFEE), ("1.right.jpg", ROCKET)):
            archive.add(path, name)
    options = ["--kind", "tar", "--source-option", "image=right.jpg"]
    store = extracted(tmp_path / "a.tar", tmp_path / "t", *MODEL, "--layer", "pooled", *options)
    assert np.array_equal(store["pooled"][0], alone(tmp_path, ROCKET))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--source-option", "recursive=true"], "no option 'recursive'"),
        (["--source-option", "image"], "--source-option"),
        (["--kind", "tarball"], "--kind"),
        (["--kind", "numpy"], "photos"),
        (["--fraction", "0"], "--fraction"),
        (["--fraction", "1.5"], "--fraction"),
        (["--seed", "3"], "a seed without a fraction"),
        (["--batch-size", "0"], "--batch-size"),
        (["--batch-size", "many"], "--batch-size"),
        (["--num-gpus", "1"], "those of Ray"),
        (["--address", "auto"], "those of Ray"),
        (["--engine", "spark"], "--engine"),
        (["--concat", "a=C4:l2"], "concat joins several layers"),
        (["--derive", "C4:pcaa=2"], "pca"),
        (["--fit-from", "nowhere"], "no recipe learns"),
        (["--store-dtype", "bfloat16"], "--store-dtype"),
        (["--layer", "C4:float8"], "float16"),
        (["--config", "nowhere.yaml"], "cannot be read"),
    ],
)
def test_what_cannot_be_is_said_and_leaves_nothing(tmp_path, flags, said):
    result = command(PHOTOS, tmp_path / "s", *MODEL, "--layer", "C5", *flags)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_the_data(tmp_path):
    arguments = [PHOTOS, tmp_path / "s", *MODEL, "--layer", "pooled", "--fraction", "0.5", "--seed", "2"]
    store = extracted(*arguments)
    direct = featreg.extract(PHOTOS, tmp_path / "t", "numpy:tinynet", "pooled", fraction=0.5, seed=2)
    assert 0 < len(store) < 12
    assert store.keys == direct.keys
    assert command(*arguments).stdout.startswith("the store is finished")
    refused = command(*arguments[:-1], "3")
    assert refused.exit_code == 2
    assert "source.seed: 2 in the store, 3 now" in refused.stderr


# --- layers -----------------------------------------------------------------------------------------------------------


def test_a_layer_says_all_of_itself(tmp_path):
    layers = ["C4:avgpool=2:flatten:float16", "C5:flatten", "C3:float16", "pooled"]
    flags = [part for layer in layers for part in ("--layer", layer)]
    store = extracted(PHOTOS, tmp_path / "s", *MODEL, *flags, "--limit", "3")
    whole = featreg.extract(PHOTOS, tmp_path / "t", "numpy:tinynet", ["C4", "C5", "C3", "pooled"], limit=3)
    assert {layer: (store[layer].shape, str(store[layer].dtype)) for layer in store.layers} == {
        "C4": ((3, 32 * 2 * 2), "float16"), "C5": ((3, 48 * 2 * 2), "float32"),
        "C3": ((3, 24, 8, 8), "float16"), "pooled": ((3, 48), "float32"),
    }  # fmt: skip
    assert np.array_equal(store["C3"][:], whole["C3"][:].astype(np.float16))
    assert np.array_equal(store["C5"][:], whole["C5"][:].reshape(3, -1))
    means = whole["C4"][:].reshape(3, 32, 2, 2, 2, 2).mean((3, 5)).reshape(3, -1)
    np.testing.assert_allclose(store["C4"][:], means, rtol=2e-3)


def test_the_stored_type_of_all_but_one(tmp_path):
    flags = ["--layer", "C5", "--layer", "pooled:float32", "--derive", "n=C4:l2", "--store-dtype", "float16"]
    store = extracted(PHOTOS, tmp_path / "s", *MODEL, *flags, "--limit", "2")
    assert [str(store[layer].dtype) for layer in ("C5", "pooled", "n")] == ["float16", "float32", "float16"]


def test_derived_layers_alone(tmp_path):
    flags = ["--derive", "unit=pooled:l2", "--concat", "both=C4,pooled:center"]
    store = extracted(PHOTOS, tmp_path / "s", *MODEL, *flags)
    whole = featreg.extract(PHOTOS, tmp_path / "t", "numpy:tinynet", ["C4", "pooled"])
    pooled = whole["pooled"][:].astype(np.float64)
    assert store.layers == ("unit", "both")
    np.testing.assert_allclose(store["unit"][:], pooled / np.linalg.norm(pooled, axis=1, keepdims=True), rtol=1e-6)
    both = np.concatenate([whole["C4"][:].reshape(12, -1).astype(np.float64), pooled], axis=1)
    np.testing.assert_allclose(store["both"][:], both - both.mean(0), rtol=1e-5, atol=1e-6)


def test_what_was_learnt_elsewhere_is_used_again(tmp_path):
    train = extracted(PHOTOS, tmp_path / "train", *MODEL, "--derive", "c=pooled:center", "--limit", "8")
    test = extracted(PHOTOS, tmp_path / "test", *MODEL, "--derive", "c=pooled:center", "--fit-from", tmp_path / "train")
    whole = featreg.extract(PHOTOS, tmp_path / "t", "numpy:tinynet", "pooled")["pooled"][:].astype(np.float64)
    np.testing.assert_allclose(test["c"][:], whole - whole[:8].mean(0), rtol=1e-5, atol=1e-6)
    assert np.array_equal(test["c"][:8], train["c"][:])


def test_a_layer_is_added_with_all_that_is_said_of_it(tmp_path):
    extracted(PHOTOS, tmp_path / "s", *MODEL, "--layer", "C5", "--limit", "4")
    added = ["--add-layer", "C4:avg:float16", "--add-layer", "C3:flatten", "--derive", "u=pooled:l2"]
    store = extracted(PHOTOS, tmp_path / "s", *added)
    assert [store[layer].shape for layer in store.layers] == [(4, 48, 2, 2), (4, 32), (4, 24 * 8 * 8), (4, 48)]
    assert str(store["C4"].dtype) == "float16"


# --- the run ----------------------------------------------------------------------------------------------------------


def test_what_the_run_measures_goes_to_a_file(tmp_path):
    extracted(PHOTOS, tmp_path / "s", *MODEL, "--layer", "C5", "--metrics", tmp_path / "m.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert lines[-1]["rows"] == 12


def test_a_batch_size_that_is_found(tmp_path):
    store = extracted(PHOTOS, tmp_path / "s", *MODEL, "--layer", "C5", "--batch-size", "auto")
    size = store.manifest.passes[0].batch_size
    assert 1 <= size <= 256
    direct = featreg.extract(PHOTOS, tmp_path / "t", "numpy:tinynet", "C5", batch_size=size)
    assert np.array_equal(store["C5"][:], direct["C5"][:])


def test_ray_gets_what_is_said_of_it(tmp_path, monkeypatch):
    seen = {}

    class Ray:
        @staticmethod
        @contextlib.contextmanager
        def ready(place, work, device, **given):
            seen.update(ready=given, device=device, planned=place.exists("manifest.json"))
            yield

        @staticmethod
        def complete(writer, work, run, **given):
            from featreg.engine.run import complete

            seen.update(given, extractor=work.extractor, workers=run.num_workers, rows=writer.manifest.rows)
            return complete(writer, work, run)

    monkeypatch.setattr("featreg.engine.ray", Ray, raising=False)
    monkeypatch.setitem(__import__("sys").modules, "featreg.engine.ray", Ray)
    flags = ["--engine", "ray", "--num-gpus", "0.5", "--num-workers", "3", "--address", "auto"]
    store = extracted(PHOTOS, tmp_path / "s", *MODEL, "--layer", "C5", *flags)
    assert store.complete
    given = {"num_gpus": 0.5, "num_workers": 3, "address": "auto"}
    before = {"ready": given, "device": "cpu", "planned": False}
    assert seen == {**before, **given, "extractor": None, "workers": None, "rows": 12}


@pytest.mark.parametrize(
    ("wrong", "said"), [({"engine": "dask"}, "no engine"), ({"num_gpus": 1}, "those of Ray"), ({"address": "x"}, "Ray")]
)
def test_engines_that_cannot_be(tmp_path, wrong, said):
    with pytest.raises(SpecError, match=said):
        featreg.extract(PHOTOS, tmp_path / "s", "numpy:tinynet", "C5", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_help_has_its_headings():
    text = CliRunner().invoke(cli, ["extract", "--help"]).output
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Data:", "Model:", "Layers:", "Run:", "Store:", "Run file and output:", "Help:"]
    assert text.count("--fraction FLOAT") == 1


# --- texts ------------------------------------------------------------------------------------------------------------

CLIPPER = """
    import numpy as np
    from featreg.plugin import Backend, BackendExtractor, BackendSpec, FeatureInfo, ModelInfo, Preprocess, hookimpl

    FEATURES = (
        FeatureInfo("text", 2, None, "vector", head="text_embedding"),
        FeatureInfo("image", 3, None, "vector", head="embedding"),
    )
    CAPABILITIES = ("thread_safe",)

    class Extractor(BackendExtractor):
        def __init__(self, info, features):
            self.info, self.features = info, features

        def forward(self, batch):
            if self.takes_text:
                return [np.array([[len(text), text.count("a")] for text in batch], np.float32)]
            return [batch.mean((2, 3)).astype(np.float32)]

    class Clipper(Backend):
        def models(self):
            return ("two",)

        def info(self, model, input_size=None):
            preprocess = Preprocess(resize=(8, 8), crop=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))
            return ModelInfo("clipper", model, (8, 8), FEATURES, preprocess, capabilities=CAPABILITIES)

        def open(self, request):
            info = self.info(request.model)
            return Extractor(info, tuple(info.resolve(layer) for layer in request.layers))

    @hookimpl
    def featreg_backends():
        return [BackendSpec("clipper", "fake_clipper:Clipper", capabilities=CAPABILITIES)]
"""


@pytest.fixture
def clipper(plugins):
    """A backend of images and of texts, whose text feature is the number of letters, and of a among them."""
    plugins.backend("clipper", CLIPPER)
    default_registry.cache_clear()
    yield "clipper:two"
    default_registry.cache_clear()


PROMPTS = ["a cat", "zebra crossing", "", "bananas"]
COUNTS = [[5, 2], [14, 1], [np.nan, np.nan], [7, 3]]


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return tmp_path / "prompts.txt"


def test_a_text_file_is_texts_for_a_model_that_takes_them(tmp_path, prompts, clipper):
    store = extracted(prompts, tmp_path / "s", "--model", clipper, "--layer", "text_embedding")
    assert np.array_equal(store["text_embedding"][:], np.array(COUNTS, np.float32), equal_nan=True)
    assert store.keys == ["1", "2", "3", "4"]
    assert store.manifest.source.kind == "text"
    assert command(prompts, tmp_path / "s", "--model", clipper, "--layer", "text_embedding").exit_code == 0


def test_it_is_a_list_of_images_for_one_that_takes_images(tmp_path, clipper):
    (tmp_path / "list.txt").write_text(f"{COFFEE}\n{ROCKET}\n")
    store = extracted(tmp_path / "list.txt", tmp_path / "s", "--model", clipper, "--layer", "embedding")
    assert store.manifest.source.kind == "list"
    assert store["embedding"].shape == (2, 3)
    assert store.complete


def test_texts_for_a_model_of_images_are_an_error_and_no_store(tmp_path, prompts, clipper):
    result = command(prompts, tmp_path / "s", "--model", clipper, "--layer", "embedding")
    assert result.exit_code == 2
    assert "lists files or texts" in result.stderr
    assert not (tmp_path / "s").exists()


def test_a_folder_of_images_is_no_source_of_texts(tmp_path, clipper):
    result = command(PHOTOS, tmp_path / "s", "--model", clipper, "--layer", "text_embedding")
    assert result.exit_code == 2
    assert f"holds images, and the layers of {clipper} take texts" in result.output
    assert not (tmp_path / "s").exists()


def test_layers_of_texts_are_not_added_to_images(tmp_path, clipper):
    featreg.extract(PHOTOS, tmp_path / "s", clipper, "embedding", limit=2)
    before = sorted(path.name for path in (tmp_path / "s" / "passes").iterdir())
    result = command(PHOTOS, tmp_path / "s", "--add-layer", "text_embedding")
    assert result.exit_code == 2
    assert "holds images" in result.output
    assert sorted(path.name for path in (tmp_path / "s" / "passes").iterdir()) == before


def test_what_is_said_of_a_text_file_counts_more_than_the_model(tmp_path, clipper):
    (tmp_path / "list.txt").write_text(f"{COFFEE}\n")
    arguments = [tmp_path / "list.txt", tmp_path / "s", "--model", clipper, "--layer", "text_embedding"]
    result = command(*arguments, "--kind", "list")
    assert result.exit_code == 1  # bytes of an image are no text
    assert "the text is not UTF-8" in result.stdout


def test_a_text_file_that_is_missing_is_said_before_a_model_is_opened(tmp_path):
    with pytest.raises(SourceError, match="nowhere"):
        featreg.extract(tmp_path / "nowhere.txt", tmp_path / "s", "numpy:nonesuch", "text_embedding")


def test_texts_are_estimated_and_appended(tmp_path, prompts, clipper):
    result = command(prompts, tmp_path / "s", "--model", clipper, "--layer", "text_embedding", "--dry-run", "--json")
    assert json.loads(result.stdout)["rows"] == 4
    extracted(prompts, tmp_path / "s", "--model", clipper, "--layer", "text_embedding")
    prompts.write_text("\n".join([*PROMPTS, "aaa"]) + "\n")
    store = extracted(prompts, tmp_path / "s", "--append")
    assert store["text_embedding"][4].tolist() == [3, 3]


def test_what_is_appended_is_opened_as_the_store_was(tmp_path):
    (tmp_path / "list.csv").write_text(f"path;class\n{COFFEE};4\n")
    options = ["--source-option", "uri=path", "--source-option", "target=class", "--source-option", "delimiter=;"]
    extracted(tmp_path / "list.csv", tmp_path / "s", *MODEL, "--layer", "pooled", *options)
    (tmp_path / "list.csv").write_text(f"path;class\n{COFFEE};4\n{ROCKET};2\n")
    assert append(tmp_path / "s", source=tmp_path / "list.csv").targets.tolist() == [4, 2]
    again = append(tmp_path / "s", source=open_source(tmp_path / "list.csv", uri="path", target="class", delimiter=";"))
    assert len(again) == 2
