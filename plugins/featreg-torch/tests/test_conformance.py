"""What the conformance kit says of a backend that wraps modules and has no models by name."""

import pytest

from featreg.conformance import make_plan
from featreg.plugin import errors


def test_the_kit_says_that_it_opens_models_by_name():
    with pytest.raises(errors.CapabilityError, match="'torch' has no models by name") as caught:
        make_plan("torch")
    assert "backends that are built on it" in caught.value.remedy
