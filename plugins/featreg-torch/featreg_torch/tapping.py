"""From the layers of a request to taps on a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from featreg.plugin import ExtractionRequest, FeatureInfo, Layer, ModelInfo, Size
from featreg_torch.blueprint import Blueprint
from featreg_torch.device import DTYPES
from featreg_torch.module import FeatureModule
from featreg_torch.projection import LAYER, Projected, projected_info
from featreg_torch.taps import Take

__all__ = ["Tapping"]


class Tapping:
    """The layers of one request on one blueprint. Raises LayerError or CapabilityError for a layer that is none.

    With a ``projection`` the layer ``"head"`` is what that makes of the pooled features.
    """

    def __init__(
        self, blueprint: Blueprint, info: ModelInfo, layers: Sequence[Layer], projection: nn.Sequential | None = None
    ) -> None:
        self._blueprint = blueprint
        self._info = info
        self._layers = tuple(layers)
        self._projection = projection
        self._outlets = [blueprint.outlet("pooled" if self._projects(layer) else layer, info) for layer in layers]
        self._readings = blueprint.read(self._outlets)
        self._cut = blueprint.cut(self._outlets)

    def used(self) -> frozenset[str]:
        """The names of the parameters and buffers that these layers need."""
        return self._cut.used

    def spare(self) -> frozenset[str]:
        """The names of the parameters and buffers that nothing needs: neither these layers, nor any but the scores."""
        others = [outlet for outlet in self._blueprint.outlets if outlet.head != "logits" and not outlet.scores]
        needed = self.used() | self._blueprint.cut(others).used
        return frozenset(self._blueprint.network.state_dict(keep_vars=True)) - needed

    def module(self, network: nn.Module) -> FeatureModule:
        """A network that was built as the blueprint's, tapped."""
        takes: list[nn.Module] = [
            Take(reading.info, reading.stored, reading.prefix_tokens) for reading in self._readings
        ]
        if self._projection is not None:
            pairs = zip(takes, self._layers, strict=True)
            takes = [Projected(take, self._projection) if self._projects(layer) else take for take, layer in pairs]
        sources = [outlet.source for outlet in self._outlets]
        return FeatureModule(network, self._blueprint.tap(network, sources, takes, self._cut.stop_after), self._layers)

    def parts(self, module: FeatureModule, device: torch.device, request: ExtractionRequest) -> dict[str, Any]:
        """The arguments of :class:`~featreg_torch.extractor.TorchExtractor`."""
        return {
            "info": self._info,
            "features": self._features(tuple(reading.info for reading in self._readings)),
            "module": module,
            "device": device,
            "dtype": DTYPES[request.dtype],
            "grad": request.grad,
            "measure": self._measure,
        }

    def _measure(self, size: Size) -> tuple[FeatureInfo, ...]:
        return self._features(self._blueprint.measure(self._outlets, size, self._cut.stop_after))

    def _features(self, infos: tuple[FeatureInfo, ...]) -> tuple[FeatureInfo, ...]:
        if self._projection is None:
            return infos
        projection = self._projection
        pairs = zip(infos, self._layers, strict=True)
        return tuple(projected_info(info, projection) if self._projects(layer) else info for info, layer in pairs)

    def _projects(self, layer: Layer) -> bool:
        return self._projection is not None and layer == LAYER
