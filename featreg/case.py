"""What the conformance kit tries on a backend: :class:`Case`, which an author's hook yields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np

from featreg.arrays import Array
from featreg.errors import SpecError
from featreg.fields import AtLeast, IsSize, IsText, as_names, as_numbers, as_pair, as_tuple, as_whole
from featreg.request import ExtractionRequest, Layer
from featreg.spec import Size

__all__ = ["Case", "Oracle", "TextOracle"]

Oracle: TypeAlias = Callable[[str, Any], Callable[[np.ndarray[Any, Any]], Mapping[Layer, Array]]]
"""From a model's name and an opened extractor's ``module`` to a function of images that gives layers.

The images are float32 (N, 3, H, W), to be used as they are. Only the weights of ``module`` may be taken (None where the
backend has none): an oracle that runs the code under test proves nothing. It may leave layers out, not all of them.
"""

TextOracle: TypeAlias = Callable[[str, Any], Callable[[Sequence[str]], Mapping[Layer, Array]]]
"""The same for the layers of a text tower: ``module`` is that of an extractor of texts, the function one of texts."""

TEXTS = ("a cat", "two dogs on a sofa", "the sea")


def _as_layers(value: Any) -> Any:
    return ExtractionRequest("any", value).layers


def _as_sizes(value: Any) -> Any:
    return tuple(map(as_pair, value))


def _are_sizes(case: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    for size in value:
        IsSize()(case, attribute, size)


def _is_oracle(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and not callable(value):
        raise SpecError("an oracle is called with a model's name and its module", "a callable", repr(value))


def _are_texts(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(text, str) for text in value) or len(set(value)) < 3:
        raise SpecError(f"{attribute.name} are what a text tower is tried with", "three different texts", repr(value))


def _are_patterns(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(pattern, str) for pattern in value):
        raise SpecError(f"{attribute.name} are those that a case is for", "patterns of ids, as 'values.*'", repr(value))


def _is_scale(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    numbers = isinstance(value, tuple) and [type(number) for number in value] == [float, float]
    if value is not None and not numbers:
        raise SpecError(f"{attribute.name} are scale * cosine + bias", "(scale, bias), two floats", repr(value))


@attrs.frozen
class Case:
    """A model to try: its layers, the (height, width) that most checks use, and those that the shapes are held against.

    ``name`` tells the cases of one backend apart and stands in lists of expected failures; it is the model's where
    empty. ``seed`` draws the images. ``oracle`` gives the true values, see :data:`Oracle`. A model that is costly to
    run may name what it is there for: ``checks`` are shell-style patterns of ids, all checks where empty.

    Where the model takes texts, ``texts`` are short ones that its text tower is tried with (at least three), and
    ``text_layers`` and ``text_oracle`` are for them what ``layers`` and ``oracle`` are for images. ``logit_scale`` is
    the (scale, bias) that its layer ``logits`` has with random weights: ``scale * cosine + bias`` of image and text.
    """

    model: str = attrs.field(validator=IsText())
    layers: tuple[Layer, ...] = attrs.field(converter=_as_layers)
    size: Size = attrs.field(converter=as_pair, validator=IsSize())
    sizes: tuple[Size, ...] = attrs.field(default=(), converter=_as_sizes, validator=_are_sizes)
    seed: int = attrs.field(default=0, converter=as_whole, validator=AtLeast(0))
    oracle: Oracle | None = attrs.field(default=None, eq=False, repr=False, validator=_is_oracle)
    name: str = attrs.field(default="", validator=IsText(empty=True))
    checks: tuple[str, ...] = attrs.field(default=(), converter=as_names, validator=_are_patterns)
    texts: tuple[str, ...] = attrs.field(default=TEXTS, converter=as_tuple, validator=_are_texts)
    text_layers: tuple[Layer, ...] = attrs.field(default=("text_embedding",), converter=_as_layers)
    text_oracle: TextOracle | None = attrs.field(default=None, eq=False, repr=False, validator=_is_oracle)
    logit_scale: tuple[float, float] | None = attrs.field(default=None, converter=as_numbers, validator=_is_scale)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.model)
        object.__setattr__(self, "sizes", tuple(dict.fromkeys((self.size, *self.sizes))))
