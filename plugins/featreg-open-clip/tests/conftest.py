"""Small architectures of open_clip's own kinds, so that real open_clip networks run in milliseconds."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VIT = {"image_size": 64, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16}
COCA_TEXT = {**TEXT, "context_length": 11, "embed_cls": True, "output_tokens": True}
QUERIES = {"attentional_pool": True, "attn_pooler_queries": 9, "attn_pooler_heads": 2, "output_tokens": True}
TRUNK = {"timm_model_pretrained": False, "image_size": 160}

CONFIGS = {
    "tiny-vit": {"vision_cfg": VIT},
    "tiny-vit-avg": {"vision_cfg": {**VIT, "pool_type": "avg"}},
    "tiny-clipa": {"vision_cfg": {**VIT, "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}},
    "tiny-coca": {
        "vision_cfg": {**VIT, **QUERIES},
        "text_cfg": COCA_TEXT,
        "multimodal_cfg": {"context_length": 11, "width": 16, "heads": 2, "layers": 1},
        "custom_text": True,
    },
    "tiny-rn": {"vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None}},
    "tiny-cube": {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}},
    "tiny-convnext": {
        "vision_cfg": {**TRUNK, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"}
    },
    "tiny-eva": {
        "vision_cfg": {**TRUNK, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None},
        "custom_text": True,
    },
    "tiny-siglip": {
        "vision_cfg": {**TRUNK, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
        "custom_text": True,
    },
    "tiny-bias": {"vision_cfg": VIT, "custom_text": True, "init_logit_bias": -10},
    "tiny-attention": {
        "vision_cfg": {**TRUNK, "timm_model_name": "test_efficientnet", "timm_pool": "abs_attn", "timm_proj": ""}
    },
    "tiny-rotary-mlp": {
        "vision_cfg": {**TRUNK, "timm_model_name": "test_efficientnet", "timm_pool": "rot_attn", "timm_proj": "mlp"}
    },
}


@pytest.fixture(scope="module", autouse=True)
def tiny_models(tmp_path_factory):
    """The configurations above, known to open_clip while a module's tests run."""
    folder = tmp_path_factory.mktemp("model_configs")
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 24, "text_cfg": TEXT, **config}))
    open_clip.add_model_config(folder)
    yield
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder)
    for name in CONFIGS:
        open_clip.factory._MODEL_CONFIGS.pop(name)


@pytest.fixture(scope="session")
def raw_model():
    """Makes the library's own network by open_clip alone, with the random weights that an extractor's seed gives."""

    def make(extractor):
        name = extractor.request.model.partition(":")[2]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return open_clip.create_model(name, pretrained_hf=False).eval()

    return make


@pytest.fixture(scope="session")
def images():
    """Makes a batch of floating-point images that fits a model."""

    def make(extractor, batch=2, seed=0):
        height, width = extractor.info.input_size
        return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def hooked():
    """Runs the image tower of a raw network and returns copies of what some of its modules returned."""

    def run(network, names, batch):
        found, handles = {}, []
        for name in names:
            handles.append(
                network.get_submodule(name).register_forward_hook(
                    lambda _, __, output, name=name: found.__setitem__(name, output.clone())
                )
            )
        with torch.no_grad():
            network.visual(batch)
        for handle in handles:
            handle.remove()
        return found

    return run
