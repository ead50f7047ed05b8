"""Models that bring their own configuration: folders, and repositories of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HUB_CACHE
from open_clip.pretrained import download_pretrained_from_hf

from featreg.plugin import errors
from featreg_open_clip.library import muted

__all__ = ["CONFIGURATION", "HUBS", "document", "folder", "is_hub", "reading_hub"]

HUBS = ("hf-hub:", "local-dir:")
"""What open_clip puts before a repository of the Hugging Face hub, or a folder, with a model and its weights."""

CONFIGURATION = "open_clip_config.json"


def is_hub(name: str) -> bool:
    """Whether a name stands for a repository or a folder, rather than for one of open_clip's configurations."""
    return name.startswith(HUBS)


def document(name: str) -> Mapping[str, Any]:
    """The file open_clip_config.json of a repository or folder: ``model_cfg`` and, mostly, ``preprocess_cfg``.

    Raises WeightsError where there is none, or one of another form.
    """
    path = folder(name) / CONFIGURATION
    try:
        content: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
        model = content["model_cfg"]
        if not all(isinstance(model[part], dict) for part in ("text_cfg", "vision_cfg")):
            raise TypeError("text_cfg and vision_cfg are no objects")
        return {"preprocess_cfg": {}, **content, "model_cfg": {"embed_dim": model["embed_dim"], **model}}
    except OSError as error:
        raise errors.WeightsError(
            f"{name!r} holds no model of open_clip",
            f"a folder with {CONFIGURATION} and weights, such as open_clip_model.safetensors",
            f"{type(error).__name__}: {error}",
            remedy="open_clip.push_to_hf_hub.save_for_hf writes such a folder",
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise errors.WeightsError(
            f"{path} is no configuration of open_clip's",
            "model_cfg with embed_dim, vision_cfg and text_cfg; preprocess_cfg",
            f"{type(error).__name__}: {error}",
        ) from error


def folder(name: str) -> Path:
    """The folder that holds the configuration: the one that is named, or that of a repository in the hub's cache."""
    if name.startswith("local-dir:"):
        return Path(name.removeprefix("local-dir:"))
    with reading_hub(name):
        return Path(download_pretrained_from_hf(name.removeprefix("hf-hub:"), filename=CONFIGURATION)).parent


@contextlib.contextmanager
def reading_hub(name: str) -> Iterator[None]:
    """Raise WeightsError, with the repository, the cache and a remedy, where a repository cannot be read."""
    try:
        with muted():
            yield
    except Exception as error:
        raise errors.WeightsError(
            f"the model {name!r} cannot be had",
            f"the repository {name.removeprefix('hf-hub:')}, from huggingface.co or from the cache {HF_HUB_CACHE}",
            f"{type(error).__name__}: {error}",
            remedy="open it once while online, or pass a copy of the repository as 'local-dir:FOLDER'",
        ) from error
