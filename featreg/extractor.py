"""Request in, checked Extractor out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from featreg.checks import as_size, broken_contract, check_capabilities, checked_info
from featreg.errors import SpecError
from featreg.opened import Extractor
from featreg.plugin import BackendExtractor
from featreg.registry import Registry, default_registry, guarded
from featreg.spec import ExtractionRequest, Layer, ModelInfo, NodeInfo, Preprocess, Size

__all__ = [
    "Extractor",
    "create_extractor",
    "describe",
    "from_module",
    "list_backends",
    "list_models",
    "list_nodes",
    "make_request",
]


def list_backends() -> tuple[str, ...]:
    """The names of the installed backends, sorted. Runs no plugin code and imports no framework."""
    return default_registry().names()


def list_models(backend: str, pattern: str = "*", *, registry: Registry | None = None) -> tuple[str, ...]:
    """The models of a backend whose names match a shell-style pattern (case matters), sorted."""
    import fnmatch

    if not isinstance(pattern, str):
        raise SpecError("a pattern is a string", "as in 'resnet*'", repr(pattern))
    registry = registry or default_registry()
    return tuple(name for name in registry.models(backend) if fnmatch.fnmatchcase(name, pattern))


def list_nodes(
    model: str, input_size: Size | None = None, *, train: bool = False, registry: Registry | None = None
) -> tuple[NodeInfo, ...]:
    """Every native name of a model, in the library's order, with the shape that asking for it as a layer gives.

    A name without a shape cannot be asked for: it gives no single tensor, or does not run by itself. Shapes are those
    at an input size (height, width), the model's own where None. ``train`` gives the names in training mode, where
    they differ. Loads no weights. Raises as :func:`describe` does.
    """
    registry = registry or default_registry()
    backend, name = registry.resolve(model)
    size = None if input_size is None else as_size(input_size)
    return tuple(guarded(f"{backend}:{name}", registry.backend(backend).nodes, name, size, train))


def describe(
    model: str, input_size: Size | None = None, *, registry: Registry | None = None, **fields: Any
) -> ModelInfo:
    """Every level, index and head of a model at an input size (height, width); its own size where None.

    ``fields`` are ``weights``, ``output_stride`` and ``options`` as for :func:`create_extractor`, where they change
    what is described. Loads no weights. Raises UnknownBackendError, UnknownModelError, InputError for a size that the
    model does not take, and CapabilityError for fields with which the backend describes nothing before it is opened.
    """
    registry = registry or default_registry()
    backend, name = registry.resolve(model)
    size = None if input_size is None else as_size(input_size)
    if fields:
        request = _described_request(name, fields)
        check_capabilities(request, registry.spec(backend).capabilities, backend)
        info = guarded(f"{backend}:{name}", registry.backend(backend).info_for, request, size)
    else:
        info = guarded(f"{backend}:{name}", registry.backend(backend).info, name, size)
    checked_info(f"{backend}:{name}", info)
    if size is not None:
        info.input_rule.check(*size)
    return info


def create_extractor(
    model: str | ExtractionRequest,
    layers: Sequence[Layer] | Layer | None = None,
    *,
    registry: Registry | None = None,
    **fields: Any,
) -> Extractor:
    """Open a model by name, ready to extract ``layers``.

    ``fields`` are those of :class:`~featreg.ExtractionRequest`; a request can also be given whole, in place of the
    name. Raises UnknownBackendError, UnknownModelError, LayerError, CapabilityError, WeightsError, DeviceError or
    PluginError.
    """
    registry = registry or default_registry()
    request = make_request(model, layers, fields)
    backend, name = registry.resolve(request.model)
    check_capabilities(request, registry.spec(backend).capabilities, backend)
    request = attrs.evolve(request, model=f"{backend}:{name}")
    opened = guarded(request.model, registry.backend(backend).open, attrs.evolve(request, model=name))
    return _checked(request, opened)


def from_module(
    module: Any,
    layers: Sequence[Layer] | Layer,
    *,
    preprocess: Preprocess | None = None,
    input_size: Size | None = None,
    name: str | None = None,
    registry: Registry | None = None,
    **fields: Any,
) -> Extractor:
    """A module of your own (``torch.nn.Module``, ``mindspore.nn.Cell``) as an extractor of ``layers``.

    Levels, heads and native names are found as for a library's model. ``input_size`` (height, width) is the size that
    the module is made for, 224x224 where None; ``preprocess`` says how images become its input: where None, uint8 is
    scaled to [0, 1] and no more. ``name`` stands for it in messages and stores, its class where None. ``fields`` are
    those of :class:`~featreg.ExtractionRequest`, without ``weights`` and ``output_stride``: the module stays as it is,
    and its own parameters are used. Raises CapabilityError for an object that no backend wraps, and as
    :func:`create_extractor` does.
    """
    registry = registry or default_registry()
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise SpecError("preprocess says how images become the input", "featreg.Preprocess(...)", repr(preprocess))
    backend, name = registry.wrapper(module), name or type(module).__name__
    request = make_request(f"{backend}:{name}", layers, fields)
    for field in ("weights", "output_stride"):
        if getattr(request, field) is not None:
            raise SpecError(f"{field} changes a module, and from_module takes it as it is", "None")
    check_capabilities(request, registry.spec(backend).capabilities, backend)
    size = None if input_size is None else as_size(input_size)
    wrapped = attrs.evolve(request, model=name)
    opened = guarded(request.model, registry.backend(backend).wrap, module, wrapped, preprocess, size)
    return _checked(request, opened)


def _described_request(model: str, fields: Mapping[str, Any]) -> ExtractionRequest:
    known = ("weights", "output_stride", "options")
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise SpecError(f"no such argument: {', '.join(unknown)}", f"some of {', '.join(known)}")
    return ExtractionRequest(model, "features", **fields)  # which layers does not matter


def _checked(request: ExtractionRequest, opened: Any) -> Extractor:
    if not isinstance(opened, BackendExtractor):
        raise broken_contract(request.model, "the backend gives a BackendExtractor", type(opened).__name__)
    try:
        return Extractor(request, opened)
    except BaseException:
        opened.close()
        raise


def make_request(model: str | ExtractionRequest, layers: Any, fields: Mapping[str, Any]) -> ExtractionRequest:
    """The request of :func:`create_extractor`'s arguments; raises SpecError and LayerError."""
    if isinstance(model, ExtractionRequest):
        if layers is not None or fields:
            raise SpecError("a request is given whole", "create_extractor(request)", "a request and further arguments")
        return model
    known = {field.name for field in attrs.fields(ExtractionRequest)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise SpecError(f"no such argument: {', '.join(unknown)}", f"some of {', '.join(sorted(known))}")
    return ExtractionRequest(model, () if layers is None else layers, **fields)
