"""What several tests of interfaces share."""

from __future__ import annotations

import pytest
from tests.interfaces.painted_head import Head


@pytest.fixture(scope="module")
def head() -> Head:
    return Head()
