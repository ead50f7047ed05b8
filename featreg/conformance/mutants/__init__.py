"""Deliberately broken backends, a module for each theme; importing this package registers them all."""

from featreg.conformance.mutants import (  # noqa: F401  (imported for what they register)
    arrays,
    gradients,
    hidden,
    native,
    network,
    packaging,
    plugin,
    requests,
    shapes,
    state,
    synthetic,
    text,
    threads,
    values,
    weights,
)
