"""featreg: vision feature extractors of any framework, chosen by name, in one format.

Importing featreg imports no framework; ``extract`` and ``open_store`` need the extra ``featreg[data]``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featreg import conformance as conformance
    from featreg import derived as derived
    from featreg import engine as engine
    from featreg import errors as errors
    from featreg import export as export
    from featreg import images as images
    from featreg import plugin as plugin
    from featreg import sources as sources
    from featreg import stores as stores
    from featreg.checkpoints import WeightsReport as WeightsReport
    from featreg.engine import add_layers as add_layers
    from featreg.engine import append as append
    from featreg.engine import extract as extract
    from featreg.engine import merge_stores as merge_stores
    from featreg.engine import repair as repair
    from featreg.engine import work as work
    from featreg.engine.deriving import derive as derive
    from featreg.engine.local import estimate as estimate
    from featreg.errors import FeatregError as FeatregError
    from featreg.export import export_store as export_store
    from featreg.extractor import Extractor as Extractor
    from featreg.extractor import create_extractor as create_extractor
    from featreg.extractor import describe as describe
    from featreg.extractor import from_module as from_module
    from featreg.extractor import list_backends as list_backends
    from featreg.extractor import list_models as list_models
    from featreg.extractor import list_nodes as list_nodes
    from featreg.featureset import FeatureSet as FeatureSet
    from featreg.keymap import map_in_order as map_in_order
    from featreg.pool import Pool as Pool
    from featreg.preprocess import load_images as load_images
    from featreg.recipe import Recipe as Recipe
    from featreg.sources import open_source as open_source
    from featreg.spec import ExtractionRequest as ExtractionRequest
    from featreg.spec import FeatureInfo as FeatureInfo
    from featreg.spec import ModelInfo as ModelInfo
    from featreg.spec import NodeInfo as NodeInfo
    from featreg.spec import Preprocess as Preprocess
    from featreg.stores import FeatureStore as FeatureStore
    from featreg.stores import open_store as open_store

__version__ = "0.1.0"

_HOMES = {
    "ExtractionRequest": "spec",
    "Extractor": "extractor",
    "FeatregError": "errors",
    "FeatureInfo": "spec",
    "FeatureSet": "featureset",
    "FeatureStore": "stores",
    "ModelInfo": "spec",
    "NodeInfo": "spec",
    "Pool": "pool",
    "Preprocess": "spec",
    "Recipe": "recipe",
    "WeightsReport": "checkpoints",
    "add_layers": "engine",
    "append": "engine",
    "create_extractor": "extractor",
    "derive": "engine.deriving",
    "describe": "extractor",
    "estimate": "engine.local",
    "extract": "engine",
    "export_store": "export",
    "from_module": "extractor",
    "list_backends": "extractor",
    "list_models": "extractor",
    "list_nodes": "extractor",
    "load_images": "preprocess",
    "map_in_order": "keymap",
    "merge_stores": "engine",
    "open_source": "sources",
    "open_store": "stores",
    "repair": "engine",
    "work": "engine",
}

_MODULES = frozenset({"conformance", "derived", "engine", "errors", "export", "images", "plugin", "sources", "stores"})
"""What is public beside the names: ``featreg.sources.open_source`` works after ``import featreg`` alone."""

__all__ = [*sorted(_HOMES), "__version__"]  # noqa: PLE0604  (names of _HOMES, loaded on first use)


def __getattr__(name: str) -> Any:
    """Load a public name or module on first use (PEP 562): importing featreg stays cheap."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
