"""Deliberately broken backends, a module for each theme; importing this package registers them all."""

from featreg.conformance.mutants import (  # noqa: F401  (imported for what they register)
    arrays,
    callers,
    checkpoints,
    gradients,
    hidden,
    native,
    network,
    packaging,
    plugin,
    pooling,
    requests,
    sequence,
    shapes,
    state,
    synthetic,
    tensors,
    text,
    threads,
    values,
    weights,
)
