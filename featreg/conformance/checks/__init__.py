"""The checks, a module for each theme; importing this package registers them all."""

from featreg.conformance.checks import (  # noqa: F401  (imported for what they register)
    arrays,
    gradients,
    layout,
    lifecycle,
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
