"""A file of prompts into a store, as one command."""

from __future__ import annotations

import numpy as np
import open_clip
import torch
from click.testing import CliRunner

import featreg
from featreg.cli.main import cli

PROMPTS = ["a photo of a cat", "a diagram!", "zebras"]


def test_prompts_just_work(tmp_path, raw_model):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    store = str(tmp_path / "s")
    arguments = [str(tmp_path / "prompts.txt"), store, "--model", "open_clip:tiny-vit", "--layer", "text_embedding"]
    result = CliRunner().invoke(cli, ["extract", *arguments, "--batch-size", "3"])
    assert result.exit_code == 0, result.output
    found = featreg.open_store(store)
    with featreg.create_extractor("open_clip:tiny-vit", "text_embedding") as extractor, torch.no_grad():
        expected = raw_model(extractor).encode_text(open_clip.get_tokenizer("tiny-vit")(PROMPTS), normalize=False)
    np.testing.assert_array_equal(found["text_embedding"][:], expected.numpy(), strict=True)
    assert found.keys == ["1", "2", "3"]


def test_a_prompt_that_is_too_long_costs_its_own_row(tmp_path):
    long = " ".join(["cat"] * 50)
    for name, prompts in (("long", [PROMPTS[0], long, PROMPTS[1]]), ("empty", [PROMPTS[0], "", PROMPTS[1]])):
        (tmp_path / f"{name}.txt").write_text("\n".join(prompts) + "\n")
    request = {"model": "open_clip:tiny-vit", "layers": "text_embedding", "derive": "c=text_embedding:center"}
    stores = {name: featreg.extract(tmp_path / f"{name}.txt", tmp_path / name, **request) for name in ("long", "empty")}
    assert stores["long"].status.tolist() == ["ok", "error", "ok"]
    assert stores["long"].errors["2"].startswith("InputError: ")
    for layer in ("text_embedding", "c"):
        np.testing.assert_array_equal(stores["long"][layer][:], stores["empty"][layer][:])
