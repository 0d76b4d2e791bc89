"""Tests of cancellation run on every loop."""

from __future__ import annotations

from typing import Any

import pytest

from ..support.loops import EVERY_LOOP


@pytest.fixture(params=EVERY_LOOP)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Each event loop: asyncio, uvloop and trio."""
    return request.param
