"""Extraction on a Ray cluster, through Ray Data: images are decoded by tasks, features computed by a pool of workers.

Both scale apart, and Ray Data's back-pressure bounds what lies between them. Tasks, rows, batches and the commit are
those of the other engine, so that the store is the same; a run that stops is gone on with by either of them.
"""

from __future__ import annotations

from featreg.engine.ray.running import complete, ready
from featreg.engine.ray.udf import extractor_udf

__all__ = ["complete", "extractor_udf", "ready"]
