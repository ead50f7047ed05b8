"""Mutants that give something else than what was asked for, or refuse what they declare."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import attrs

from featreg.arrays import Array
from featreg.conformance.mutants.base import Double, DoubleExtractor, declares, mutant
from featreg.errors import CapabilityError, FeatregError
from featreg.plugin import BackendExtractor
from featreg.spec import ExtractionRequest, Layer, ModelInfo, Size


@mutant("order.keys")
class ForwardOrder(DoubleExtractor):
    """Gives the layers in the order in which the network makes them."""

    def forward(self, batch: Array) -> Sequence[Array]:
        names = [feature.name for feature in self.info.features]
        pairs = list(zip(self.features, self.inner.forward(batch), strict=True))
        pairs.sort(key=lambda pair: names.index(pair[0].name) if pair[0].name in names else -1)
        return [array for _, array in pairs]


def _resolves(info: ModelInfo, layer: Layer) -> bool:
    try:
        info.resolve(layer)
    except FeatregError:
        return False
    return True


class _Forgiving(Double):
    """Opens another request than the one it was given where a layer is unknown."""

    @abstractmethod
    def layers(self, info: ModelInfo, asked: Sequence[Layer]) -> list[Layer]:
        """The layers that are opened for those that were asked for."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        layers = list(dict.fromkeys(self.layers(self.inner.info(request.model), request.layers)))
        inner = self.inner.open(attrs.evolve(request, layers=layers, pool=None))
        opened = DoubleExtractor(inner, request)
        opened.features = (*opened.features, *opened.features[:1] * (len(request.layers) - len(layers)))
        return opened


@mutant("requests.unknown_layer")
class DropsUnknown(_Forgiving):
    """Leaves unknown layers out."""

    def layers(self, info: ModelInfo, asked: Sequence[Layer]) -> list[Layer]:
        return [layer for layer in asked if _resolves(info, layer)] or [info.keys[0]]


@mutant("requests.unknown_layer")
class GuessesLayer(_Forgiving):
    """Takes an unknown layer for the first one."""

    def layers(self, info: ModelInfo, asked: Sequence[Layer]) -> list[Layer]:
        return [layer if _resolves(info, layer) else info.keys[0] for layer in asked]


@mutant("order.refused")
class ClampsIndices(_Forgiving):
    """Takes an index beyond the last for the last."""

    def layers(self, info: ModelInfo, asked: Sequence[Layer]) -> list[Layer]:
        return [info.keys[0] if isinstance(layer, int) and not _resolves(info, layer) else layer for layer in asked]


@mutant("requests.unknown_model")
class GuessesModel(Double):
    """Has every model: the first of its list stands for those that it does not know."""

    def has(self, model: str) -> bool:
        return True

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        return self.inner.info(model if self.inner.has(model) else self.inner.models()[0], input_size)


@mutant("requests.unknown_option")
class IgnoresOptions(Double):
    """Opens the model whatever the options say."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        return self.inner.open(attrs.evolve(request, options={}))


@mutant("requests.unknown_device")
class FallsBackToCpu(Double):
    """Runs on the CPU where the device is not there."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        return self.inner.open(attrs.evolve(request, device="cpu"))


@mutant("capabilities.undeclared", when=lambda info: "text" not in info.capabilities)
class GuessesText(Double):
    """Gives an image's features for the text head that it does not have."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        if request.layers != ("text_embedding",):
            return self.inner.open(request)
        vectors = (info.head for info in self.inner.info(request.model).features if info.kind == "vector")
        layer = next(filter(None, vectors), "pooled")
        opened = DoubleExtractor(self.inner.open(attrs.evolve(request, layers=(layer,))), request)
        opened.features = tuple(attrs.evolve(info, head="text_embedding") for info in opened.features)
        return opened


@mutant("capabilities.consistent")
class DeclaresMore(Double):
    """Declares a capability for a model that the backend does not have."""

    def info(self, model: str, input_size: Size | None = None) -> ModelInfo:
        info = self.inner.info(model, input_size)
        return attrs.evolve(info, capabilities=(*info.capabilities, *self._missing(info)))

    @staticmethod
    def _missing(info: ModelInfo) -> tuple[str, ...]:
        return tuple(name for name in ("text", "float16", "output_stride") if name not in info.capabilities)


@mutant("capabilities.native_names", when=declares("native_names"))
class NoNativeNames(Double):
    """Declares native names and takes levels and heads alone."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        keys = self.inner.info(request.model).keys
        for layer in request.layers:
            if isinstance(layer, str) and layer not in keys:
                raise CapabilityError(f"no native name {layer!r}")
        return self.inner.open(request)


@mutant("arrays.native", when=declares("native_array"))
class NoNativeArrays(Double):
    """Declares native arrays and refuses them."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        if request.array == "native":
            raise CapabilityError("no native arrays")
        return self.inner.open(request)


@mutant("arrays.native", when=declares("native_array"))
class OtherNativePath(DoubleExtractor):
    """Computes native arrays in another way than NumPy's."""

    def forward(self, batch: Array) -> Sequence[Array]:
        outputs = self.inner.forward(batch)
        return [array * 1.01 for array in outputs] if self.request.array == "native" else outputs


@mutant("capabilities.output_stride", when=declares("output_stride"))
class IgnoresStride(Double):
    """Opens the plain network where a dilated one is asked for."""

    def open(self, request: ExtractionRequest) -> BackendExtractor:
        return self.inner.open(attrs.evolve(request, output_stride=None))


class _IgnoresDtype(Double):
    def open(self, request: ExtractionRequest) -> BackendExtractor:
        return self.inner.open(attrs.evolve(request, dtype="float32"))


@mutant("arrays.float16", when=declares("float16"))
class IgnoresFloat16(_IgnoresDtype):
    """Computes in float32 where float16 is asked for."""


@mutant("arrays.bfloat16", when=declares("bfloat16"))
class OverflowsBfloat16(DoubleExtractor):
    """Is far from the truth in bfloat16."""

    def forward(self, batch: Array) -> Sequence[Array]:
        outputs = self.inner.forward(batch)
        return [array * 3 for array in outputs] if self.request.dtype == "bfloat16" else outputs
