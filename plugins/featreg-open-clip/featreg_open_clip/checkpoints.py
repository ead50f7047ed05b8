"""Checkpoints: where those of a tag are, and those that other programs than open_clip have written."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from open_clip.convert import convert_state_dict
from open_clip.factory import _find_checkpoint_in_dir
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf

from featreg.plugin import errors
from featreg_open_clip.architectures import ClipVariant, quick_gelu
from featreg_open_clip.library import open_clip
from featreg_open_clip.towers import is_text

__all__ = ["check_archive", "converted", "find_checkpoint", "finding_weights", "without_texts"]

_OPENAI_ENTRIES = ("input_resolution", "context_length", "vocab_size")
"""What OpenAI's archives hold besides the model's tensors."""

_POSITIONS = "text.transformer.embeddings.position_ids"
"""Numbers from 0 on, which Hugging Face's encoders kept among their weights up to transformers 4.30."""


@contextlib.contextmanager
def finding_weights(variant: ClipVariant, tag: str) -> Iterator[None]:
    """Raise WeightsError, with their origin, the cache and a remedy, where the weights of a tag cannot be had."""
    config = open_clip.get_pretrained_cfg(variant.model, tag)
    origin = config.get("hf_hub") or config.get("url") or config.get("file") or tag
    cache = Path("~/.cache/clip").expanduser() if config.get("url") and not config.get("hf_hub") else HF_HUB_CACHE
    where = origin if tag.startswith("local-dir:") else f"{origin}, from the network or from the cache {cache}"
    try:
        yield
    except errors.FeatregError:
        raise
    except Exception as error:
        raise errors.WeightsError(
            f"the pretrained weights {tag!r} of open_clip:{variant.model} cannot be had",
            where,
            f"{type(error).__name__}: {error}",
            remedy="load them once while online, or pass the path of a checkpoint file as weights",
        ) from error


def find_checkpoint(variant: ClipVariant, tag: str) -> str:
    """The file with the weights of a tag, a repository or a folder, downloaded where it must be."""
    kind, _, name = tag.partition(":")
    if kind == "hf-hub":
        return str(download_pretrained_from_hf(name))
    if kind != "local-dir":
        return str(download_pretrained(open_clip.get_pretrained_cfg(variant.model, tag)))
    found = _find_checkpoint_in_dir(Path(name))
    if found is None:
        raise FileNotFoundError(f"no weights in {name}")
    return str(found)


def check_archive(path: str) -> None:
    """Raise WeightsError for a TorchScript archive, which is a program: nothing of it is run to get at its tensors."""
    file = Path(path).expanduser()
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise errors.WeightsError(
            f"{path!r} is a TorchScript archive, as OpenAI distributes CLIP: a program, and not only tensors",
            "a state_dict saved by torch.save, or safetensors",
            "constants.pkl and code in the archive",
            remedy="where you trust it: torch.save(torch.jit.load(PATH, 'cpu').state_dict(), 'clip.pt')",
        )


def converted(network: Any, state: Mapping[str, torch.Tensor], variant: ClipVariant) -> Mapping[str, torch.Tensor]:
    """The tensors of a checkpoint as open_clip's own loader renames them for this network.

    Known are OpenAI's state_dicts, those of models whose text tower has since got a place of its own, and Apple's
    MobileCLIP. Raises WeightsError for weights of OpenAI's, which were trained with QuickGELU, in a model without it.
    """
    if all(name in state for name in _OPENAI_ENTRIES):
        if not quick_gelu(variant):
            _refuse_gelu(variant.model)
        state = {name: tensor for name, tensor in state.items() if name not in _OPENAI_ENTRIES}
    renamed: dict[str, torch.Tensor] = dict(convert_state_dict(network, dict(state)))
    if "positional_embedding" in renamed and not hasattr(network, "positional_embedding"):
        renamed = convert_to_custom_text_state_dict(renamed)
    if _POSITIONS not in network.state_dict():
        renamed.pop(_POSITIONS, None)
    for name in ("logit_scale", "logit_bias"):  # some have one element in a row
        own = getattr(network, name, None)
        if name in renamed and own is not None and renamed[name].numel() == own.numel():
            renamed[name] = renamed[name].reshape(own.shape)
    return renamed


def without_texts(network: Any, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint for a network whose text tower is a stand-in, which keeps its own tensors."""
    stand_in = {name: tensor for name, tensor in network.state_dict().items() if is_text(name)}
    return {**{name: tensor for name, tensor in state.items() if not is_text(name)}, **stand_in}


def _refuse_gelu(model: str) -> None:
    fitting = f"{model}-quickgelu"
    raise errors.WeightsError(
        f"the weights are OpenAI's, which want QuickGELU; open_clip:{model} has GELU",
        "a configuration with QuickGELU",
        model,
        (fitting,) if fitting in open_clip.list_models() else (),
    )
