"""The pages for users of stores: what they name is there, and nothing of the peers is left out."""

import re
from pathlib import Path

import click
import pytest

import featreg
from featreg.cli.main import COMMANDS, cli
from featreg.export import FORMATS
from featreg.stores.reading.rows import Rows

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {name: (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("migration", "reading")}

# The options of both tools, from their wheels on PyPI: VISSL 0.1.6 (config/defaults.yaml, engines/extract_features.py,
# utils/extract_features_utils.py), thingsvision 2.7.3 (thingsvision.py, core, utils).
VISSL = """
engine_name OUTPUT_DIR CHUNK_THRESHOLD EVAL_MODE_ON FREEZE_TRUNK_ONLY FREEZE_TRUNK_AND_HEAD EXTRACT_TRUNK_FEATURES_ONLY
EVAL_TRUNK_AND_HEAD SHOULD_FLATTEN_FEATS LINEAR_EVAL_FEAT_POOL_OPS_MAP AvgPool2d MaxPool2d AdaptiveAvgPool2d Identity
PARAMS_FILE STATE_DICT_KEY_NAME SKIP_LAYERS REMOVE_PREFIX APPEND_PREFIX HEAD.PARAMS TRUNK.NAME DATA_SOURCES DATA_PATHS
LABEL_SOURCES LABEL_PATHS LABEL_TYPE DATASET_NAMES TRANSFORMS BATCHSIZE_PER_REPLICA NUM_DATALOADER_WORKERS DATA_LIMIT
DATA_LIMIT_SAMPLING REMOVE_IMG_PATH_PREFIX NEW_IMG_PATH_PREFIX DEFAULT_GRAY_IMG_SIZE ENABLE_QUEUE_DATASET DROP_LAST
MMAP_MODE COPY_TO_LOCAL_DISK COPY_DESTINATION_DIR PIN_MEMORY ENABLE_ASYNC_GPU_COPY COLLATE_FUNCTION INPUT_KEY_NAMES
TARGET_KEY_NAMES DEVICE NUM_NODES NUM_PROC_PER_NODE INIT_METHOD RUN_ID SLURM SEED_VALUE USE_AMP load_features
sample_features num_samples flatten_features
"""
THINGSVISION = """
show-model extract-features --model-name --source --device --model-parameters --image-root --batch-size --output-type
--out-path --flatten-acts --module-name --file-format --model_name --interactive --module_name --flatten_acts
--center_acts --normalize_reps --compress_acts --batch_size --things --pretrained --fraction --file_format --in_path
--out_path --model_path --rnd_seed get_extractor get_extractor_from_model forward_fn flatten_fn get_module_names
show_model get_transformations ImageDataset class_names file_names HDF5Dataset img_ds_key img_indices DataLoader
extract_features module_names output_dir step_size save_in_one_file file_name_suffix batch_extraction extract_batch
token_extraction extract_cls_token cls_token avg_pool cls_token+avg_pool center_features normalize_features
save_features merge_features split_features align get_cka compute_rdm keras ssl custom
"""


@pytest.mark.parametrize("option", [*VISSL.split(), *THINGSVISION.split()])
def test_no_option_of_the_peers_is_left_out(option):
    assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", PAGES["migration"])


def options_of(command):
    found = cli.get_command(click.Context(cli), command)
    return {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}


def ours():
    """What the pages say of featreg: their code blocks, and the last cell of each row that is there already."""
    for page in PAGES.values():
        for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("featreg "):
                    yield line.partition("#")[0]
    for row in PAGES["migration"].splitlines():
        if row.startswith("| ") and "not yet" not in row:
            yield from re.findall(r"`([^`]+)`", row.rpartition(" | ")[2].replace("` |", "`"))


def test_every_command_and_option_that_the_pages_name_is_there():
    known = {option for command in COMMANDS for option in options_of(command)} | {"--version", "--help"}
    texts = list(ours())
    commands = {match[1] for text in texts if (match := re.match(r"featreg ([a-z-]+)", text))}
    named = {option for text in texts for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)}
    assert {"extract", "export", "merge", "worker"} <= commands
    assert len(named) > 10
    assert commands - set(COMMANDS) == set()
    assert named - known == set()


def test_the_page_of_formats_has_each_of_them():
    assert all(f"| `{name}` |" in PAGES["reading"] for name in FORMATS)


def test_the_methods_that_the_pages_name_are_there():
    text = "".join(PAGES.values())
    methods = set(re.findall(r"\bstore\.([a-z_]+)\(", text))
    functions = set(re.findall(r"\bfeatreg\.([A-Za-z_]+)\(", text))
    assert {"where", "sample", "batches", "memmap", "to_torch", "to_xarray"} <= methods
    assert [name for name in methods if not hasattr(Rows, name)] == []
    assert [name for name in functions if name not in featreg.__all__] == []
