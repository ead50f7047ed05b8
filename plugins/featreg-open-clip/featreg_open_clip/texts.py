"""Texts in, tokens out, and nothing cut off unless that is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from featreg.plugin import errors
from featreg_open_clip.library import muted, open_clip

__all__ = ["Tokenizer", "hub_files"]

_SHOWN = 60
_CLIPS_EXTRA = 3
"""In its mode ``clips`` open_clip's tokenizer adds a start, an end and a class token by itself."""


@contextlib.contextmanager
def hub_files(what: str) -> Iterator[None]:
    """Raise MissingDependencyError or WeightsError where a Hugging Face library, or a file of its hub, is not here."""
    try:
        yield
    except ImportError as error:
        raise errors.MissingDependencyError(
            f"{what} comes from Hugging Face transformers, which is not installed",
            "the distribution transformers",
            str(error),
            remedy='pip install "featreg-open-clip[transformers]"',
        ) from error
    except OSError as error:
        raise errors.WeightsError(
            f"{what} is neither in the cache of the Hugging Face hub nor can it be downloaded",
            "a connection to huggingface.co, or the files in the folder HF_HOME",
            f"{type(error).__name__}: {error}".splitlines()[0],
            remedy="open the model once while online; after that HF_HUB_OFFLINE=1 works",
        ) from error


class Tokenizer:
    """open_clip's own tokenizer of a model, which cuts long texts silently; here that is an error or asked for.

    Raises MissingDependencyError or WeightsError where the tokenizer is not on this machine.
    """

    def __init__(self, model: str, truncate: bool = False) -> None:
        self._model = model
        self._truncate = truncate
        with muted(), hub_files(f"the tokenizer of open_clip:{model}"):
            self._tokenizer: Any = open_clip.get_tokenizer(model)
        if not truncate:
            self.count("")  # a tokenizer that cannot be measured is refused now rather than with the first batch

    @property
    def context_length(self) -> int:
        """How many tokens the text tower takes, start and end tokens among them."""
        return int(self._tokenizer.context_length)

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """The tokens (N, context length) of N texts; InputError for a text that is too long."""
        if not self._truncate:
            self._check(texts)
        tokens: torch.Tensor = self._tokenizer(list(texts))
        return tokens

    def _check(self, texts: Sequence[str]) -> None:
        for number, text in enumerate(texts):
            count = self.count(text)
            if count > self.context_length:
                shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
                raise errors.InputError(
                    f"the text {shown!r} (number {number}) is too long for open_clip:{self._model}",
                    f"at most {self.context_length} tokens, start and end tokens among them",
                    f"{count} tokens",
                    remedy='shorten it, or pass options={"truncate": True} to cut it as open_clip does',
                )

    def count(self, text: str) -> int:
        """How many tokens a text has, start and end tokens among them."""
        kind = type(self._tokenizer)
        if issubclass(kind, SimpleTokenizer):
            return len(self._tokenizer.encode(text)) + 2
        if not issubclass(kind, HFTokenizer):
            raise errors.CapabilityError(
                f"the texts of open_clip:{self._model} cannot be measured with its {kind.__name__}",
                "one of open_clip's SimpleTokenizer and HFTokenizer",
                remedy='pass options={"truncate": True}: texts that are too long are then cut',
            )
        clips = self._tokenizer.tokenizer_mode == "clips"
        cleaned = self._tokenizer.clean_fn(text)
        ids = self._tokenizer.tokenizer(cleaned, add_special_tokens=not clips).input_ids
        return len(ids) + (_CLIPS_EXTRA if clips else 0)
