"""A new store for each test, on both engines and every loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aimagestore import ImageStore

from ..support.loops import EVERY_LOOP, NIGHTLY, OPTIONS
from ..support.stores import StoreUnderTest


@pytest.fixture(params=EVERY_LOOP)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Every loop there is."""
    return request.param


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out uvloop on clusters: both engines meet the loop in the same code."""
    if NIGHTLY:
        return
    left_out = []
    for item in items:
        params: dict[str, object] = getattr(getattr(item, "callspec", None), "params", {})
        is_ours = item.path.parent == Path(__file__).parent
        on_uvloop = params.get("anyio_backend") == OPTIONS["uvloop"]
        if is_ours and on_uvloop and params.get("where") == "cluster":
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture
async def store(where: StoreUnderTest) -> AsyncIterator[ImageStore]:
    """A new store, open."""
    async with ImageStore(where.location) as store:
        yield store
