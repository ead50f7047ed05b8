"""timm's own networks taken as anyone's modules: levels and heads from hooks, against the tables."""

import functools
import json
from pathlib import Path

import pytest
import timm

import featreg
from featreg import errors
from featreg_torch.infer import infer_outlets
from featreg_torch.shapes import build_on_meta

TABLES = {
    path.stem: json.loads(path.read_text("utf-8"))
    for path in sorted((Path(__file__).parents[3] / "specs" / "architectures").glob("*.json"))
}
SEEN_BY_HOOKS = {
    "densenet121": {"C1": "features.norm0"},  # its activation is a part of the norm; the pooling follows
    "vgg16": {"C5": "pre_logits"},  # fully connected layers as convolutions, which timm keeps out of its levels
}
"""What the one rule says of timm's modules where timm's own declaration says another."""


def infer(name, **options):
    network = build_on_meta(functools.partial(timm.create_model, name, **options))
    size = network.pretrained_cfg["input_size"][1:]
    return {outlet.level or outlet.head: outlet for outlet in infer_outlets(network, size)}


def levels(found):
    return {key: outlet.source for key, outlet in found.items() if outlet.level}


@pytest.mark.parametrize("architecture", [name for name in TABLES if "timm" in TABLES[name]["backends"]])
def test_levels_are_those_of_the_table(architecture):
    entry = TABLES[architecture]["backends"]["timm"]
    assert levels(infer(entry["model"])) == {**entry["names"], **SEEN_BY_HOOKS.get(architecture, {})}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hrnet_w18_small", {"C1": "act1"}),  # every stage gives a list of several resolutions
        ("coat_lite_tiny", {}),  # tokens from stage to stage
        ("efficientformer_l1", {"C1": "stem.act1", "C2": "stages.0", "C3": "stages.1", "C4": "stages.2"}),
        ("levit_128s", {"C1": "stem.act1", "C2": "stem.act2", "C3": "stem.act3"}),
        ("pit_xs_224", {}),
        ("hiera_tiny_224", {}),
        ("efficientvit_b0", {"C1": "stem", **{f"C{k + 2}": f"stages.{k}" for k in range(4)}}),
    ],
)
def test_where_no_module_gives_the_map_there_is_no_level(name, expected):
    assert levels(infer(name)) == expected


def test_a_transformer_for_any_size_is_one_all_the_same():
    found = infer("vit_tiny_patch16_224", dynamic_img_size=True)
    assert levels(found) == {"C4": "blocks.11"}
    assert {key: found[key].source for key in ("features", "tokens", "logits")} == {
        "features": "norm", "tokens": "norm", "logits": "head",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_without_classes_there_are_no_logits(name):
    found = infer(name, num_classes=0)
    assert "logits" not in found
    assert found["pooled"].kind == "vector"


@pytest.mark.parametrize(
    ("name", "prefix", "first"),
    [
        ("vit_tiny_patch16_224", 1, True),
        ("deit_tiny_distilled_patch16_224", 2, True),
        ("vit_small_patch14_reg4_dinov2", 5, True),
        ("vit_medium_patch16_reg4_gap_256", 4, False),
        ("vit_base_patch16_siglip_224", 0, False),
    ],
)
def test_a_class_token_is_told_from_registers(name, prefix, first):
    info = featreg.describe(f"timm:{name}").resolve("tokens")
    assert (info.prefix_tokens, info.class_token) == (prefix, first)


def test_no_register_is_handed_out_as_the_class_token():
    with pytest.raises(errors.CapabilityError, match="no class token"):
        featreg.create_extractor("timm:vit_medium_patch16_reg4_gap_256", ["tokens"], weights=None, pool="cls")


def test_a_block_is_described_as_what_asking_for_it_gives():
    layers = ["blocks.5", "block.5", "forward_features", "features", "C4"]
    info = featreg.describe("timm:vit_tiny_patch16_224")
    with featreg.create_extractor("timm:vit_tiny_patch16_224", layers) as extractor:
        assert dict(extractor.feature_info) == {layer: info.resolve(layer) for layer in layers}
    shapes = [info.resolve(layer).shape(2, 224, 224) for layer in layers]
    assert shapes == [(2, 197, 192), (2, 192, 14, 14)] * 2 + [(2, 192, 14, 14)]


def test_what_the_listing_gives_no_shape_cannot_be_asked_for():
    """Hiera calls ``reroll`` with the number of a block, and only to make maps; ``blocks`` is a list."""
    nodes = {node.name: node.shape for node in featreg.list_nodes("timm:hiera_tiny_224")}
    assert nodes["blocks.0"] == (3136, 96)
    for name in ("reroll", "blocks"):
        assert nodes[name] is None
        for layers in ([name], ["C2", name]):
            with pytest.raises(errors.CapabilityError, match=f"{name!r} gives no feature"):
                featreg.create_extractor("timm:hiera_tiny_224", layers)


def test_native_names_have_shapes_where_the_grid_does_not_divide_the_image():
    nodes = {node.name: node.shape for node in featreg.list_nodes("timm:pit_xs_224")}
    assert nodes["patch_embed.conv"] == nodes["patch_embed"] == (96, 27, 27)
    assert nodes["transformers.1.pool.conv"] == (192, 14, 14)
    assert nodes["transformers.0.blocks.0"] == (1 + 27 * 27, 96)
    assert nodes["transformers.2.blocks.3"] == (1 + 7 * 7, 384)
    assert nodes["transformers.0.blocks.0.attn.k_norm"] is None  # (N, heads, L, d)
