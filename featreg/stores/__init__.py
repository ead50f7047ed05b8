"""Feature stores: one folder that is a Zarr v3 group, with a manifest, a sample table and receipts."""

from __future__ import annotations

from featreg.stores.reading.array import LayerArray
from featreg.stores.reading.batches import Batch
from featreg.stores.reading.reader import FeatureStore, Summary, open_store
from featreg.stores.reading.views import StoreView

__all__ = ["Batch", "FeatureStore", "LayerArray", "StoreView", "Summary", "open_store"]
