"""What CLIP is for: how well images and texts go together, by the model's own scale."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import torch
from torch.nn import functional

from featreg.plugin import errors

__all__ = ["image_text_logits", "keep_scale"]


_KEPT = "_featreg_logit_scale"


@attrs.frozen
class _LogitScale:
    factor: float
    bias: float | None


def image_text_logits(extractor: Any, images: Any, texts: Any) -> Any:
    """The logits (N, M) of N images and M texts, as open_clip's ``get_logits`` has them for images.

    They are ``scale * cosine + bias``, with the model's own scale and, for SigLIP, bias; a softmax over the texts makes
    CLIP's zero-shot probabilities, a sigmoid SigLIP's. ``images`` (N, D) and ``texts`` (M, D) are embeddings, of unit
    length or not, as NumPy arrays or torch tensors; the logits are of the kind that ``images`` is. ``extractor`` is an
    open one of this model with these weights, for images or for texts.

    Raises CapabilityError for an extractor of another backend, InputError for embeddings of other shapes.
    """
    scale = getattr(getattr(getattr(extractor, "module", None), "network", None), _KEPT, None)
    if scale is None:
        raise errors.CapabilityError(
            "logits of images and texts need a model's scale", "an open extractor of open_clip:…", repr(extractor)
        )
    embeddings = [torch.as_tensor(batch) for batch in (images, texts)]
    sizes = [tuple(batch.shape) for batch in embeddings]
    if any(len(size) != 2 for size in sizes) or sizes[0][1] != sizes[1][1]:
        raise errors.InputError("embeddings of images and texts do not fit", "(N, D) and (M, D)", str(sizes))
    unit_images, unit_texts = (functional.normalize(batch, dim=-1) for batch in embeddings)
    logits = scale.factor * unit_images @ unit_texts.T  # in the order of open_clip's own operations
    logits = logits if scale.bias is None else logits + scale.bias
    return logits.numpy() if isinstance(images, np.ndarray) else logits


def keep_scale(network: Any) -> None:
    """Remember a network's scale and bias, whose parameters go where it is cut down to one tower."""
    bias = None if network.logit_bias is None else float(network.logit_bias.detach())
    setattr(network, _KEPT, _LogitScale(float(network.logit_scale.detach().exp()), bias))
