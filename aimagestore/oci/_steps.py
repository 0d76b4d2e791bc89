"""Runs blocking steps on an open layout in worker threads."""

from __future__ import annotations

from time import monotonic
from typing import TypeVar

from .._async.threads import Threads
from .._engine.protocol import Steps

T = TypeVar("T")

# How long one call in a thread runs steps.
_SECONDS = 0.02


async def run_steps(steps: Steps[T], threads: Threads) -> T:
    """Run all steps and return their result.

    A cancelled call waits for the step that is under way, because the layout is closed next.
    """
    result: list[T] = []

    def advance() -> None:
        end = monotonic() + _SECONDS
        while monotonic() < end:
            try:
                next(steps)
            except StopIteration as stop:
                result.append(stop.value)
                return

    while not result:
        await threads.run(advance)
    return result[0]
