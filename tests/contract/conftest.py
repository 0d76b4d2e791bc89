"""A new store for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aimagestore import ImageStore

from ..support.stores import StoreUnderTest


@pytest.fixture
async def store(where: StoreUnderTest) -> AsyncIterator[ImageStore]:
    """A new store, open."""
    async with ImageStore(where.location) as store:
        yield store
