"""Feature stores: one folder that is a Zarr v3 group, with a manifest, a sample table and receipts."""

from __future__ import annotations

from featreg.stores.array import LayerArray
from featreg.stores.reader import FeatureStore, Summary, open_store

__all__ = ["FeatureStore", "LayerArray", "Summary", "open_store"]
