import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import featreg
from featreg.cli.main import cli
from featreg.engine import local
from featreg.sources import FolderSource

PHOTOS = str(Path(__file__).parent.parent / "photos")


def run(*arguments):
    return CliRunner().invoke(cli, ["extract", *map(str, arguments)])


def tinynet(store, *arguments):
    return run(PHOTOS, store, "--model", "numpy:tinynet", *arguments)


@pytest.fixture
def images(tmp_path):
    """A good and a bad image and a text."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "1.jpg").write_bytes((Path(PHOTOS) / "objects" / "coffee.jpg").read_bytes())
    (folder / "2\n.jpg").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"")
    return folder


def test_the_report_says_what_was_done_and_where_it_is(tmp_path):
    result = tinynet(tmp_path / "s", "--layer", "C5", "--layer", "pooled", "--layer", "-1")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["C5", "12x48x2x2", "float32"] in lines
    assert ["pooled", "12x48", "float32"] in lines
    assert ["-1", "12x48x2x2", "float32"] in lines
    assert "rows: 12, failed: 0, files skipped: 1, images/s: " in result.stdout
    assert "classes: 6\n" in result.stdout
    assert "weights: random (seeded), no pretrained weights" in result.stdout
    assert result.stdout.splitlines()[-1] == f"store: {tmp_path / 's'}"
    assert result.stderr.startswith(f"to do in {tmp_path / 's'}: 12 rows, ")
    assert featreg.open_store(tmp_path / "s").layers == ("C5", "pooled", -1)


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
def test_a_terminal_gets_a_progress_bar_on_stderr(tmp_path):
    import pty
    import termios

    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(stderr, (24, 80))
    os.set_blocking(terminal, False)
    code = "from featreg.cli.main import main; main()"
    command = [sys.executable, "-c", code, "extract", PHOTOS, str(tmp_path / "s"), "--model", "numpy:tinynet"]
    finished = subprocess.run([*command, "--layer", "C5", "--json"], stdout=subprocess.PIPE, stderr=stderr, check=True)
    assert "12/12" in os.read(terminal, 100_000).decode()
    os.close(stderr)
    os.close(terminal)
    assert json.loads(finished.stdout)["rows"] == 12


def test_json_is_one_object_and_nothing_else(tmp_path, images):
    result = run(images, tmp_path / "s", "--model", "numpy:tinynet", "--layer", "0", "--layer", "logits", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert "2 rows" in result.stderr
    assert (document["rows"], document["failed"], document["skipped"]) == (2, 1, 1)
    assert (document["classes"], document["stray"]) == (None, 0)
    assert document["store"] == str(tmp_path / "s")
    assert document["model"] == "numpy:tinynet"
    assert document["weights"] is None
    assert document["layers"] == [
        {"key": 0, "name": "stage1", "kind": "map", "shape": [2, 8, 32, 32], "dtype": "float32"},
        {"key": "logits", "name": "classifier", "kind": "vector", "shape": [2, 10], "dtype": "float32"},
    ]
    assert document["images_per_second"] == pytest.approx(2 / document["seconds"])
    assert document["errors"]["2\n.jpg"].startswith("ImageError: ")


def test_failures_are_listed_one_a_line(tmp_path, images):
    for number in range(3, 8):
        (images / f"{number}.jpg").write_bytes(b"")
    result = run(images, tmp_path / "s", "--model", "numpy:tinynet", "--layer", "C5")
    assert result.exit_code == 0
    assert "rows: 7, failed: 6, files skipped: 1" in result.stdout
    assert "  '2\\n.jpg': ImageError: an empty file is no image\n" in result.stdout
    assert "  and 3 more" in result.stdout


def test_options_reach_the_extraction(tmp_path):
    result = tinynet(
        tmp_path / "s", "--layer", "C5", "--batch-size", "2", "--limit", "3", "--dtype", "float32", "--json"
    )
    assert json.loads(result.stdout)["rows"] == 3
    direct = featreg.extract(PHOTOS, tmp_path / "direct", "numpy:tinynet", "C5", batch_size=2, limit=3)
    store = featreg.open_store(tmp_path / "s")
    assert np.array_equal(store["C5"][:], direct["C5"][:])
    assert store.manifest.request == direct.manifest.request


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--layer", "C9"], 2, "C9"),
        (["--layer", "C5", "--device", "cuda"], 2, "cuda"),
        (["--layer", "C5", "--weights", "default"], 2, "weights"),
        (["--layer", "C5", "--dtype", "float16"], 2, "float16"),
        (["--layer", "C5", "--limit", "0"], 2, "limit"),
        (["--layer", "C5", "--option", "ema"], 2, "NAME=VALUE"),
        (["--layer", "C5", "--option", "a=1", "--option", "a=2"], 2, "NAME=VALUE"),
        (["--layer", "C5", "--option", "a=1"], 2, "takes no options"),
        (["--layer", "C5", "--output-stride", "8"], 2, "output_stride"),
        ([], 2, "--layer"),
    ],
)
def test_what_cannot_be_is_said_on_stderr_and_leaves_no_store(tmp_path, arguments, code, said):
    result = tinynet(tmp_path / "s", *arguments)
    assert result.exit_code == code
    assert said in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "s").exists()


def test_a_store_is_replaced_only_on_request(tmp_path):
    assert tinynet(tmp_path / "s", "--layer", "C5").exit_code == 0
    refused = tinynet(tmp_path / "s", "--layer", "C4")
    assert refused.exit_code == 2
    assert "request.layers: ['C5'] in the store, ['C4'] now" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert featreg.open_store(tmp_path / "s").layers == ("C5",)
    assert tinynet(tmp_path / "s", "--layer", "C4", "--overwrite").exit_code == 0
    assert featreg.open_store(tmp_path / "s").layers == ("C4",)


def test_no_images_is_an_error_and_no_store(tmp_path):
    (tmp_path / "images").mkdir()
    result = run(tmp_path / "images", tmp_path / "s", "--model", "numpy:tinynet", "--layer", "C5")
    assert result.exit_code == 2
    assert "no images found" in result.stderr
    assert not (tmp_path / "s").exists()


def test_ctrl_c_leaves_a_store_that_opens_and_says_so(tmp_path, monkeypatch):
    read = FolderSource.read

    def interrupted(self, sample):
        if sample.key == "people/camera.jpg":
            raise KeyboardInterrupt
        return read(self, sample)

    monkeypatch.setattr(FolderSource, "read", interrupted)
    monkeypatch.setattr("featreg.engine.planning.plan.TASK_BYTES", 4 * 8 * 32 * 32 * 4)
    result = tinynet(tmp_path / "s", "--layer", "C1", "--batch-size", "2", "--json")
    assert result.exit_code == 130
    assert f"the store {tmp_path / 's'} can be opened; 4 of its 12 rows are finished" in result.stderr
    assert result.stdout == ""
    assert featreg.open_store(tmp_path / "s").status.tolist() == ["ok"] * 4 + ["pending"] * 8


def test_stray_images_are_said_to_be_why_there_are_no_classes(tmp_path, images):
    (images / "class").mkdir()
    (images / "1.jpg").rename(images / "class" / "1.jpg")
    report = run(images, tmp_path / "s", "--model", "numpy:tinynet", "--layer", "C5")
    assert "classes: none (1 image lies outside of any sub-folder)\n" in report.stdout
    (images / "3.jpg").write_bytes(b"")
    report = run(images, tmp_path / "t", "--model", "numpy:tinynet", "--layer", "C5")
    assert "classes: none (2 images lie outside of any sub-folder)\n" in report.stdout
    document = run(images, tmp_path / "u", "--model", "numpy:tinynet", "--layer", "C5", "--json").stdout
    assert json.loads(document)["stray"] == 2


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_run_in_which_every_image_failed_has_exit_code_1(tmp_path, images, form):
    (images / "1.jpg").write_bytes(b"")
    result = run(images, tmp_path / "s", "--model", "numpy:tinynet", "--layer", "C5", *form)
    assert result.exit_code == 1
    assert "\nno image could be read" in result.stderr
    assert "an empty file is no image" in result.stdout
    assert featreg.open_store(tmp_path / "s").summary.failed == 2


@pytest.mark.parametrize(
    ("source", "store", "said"),
    [("", "s", "empty"), (PHOTOS, "", "empty"), (PHOTOS, "nofs://b/s", "cannot be at")],
)
def test_paths_that_would_mean_something_else_are_refused(tmp_path, monkeypatch, source, store, said):
    monkeypatch.chdir(tmp_path)
    result = run(source, store, "--model", "numpy:tinynet", "--layer", "C5", "--overwrite")
    assert result.exit_code == 2
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_a_store_is_replaced_says_that_the_old_one_is_kept(tmp_path, monkeypatch):
    assert tinynet(tmp_path / "s", "--layer", "C5").exit_code == 0

    def interrupted(self, sample):
        raise KeyboardInterrupt

    monkeypatch.setattr(FolderSource, "read", interrupted)
    result = tinynet(tmp_path / "s", "--layer", "C1", "--overwrite")
    assert result.exit_code == 130
    assert f"interrupted: the store {tmp_path / 's'} is as it was" in result.stderr
    assert featreg.open_store(tmp_path / "s").layers == ("C5",)


def test_an_error_while_a_store_is_replaced_says_that_the_old_one_is_kept(tmp_path):
    assert tinynet(tmp_path / "s", "--layer", "C5").exit_code == 0
    result = tinynet(tmp_path / "s", "--layer", "C9", "--overwrite")
    assert result.exit_code == 2
    assert f"the store {tmp_path / 's'} is as it was" in result.stderr
    assert "C9" in result.stderr
    assert featreg.open_store(tmp_path / "s").complete


def test_ctrl_c_before_the_store_is_made_leaves_nothing_and_says_so(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "create_extractor", interrupted)
    result = tinynet(tmp_path / "s", "--layer", "C5")
    assert result.exit_code == 130
    assert f"no store was written to {tmp_path / 's'}" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "code",
    [
        "import featreg",
        "import featreg; featreg.list_backends()",
        "from featreg.cli.main import cli; cli(['--help'], standalone_mode=False)",
        "from featreg.cli.main import cli; cli(['backends'], standalone_mode=False)",
        "from featreg.cli.main import cli; cli(['extract', '--help'], standalone_mode=False)",
    ],
)
def test_nothing_of_the_data_extra_is_imported_before_it_is_used(code):
    heavy = {"zarr", "pyarrow", "PIL", "tqdm", "numcodecs", "concurrent.futures.thread"}
    script = f"{code}\nimport sys\nprint(sorted({heavy!r} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"


def test_layers_are_pooled_each_its_own_way(tmp_path):
    layers = ["C1:avgpool=10,10,4", "C2", "-1:maxpool=2", "pooled:identity"]
    arguments = [part for layer in layers for part in ("--layer", layer)]
    result = tinynet(tmp_path / "s", *arguments, "--pool", "gem=2", "--limit", "3")
    assert result.exit_code == 0, result.output
    store = featreg.open_store(tmp_path / "s")
    assert {layer: store[layer].shape for layer in store.layers} == {
        "C1": (3, 8, 4, 4), "C2": (3, 16), -1: (3, 48, 1, 1), "pooled": (3, 48),
    }  # fmt: skip
    assert store.info["C1"].shape(3, 64, 64) == (3, 8, 4, 4)
    whole = featreg.extract(PHOTOS, tmp_path / "whole", "numpy:tinynet", ["C1", "C2", "C5", "pooled"], limit=3)
    c1, c2, c5 = (whole[layer][:].astype(float) for layer in ("C1", "C2", "C5"))
    first = c1[:, :, 0:6, 0:6].sum((2, 3)) / 100  # rows and columns -4 to 5, zeros where there is no image
    np.testing.assert_allclose(store["C1"][:][:, :, 0, 0], first, rtol=1e-5)
    np.testing.assert_allclose(store["C2"][:], np.sqrt((c2.clip(1e-6) ** 2).mean((2, 3))), rtol=1e-5)
    np.testing.assert_allclose(store[-1][:][:, :, 0, 0], c5.max((2, 3)), rtol=1e-6)
    assert np.array_equal(store["pooled"][:], whole["pooled"][:])


def test_flattened_layers(tmp_path):
    result = tinynet(
        tmp_path / "s", "--layer", "C4", "--layer", "C5", "--pool", "avgpool=1", "--flatten", "--limit", "2"
    )
    assert result.exit_code == 0, result.output
    store = featreg.open_store(tmp_path / "s")
    whole = featreg.extract(PHOTOS, tmp_path / "whole", "numpy:tinynet", ["C4", "C5"], limit=2)
    assert store.manifest.request.flatten
    for layer in ("C4", "C5"):
        assert np.array_equal(store[layer][:], whole[layer][:].reshape(2, -1))
        assert store.info[layer].shape(2, 64, 64) == store[layer].shape


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layer", "C1:avgpol=2"], "avgpool"),
        (["--layer", "C1:"], "no pooling ''"),
        (["--layer", "C1:avg=10,10,4"], "avgpool=10,10,4"),
        (["--layer", "C1", "--pool", "mean"], "no pooling 'mean'"),
        (["--layer", "C1:avg", "--layer", "C1:max"], "more than once"),
        (["--layer", "pooled:avgpool=2"], "no grid"),
        (["--layer", "C5:avgpool=3"], "2x2 is too small"),
    ],
)
def test_poolings_that_cannot_be(tmp_path, arguments, said):
    result = tinynet(tmp_path / "s", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "s").exists()


def test_options_of_the_backend_are_json_or_text(tmp_path, monkeypatch):
    class Seen(Exception):
        pass

    def extract(*_, **fields):
        raise Seen(fields)

    monkeypatch.setattr(featreg, "extract", extract)
    options = ["--option", "ema=false", "--option", 'head={"mlp": [8, 4]}', "--option", "names=order"]
    result = tinynet(tmp_path / "s", "--layer", "C5", *options, "--output-stride", 8)
    (fields,) = result.exception.args
    assert fields["options"] == {"ema": False, "head": {"mlp": [8, 4]}, "names": "order"}
    assert fields["output_stride"] == 8


# --- runs that go on ----------------------------------------------------------------------------------------------


def featreg_command(*arguments):
    return CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.fixture
def unfinished(tmp_path, monkeypatch):
    """A store of twelve rows, of which four are done."""
    monkeypatch.setattr("featreg.engine.planning.plan.TASK_BYTES", 4 * 8 * 32 * 32 * 4)
    read = FolderSource.read

    def interrupted(self, sample):
        if sample.key == "people/camera.jpg":
            raise KeyboardInterrupt
        return read(self, sample)

    with monkeypatch.context() as patch:
        patch.setattr(FolderSource, "read", interrupted)
        assert tinynet(tmp_path / "s", "--layer", "C1", "--batch-size", "2").exit_code == 130
    return tmp_path / "s"


def test_a_resumed_run_says_how_much_was_there(unfinished):
    result = tinynet(unfinished, "--layer", "C1", "--batch-size", "2")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("resumed: 4 of 12 rows were finished before\n")
    again = tinynet(unfinished, "--layer", "C1")
    assert again.exit_code == 0
    assert again.stdout.startswith("the store is finished: nothing was left to do in its 12 rows\n")
    assert json.loads(tinynet(unfinished, "--layer", "C1", "--json").stdout)["done_before"] == 12


def test_status_verify_worker_and_repair(unfinished):
    status = featreg_command("status", unfinished)
    assert status.exit_code == 0, status.output
    assert "4 of 12 done, 0 failed, 8 left" in status.stdout
    found = json.loads(featreg_command("status", unfinished, "--json").stdout)
    assert (found["rows"], found["done"], found["left"], found["finished"]) == (12, 4, 8, False)
    verified = featreg_command("verify", unfinished)
    assert verified.exit_code == 1
    assert "receipts/0000/00000001.json" in verified.stdout
    assert "featreg worker" in verified.stdout
    worker = featreg_command("worker", unfinished, "--part", "1/2", "--batch-size", "2")
    assert worker.exit_code == 0, worker.output
    assert "rows: 12, failed: 0, finished: " in worker.stdout
    assert "state   finished" in featreg_command("status", unfinished).stdout
    verified = featreg_command("verify", unfinished)
    assert (verified.exit_code, verified.stdout) == (0, "the store is finished and whole\n")
    assert featreg_command("repair", unfinished).stdout == "nothing to mend\n"
    (unfinished / "C1/c/0/0/0/0").write_bytes(b"torn")
    verified = featreg_command("verify", unfinished, "--json")
    assert verified.exit_code == 1
    assert [(found["kind"], found["name"]) for found in json.loads(verified.stdout)["findings"]] == [
        ("damaged", "C1/c/0/0/0/0")
    ]
    mended = featreg_command("repair", unfinished)
    assert "4 rows in 1 tasks are planned again" in mended.stdout
    assert featreg_command("worker", unfinished).exit_code == 0
    assert featreg_command("verify", unfinished).exit_code == 0


@pytest.mark.parametrize("command", ["status", "verify", "repair", "worker"])
def test_there_must_be_a_store(tmp_path, command):
    result = featreg_command(command, tmp_path / "nothing")
    assert result.exit_code == 2
    assert "there is no store" in result.stderr


def test_layers_and_rows_are_added(tmp_path, images):
    assert run(images, tmp_path / "s", "--model", "numpy:tinynet", "--layer", "C5").exit_code == 0
    added = run(images, tmp_path / "s", "--add-layer", "C3:avg", "--add-layer", "pooled")
    assert added.exit_code == 0, added.output
    assert added.stdout.startswith("added C3, pooled to 2 rows\n")
    (images / "9.jpg").write_bytes((images / "1.jpg").read_bytes())
    appended = run(images, tmp_path / "s", "--append", "--json")
    assert appended.exit_code == 0, appended.output
    assert [layer["shape"] for layer in json.loads(appended.stdout)["layers"]] == [[3, 48, 2, 2], [3, 24], [3, 48]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--add-layer", "C3", "--append"], "one after the other"),
        (["--add-layer", "C3", "--model", "numpy:tinynet"], "--model"),
        (["--append", "--limit", "3"], "--limit"),
        (["--append", "--layer", "C3"], "take the model from the store"),
        (["--model", "numpy:tinynet"], "--layer"),
        (["--model", "numpy:tinynet", "--layer", "C5", "--part", "1"], "I/N"),
        (["--model", "numpy:tinynet", "--layer", "C5", "--part", "2/2"], "no part 2/2"),
    ],
)
def test_arguments_that_do_not_go_together(tmp_path, images, arguments, said):
    result = run(images, tmp_path / "s", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "s").exists()


def test_errors_may_stop_a_run(tmp_path, images):
    arguments = [images, tmp_path / "s", "--model", "numpy:tinynet", "--layer", "C5"]
    stopped = run(*arguments, "--on-error", "raise")
    assert stopped.exit_code == 2
    assert "an empty file is no image" in stopped.stderr
    stopped = run(*arguments, "--max-error-rate", "0.2")
    assert stopped.exit_code == 2
    assert "1 of 2 rows failed" in stopped.stderr
    assert run(*arguments).exit_code == 0
