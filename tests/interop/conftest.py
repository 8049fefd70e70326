"""What the tests of this folder are handed."""

import pytest

from tests.interop.helpers import ROLES


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest) -> str:
    """What snakeMQ does."""
    return str(request.param)
