"""Measures how long an event loop lets its tasks wait."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

_BEAT = 0.001


class Heartbeat:
    """The largest delay of a task that wants to run every millisecond.

    :ivar largest_stall: in seconds
    """

    largest_stall = 0.0

    async def beat(self) -> None:
        """Beat until cancelled."""
        while True:
            before = time.perf_counter()
            await anyio.sleep(_BEAT)
            stall = time.perf_counter() - before - _BEAT
            self.largest_stall = max(self.largest_stall, stall)


@asynccontextmanager
async def heartbeat() -> AsyncIterator[Heartbeat]:
    """Watch the event loop while the block runs."""
    heart = Heartbeat()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(heart.beat)
        await anyio.sleep(5 * _BEAT)
        yield heart
        await anyio.sleep(2 * _BEAT)
        tasks.cancel_scope.cancel()
