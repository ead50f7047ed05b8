"""The options of the backend, and the layers that they are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featreg.plugin import ExtractionRequest, errors
from featreg_open_clip.towers import ENCODE_IMAGE, ENCODE_TEXT, LOGITS, is_text

__all__ = ["OPTIONS", "check_use", "check_values", "wants_texts"]

_SWITCHES = ("truncate", "normalize")
OPTIONS = (*_SWITCHES, "texts")
_EMBEDDINGS = ("embedding", "text_embedding", ENCODE_IMAGE, ENCODE_TEXT)


def check_values(options: Mapping[str, Any]) -> None:
    """Raise SpecError for a value of another type than its option takes."""
    for switch in _SWITCHES:
        if not isinstance(options.get(switch, False), bool):
            raise errors.SpecError(f"the option {switch!r} is a switch", "true or false", repr(options[switch]))
    texts = options.get("texts", ("",))
    if not isinstance(texts, Sequence) or isinstance(texts, str) or not texts:
        raise errors.SpecError("the option 'texts' holds the texts of each class", "a list of strings", repr(texts))
    if not all(isinstance(text, str) for text in texts):
        raise errors.SpecError("the option 'texts' holds the texts of each class", "strings", repr(texts))


def check_use(request: ExtractionRequest) -> None:
    """Raise LayerError for layers of both towers, CapabilityError for an option without its layer, or the reverse."""
    layers, options = request.layers, request.options
    if len({wants_texts(layer) for layer in layers}) > 1:
        raise errors.LayerError(
            "layers of the image tower and of the text tower cannot be asked for together: their inputs differ",
            "layers of one tower",
            str(list(layers)),
            remedy="open two extractors",
        )
    if options.get("normalize") and not any(layer in _EMBEDDINGS for layer in layers):
        raise errors.CapabilityError(
            "the option 'normalize' is for embeddings", "the layer 'embedding' or 'text_embedding'", str(list(layers))
        )
    logits = any(layer in ("logits", LOGITS) for layer in layers)
    if logits and "texts" not in options:
        raise errors.CapabilityError(
            f"open_clip:{request.model} has logits of images and texts only",
            "the texts to compare with",
            "no texts",
            remedy='pass options={"texts": ["a photo of a cat", "a photo of a dog"]}',
        )
    if "texts" in options and not logits:
        raise errors.CapabilityError("the option 'texts' is for 'logits'", "the layer 'logits'", str(list(layers)))


def wants_texts(layer: str | int) -> bool:
    """Whether a layer is one of the text tower, whose input is texts."""
    return isinstance(layer, str) and (layer == "text_embedding" or is_text(layer))
