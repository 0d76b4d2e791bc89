"""Stops a thread of the library, so that a test decides what happens meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from typing import Any


class Gate:
    """Stops a thread that calls it, until the test lets it go on.

    :ivar reached: set when a thread has called it
    """

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()

    def __call__(self) -> None:
        """Stop the calling thread, or return at once if the gate is open."""
        self.reached.set()
        assert self._open.wait(20)

    def open(self) -> None:
        """Let this thread go on, and all later ones."""
        self._open.set()


async def close_at(call: Awaitable[object], gate: Gate) -> None:
    """Close a coroutine when a thread that works for it has reached a gate.

    An asyncio event loop that ends without waiting for its tasks closes coroutines like this.
    """
    steps = call.__await__()
    future: Any = steps.send(None)
    while not gate.reached.is_set():
        await asyncio.wait([future], timeout=0.01)
        if future.done():
            future = steps.send(None)
    steps.close()
