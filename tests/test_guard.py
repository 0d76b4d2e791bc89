"""The guard itself: a test that blocks the event loop fails, on every backend."""

from __future__ import annotations

import anyio
import blockbuster
import pytest

from aimagestore import ImageStore


async def test_blocking_the_event_loop_is_noticed(store: ImageStore) -> None:
    engine = store._engine
    for call in (engine.refresh, engine.stage, engine.try_lock, engine.touch):
        with pytest.raises(blockbuster.BlockingError):
            call()


async def test_the_guard_leaves_worker_threads_alone(store: ImageStore) -> None:
    await anyio.to_thread.run_sync(store._engine.refresh)
