"""Stops a thread of the library at a place, so that a test decides what happens meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from typing import Any


class Gate:
    """Stops a thread at a place, until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()

    def __call__(self) -> None:
        """Stop here. In the thread."""
        self.reached.set()
        assert self._open.wait(20)

    def open(self) -> None:
        """Let the thread go on."""
        self._open.set()


async def close_at(call: Awaitable[object], gate: Gate) -> None:
    """Close a coroutine when a thread that works for it is at a gate.

    So does an event loop of asyncio that ends without waiting for its tasks.
    """
    steps = call.__await__()
    future: Any = steps.send(None)
    while not gate.reached.is_set():
        await asyncio.wait([future], timeout=0.01)
        if future.done():
            future = steps.send(None)
    steps.close()
