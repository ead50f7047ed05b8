"""The torch runtime that featreg's torch backends share: devices, taps, shapes, weights; no models of its own.

This module imports no framework: plugins read :data:`CAPABILITIES` from it when they declare their backends.
"""

CAPABILITIES = ("bfloat16", "cuda", "float16", "grad", "native_array", "native_names", "weights")
"""What every backend on this runtime supports."""
