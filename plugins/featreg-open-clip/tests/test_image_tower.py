"""Every tapped tensor of an image tower against hooks on open_clip's own network, bit for bit."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch

import featreg
from featreg import errors
from featreg_open_clip.backend import OpenClipBackend

VITS = ("tiny-vit", "tiny-vit-avg", "tiny-clipa", "tiny-coca")
TRUNKS = ("tiny-convnext", "tiny-eva", "tiny-siglip", "tiny-attention", "tiny-rotary-mlp")
ALL = (*VITS, "tiny-rn", *TRUNKS)
LAST_SEQUENCE = {
    "tiny-vit": "visual.ln_post",
    "tiny-vit-avg": "visual.ln_post",
    "tiny-clipa": "visual.transformer",
    "tiny-coca": "visual.transformer",
}


def equal(actual, expected):
    np.testing.assert_array_equal(actual, expected.detach().numpy(), strict=True)


def as_map(sequence, side):
    """(N, 1 + side * side, D) with a class token first as (N, D, side, side)."""
    return sequence[:, 1:].reshape(len(sequence), side, side, -1).permute(0, 3, 1, 2)


def open_model(name, layers, **fields):
    return featreg.create_extractor(f"open_clip:{name}", layers, **fields)


def raw_embedding(network, batch):
    """What the tower returns, which open_clip normalises nowhere; CoCa's tower returns its tokens too."""
    with torch.no_grad():
        output = network.visual(batch)
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("name", VITS)
def test_blocks_are_maps_by_index_and_tokens_by_name(name, raw_model, images, hooked):
    blocks = [f"visual.transformer.resblocks.{index}" for index in range(3)]
    extractor = open_model(name, [0, 2, -2, *blocks])
    batch = images(extractor)
    features = extractor(batch)
    raw = hooked(raw_model(extractor), blocks, batch)
    for index in (0, 2):
        equal(features[index], as_map(raw[blocks[index]], 4))
    equal(features[-2], as_map(raw[blocks[1]], 4))
    for block in blocks:
        equal(features[block], raw[block])
    assert extractor.feature_info[blocks[0]].prefix_tokens == 1
    assert extractor.feature_info[blocks[0]].class_token
    described = featreg.describe(f"open_clip:{name}")
    assert [described.resolve(block) for block in blocks] == [extractor.feature_info[block] for block in blocks]
    assert [described.resolve(layer).kind for layer in (2, "block.2")] == ["map", "map"]


@pytest.mark.parametrize("name", VITS)
def test_level_of_the_patch_size_is_the_last_block(name, raw_model, images, hooked):
    extractor = open_model(name, ["C4"])
    batch = images(extractor)
    last = "visual.transformer.resblocks.2"
    equal(extractor(batch)["C4"], as_map(hooked(raw_model(extractor), [last], batch)[last], 4))
    assert (extractor.feature_info["C4"].reduction, extractor.feature_info["C4"].index) == (16, 2)


@pytest.mark.parametrize("name", VITS)
def test_features_and_tokens_are_the_last_sequence_before_pooling(name, raw_model, images, hooked):
    extractor = open_model(name, ["tokens", "features"])
    batch = images(extractor)
    source = LAST_SEQUENCE[name]
    sequence = hooked(raw_model(extractor), [source], batch)[source]
    features = extractor(batch)
    equal(features["tokens"], sequence)
    equal(features["features"], as_map(sequence, 4))


@pytest.mark.parametrize("name", VITS)
def test_pooled_is_what_the_projection_multiplies(name, raw_model, images):
    extractor = open_model(name, ["pooled", "embedding"])
    batch = images(extractor)
    features = extractor(batch)
    network = raw_model(extractor)
    equal(features["embedding"], raw_embedding(network, batch))
    network.visual.proj = None
    equal(features["pooled"], raw_embedding(network, batch))


@pytest.mark.parametrize("name", ALL)
def test_embedding_is_not_normalised(name, raw_model, images):
    extractor = open_model(name, "embedding")
    batch = images(extractor)
    embedding = extractor(batch)["embedding"]
    network = raw_model(extractor)
    with torch.no_grad():
        equal(embedding, network.encode_image(batch, normalize=False))
        unit = network.encode_image(batch, normalize=True).numpy()
    assert np.abs(np.linalg.norm(embedding, axis=1) - 1).min() > 0.01
    np.testing.assert_allclose(embedding / np.linalg.norm(embedding, axis=1, keepdims=True), unit, rtol=1e-5, atol=1e-6)


def test_coca_normalises_by_default_and_this_backend_does_not(raw_model, images):
    extractor = open_model("tiny-coca", "embedding")
    batch = images(extractor)
    with torch.no_grad():
        default = raw_model(extractor).encode_image(batch).numpy()
    np.testing.assert_allclose(np.linalg.norm(default, axis=1), 1, rtol=1e-5)
    assert not np.allclose(extractor(batch)["embedding"], default, atol=1e-3)


def test_resnet_levels_are_its_stages(raw_model, images, hooked):
    sources = {
        "C1": "visual.act3",
        "C2": "visual.layer1",
        "C3": "visual.layer2",
        "C4": "visual.layer3",
        "C5": "visual.layer4",
        "features": "visual.layer4",
        "visual.layer2.1": "visual.layer2.1",
    }
    extractor = open_model("tiny-rn", list(sources))
    batch = images(extractor)
    features = extractor(batch)
    raw = hooked(raw_model(extractor), set(sources.values()), batch)
    for key, source in sources.items():
        equal(features[key], raw[source])
    assert [extractor.feature_info[f"C{k}"].reduction for k in range(1, 6)] == [2, 4, 8, 16, 32]


def test_maps_as_wide_and_high_as_deep_keep_their_axes(raw_model, images, hooked):
    """Nothing in the shape (N, 16, 16, 16) says which axis holds the channels; RN50x16 has such maps."""
    sources = {0: "visual.avgpool", "visual.layer1.0.conv1": "visual.layer1.0.conv1"}
    extractor = open_model("tiny-cube", list(sources))
    batch = images(extractor)
    features, raw = extractor(batch), hooked(raw_model(extractor), set(sources.values()), batch)
    for key, source in sources.items():
        assert features[key].shape == (2, 16, 16, 16)
        equal(features[key], raw[source])


@pytest.mark.parametrize("name", [name for name in open_clip.list_models() if name.startswith("RN")])
def test_every_resnet_declares_all_its_stages(name):
    info = featreg.describe(f"open_clip:{name}")
    assert [feature.index for feature in info.features if feature.index is not None] == [0, 1, 2, 3, 4]
    assert [feature.level for feature in info.features if feature.level] == ["C1", "C2", "C3", "C4", "C5"]


def test_resnet_has_no_vector_before_its_projection():
    with pytest.raises(errors.CapabilityError, match="pooled"):
        open_model("tiny-rn", "pooled")


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-coca", "tiny-rn", "tiny-convnext", "tiny-eva"])
def test_index_order_is_that_of_forward_intermediates(name, raw_model, images):
    count = len([feature for feature in featreg.describe(f"open_clip:{name}").features if feature.index is not None])
    indices = [*range(count)]
    extractor = open_model(name, indices[::-1])
    batch = images(extractor)
    with torch.no_grad():
        output = raw_model(extractor).visual.forward_intermediates(batch, indices=indices, intermediates_only=True)
    features = extractor(batch)
    assert list(features) == indices[::-1]
    for index, expected in zip(indices, output["image_intermediates"], strict=True):
        equal(features[index], expected)


@pytest.mark.parametrize(("name", "indices"), [("tiny-vit", (3, -4)), ("tiny-rn", (5, -6))])
def test_index_out_of_range(name, indices):
    for index in indices:
        with pytest.raises(errors.LayerError, match=str(index)):
            open_model(name, index)


def test_trunk_levels_heads_and_native_names(raw_model, images, hooked):
    stages = {f"C{k + 2}": f"visual.trunk.stages.{k}" for k in range(4)}
    modules = [*stages.values(), "visual.trunk", "visual.trunk.stem", "visual"]
    extractor = open_model("tiny-convnext", [*stages, *modules[4:], "features", "pooled"])
    batch = images(extractor)
    features = extractor(batch)
    network = raw_model(extractor)
    raw = hooked(network, modules, batch)
    for level, stage in stages.items():
        equal(features[level], raw[stage])
    for module in modules[4:]:
        equal(features[module], raw[module])
    equal(features["pooled"], raw["visual.trunk"])
    with torch.no_grad():
        equal(features["features"], network.visual.trunk.forward_features(batch))


def test_transformer_trunk_ends_in_timms_own_classifier(raw_model, images, hooked):
    extractor = open_model("tiny-eva", ["C4", "tokens", "features", "pooled", "embedding"])
    batch = images(extractor)
    features = extractor(batch)
    network = raw_model(extractor)
    last = f"visual.trunk.blocks.{len(network.visual.trunk.blocks) - 1}"
    raw = hooked(network, [last, "visual.trunk.norm", "visual"], batch)
    equal(features["C4"], as_map(raw[last], 10))
    equal(features["tokens"], raw["visual.trunk.norm"])
    equal(features["features"], as_map(raw["visual.trunk.norm"], 10))
    equal(features["embedding"], raw["visual"])
    network.visual.trunk.reset_classifier(0, "token")
    with torch.no_grad():
        equal(features["pooled"], network.visual.trunk(batch))


def test_pooled_of_trunks_with_other_heads(raw_model, images, hooked):
    siglip = open_model("tiny-siglip", ["pooled", "embedding"])
    features = siglip(images(siglip))
    np.testing.assert_array_equal(features["pooled"], features["embedding"])  # it has no projection

    mlp = open_model("tiny-rotary-mlp", "pooled")
    raw = hooked(raw_model(mlp), ["visual.head.pool"], images(mlp))
    equal(mlp(images(mlp))["pooled"], raw["visual.head.pool"])

    with pytest.raises(errors.CapabilityError, match="pooled"):
        open_model("tiny-attention", "pooled")  # the attention pool is the projection


@pytest.mark.parametrize("name", ALL)
def test_predicted_shapes_are_exact(name, images):
    info = featreg.describe(f"open_clip:{name}")
    keys = [key for key in info.keys if key != "text_embedding"]
    extractor = open_model(name, keys)
    batch = images(extractor, batch=3)
    features = extractor(batch)
    assert {key: array.shape for key, array in features.items()} == extractor.output_shapes(tuple(batch.shape))
    for key in keys:
        assert info.resolve(key).shape(3, *info.input_size) == features[key].shape


@pytest.mark.parametrize(
    ("name", "layers", "head"),
    [("ViT-B-32", ["C5", 3, "tokens", "pooled"], "visual.ln_post"), ("RN50", ["C1", "C2", 0, "C5"], "visual.layer4")],
)
def test_real_architectures(name, layers, head, raw_model, images, hooked):
    extractor = open_model(name, [*layers, "features", "embedding"])
    batch = images(extractor, batch=1)
    features = extractor(batch)
    sources = {layer: extractor.feature_info[layer].name for layer in layers if layer != "pooled"}
    network = raw_model(extractor)
    raw = hooked(network, {*sources.values(), head}, batch)
    side = 7
    for layer, source in sources.items():
        tokens = raw[source].ndim == 3 and layer != "tokens"
        equal(features[layer], as_map(raw[source], side) if tokens else raw[source])
    equal(features["features"], as_map(raw[head], side) if raw[head].ndim == 3 else raw[head])
    equal(features["embedding"], raw_embedding(network, batch))
    if "pooled" in layers:
        network.visual.proj = None
        equal(features["pooled"], raw_embedding(network, batch))
    assert features["C5"].shape == (1, 768 if name == "ViT-B-32" else 2048, 7, 7)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
def test_other_sizes_are_refused_even_where_open_clip_takes_them(name, raw_model):
    extractor = open_model(name, "embedding")
    odd = torch.zeros(1, 3, 66, 64)
    raw_embedding(raw_model(extractor), odd)  # open_clip itself does not mind
    for size in ((66, 64), (128, 128)):
        with pytest.raises(errors.InputError, match="size"):
            extractor(torch.zeros(1, 3, *size))
        with pytest.raises(errors.InputError, match="size"):
            featreg.describe(f"open_clip:{name}", size)


def test_queries_of_an_attentional_pool_are_no_patches(raw_model, images, hooked):
    layers = ["visual.ln_post", "visual.attn_pool"]
    extractor = open_model("tiny-coca", layers)
    batch = images(extractor)
    features, raw = extractor(batch), hooked(raw_model(extractor), layers, batch)
    for layer in layers:
        equal(features[layer], raw[layer])
        info = extractor.feature_info[layer]
        assert (info.kind, info.length, info.reduction, info.prefix_tokens) == ("tokens", 9, None, 0)
        assert not info.class_token


def test_unknown_layers_name_the_nearest():
    with pytest.raises(errors.LayerError) as caught:
        open_model("tiny-vit", "visual.transformer.resblocks.9")
    assert "visual.transformer.resblocks.0" in caught.value.matches


def test_unknown_models_do_not_fall_back_to_a_default():
    for name in ("tiny-vot", "ViT-B/23", "ViT/B/32"):
        with pytest.raises(errors.UnknownModelError):
            open_model(name, "embedding")
    with pytest.raises(errors.UnknownModelError) as caught:
        featreg.describe("open_clip:ViT-B-23")
    assert "ViT-B-32" in caught.value.matches
    with pytest.raises(errors.UnknownModelError):  # also where nobody asked has() before
        OpenClipBackend().info("ViT-B-23")


def test_every_model_of_open_clip_is_listed():
    assert set(featreg.list_models("open_clip")) == set(open_clip.list_models())


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn", "tiny-convnext"])
def test_bfloat16_runs_as_in_open_clip(name, raw_model, images):
    extractor = open_model(name, "embedding", dtype="bfloat16", array="native")
    batch = images(extractor)
    embedding = extractor(batch)["embedding"]
    assert embedding.dtype == torch.bfloat16
    network = raw_model(extractor).to(torch.bfloat16)
    assert torch.equal(embedding, raw_embedding(network, batch.bfloat16()))


def test_gradients_reach_the_input(images):
    extractor = open_model("tiny-vit", ["pooled", "C4"], grad=True, array="native")
    batch = images(extractor).requires_grad_()
    features = extractor(batch)
    (features["pooled"].square().sum() + features["C4"].square().sum()).backward()
    assert batch.grad is not None
    assert batch.grad.abs().max() > 0


def test_uint8_images_are_normalised_as_open_clip_does(raw_model):
    extractor = open_model("tiny-vit", "embedding")
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = raw_model(extractor)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (network.visual.image_mean, network.visual.image_std))
    expected = raw_embedding(network, (pixels.float() / 255 - mean) / std)
    np.testing.assert_allclose(extractor(pixels)["embedding"], expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-coca", "tiny-eva"])
def test_blocks_by_number_are_the_indices(name, images):
    layers = ["block.0", 0, "block.1"]
    extractor = open_model(name, layers)
    features = extractor(images(extractor))
    np.testing.assert_array_equal(features["block.0"], features[0])
    assert extractor.feature_info["block.1"].index == 1
    with pytest.raises(errors.LayerError):
        open_model("tiny-rn", "block.0")
