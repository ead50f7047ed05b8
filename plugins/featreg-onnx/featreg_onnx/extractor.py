"""One opened file: the part of its graph that the layers need, in a session of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from featreg.plugin import Array, BackendExtractor, Described, FeatureInfo, ModelInfo, errors, normalize
from featreg_onnx.layout import Place
from featreg_onnx.runtime import Session
from featreg_onnx.survey import Survey

__all__ = ["OnnxExtractor"]


class OnnxExtractor(BackendExtractor):
    """The tensors of some places, in the order of the request."""

    def __init__(
        self, session: Session, info: ModelInfo, survey: Survey, places: Sequence[Place], identify: Callable[[], str]
    ) -> None:
        self.info = info
        self._session = session
        self._survey = survey
        self._places = places
        self._described = [survey.describe(place) for place in places]
        self._identify = identify
        self.features = tuple(found.feature for found in self._described)

    @property
    def module(self) -> Any:
        """The session of onnxruntime, whose outputs are the tensors that were asked for."""
        return self._session

    def weights_identity(self) -> str:
        return self._identify()

    def forward(self, batch: Array) -> list[Any]:
        images = normalize(batch, self.info.preprocess)
        size = (int(images.shape[2]), int(images.shape[3]))
        arranged = images.transpose(0, 2, 3, 1) if self._survey.last else images
        tensors = self._run(np.ascontiguousarray(arranged, np.dtype(self._survey.number)))
        taken = zip(self._places, self._described, strict=True)
        return [self._arrange(tensors[place.name], place, found, size) for place, found in taken]

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError) or "Failed to allocate memory" in str(error)

    def measure(self, height: int, width: int) -> tuple[FeatureInfo, ...]:
        return tuple(self._survey.describe(place, (height, width)).feature for place in self._places)

    def close(self) -> None:
        self._session = None

    def _run(self, images: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Every tensor that is needed; as many images at once as the file takes."""
        names = list(dict.fromkeys(place.name for place in self._places))
        session, step = self._session, self._survey.batch or len(images)
        if len(images) % step:
            raise errors.InputError(
                f"the file takes {step} images at once", f"a multiple of {step} images", str(len(images))
            )
        parts = [
            session.run(names, {self._survey.graph.input: images[first : first + step]})
            for first in range(0, len(images), step)
        ]
        joined = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        return dict(zip(names, joined, strict=True))

    def _arrange(self, tensor: np.ndarray[Any, Any], place: Place, found: Described, size: tuple[int, int]) -> Any:
        """A tensor as its description says, in memory of its own."""
        if found.form == "channels last":
            tensor = tensor.transpose(0, 3, 1, 2)
        elif found.form == "one position":
            tensor = tensor[:, :, 0, 0]
        elif found.form == "patches":
            feature = self._survey.describe(place, size).feature
            tokens = tensor[:, found.prefix_tokens :]
            tensor = tokens.transpose(0, 2, 1).reshape(len(tokens), feature.channels, *feature.grid(*size))
        return np.array(tensor, np.dtype(self._survey.number), order="C")
