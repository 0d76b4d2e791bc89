"""Blocking steps on an open layout, run in worker threads."""

from __future__ import annotations

from time import monotonic
from typing import TypeVar

from .._async.threads import Threads
from .._engine.protocol import Steps

T = TypeVar("T")

_SECONDS = 0.02


async def run_steps(steps: Steps[T], threads: Threads) -> T:
    """Run all steps and return their result.

    Interrupted, this waits for the step that is under way: the layout is closed next.
    """
    found: list[T] = []

    def advance() -> None:
        end = monotonic() + _SECONDS
        while monotonic() < end:
            try:
                next(steps)
            except StopIteration as stop:
                found.append(stop.value)
                return

    while not found:
        await threads.run(advance)
    return found[0]
