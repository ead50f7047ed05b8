"""What stands for the source where no sample is read."""

from __future__ import annotations

from featreg.errors import CapabilityError
from featreg.sources import Sample, Source

__all__ = ["Nothing"]


class Nothing(Source):
    """Stands for the source of a store in which nothing is left to read, or in a process that reads no sample."""

    kind = uri = "nothing"

    def read(self, sample: Sample) -> bytes:
        raise CapabilityError("there is nothing to read")
