"""A new store for each test, on both engines."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aimagestore import ImageStore

from ..homes import Home


@pytest.fixture
async def store(home: Home) -> AsyncIterator[ImageStore]:
    """A new store, open."""
    async with ImageStore(home()) as store:
        yield store
