"""What the conformance kit says of the backend: every check of the specification on its own cases."""

from __future__ import annotations

from featreg.conformance import suite

test_conformance = suite("transformers")
