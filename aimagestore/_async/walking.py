"""Blocking steps, one after another, with the event loop free in between."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Generic, Self, TypeVar

from .threads import Threads

T = TypeVar("T")


class Walk(AsyncIterator[T], Generic[T]):
    """Blocking steps, taken in worker threads; left alone at once when cancelled."""

    def __init__(self, steps: Iterator[T], threads: Threads) -> None:
        self._threads = threads
        self._steps = steps
        # Held while a step is taken: a step that was left to itself ends the walk.
        self._mutex = threading.Lock()
        self._is_abandoned = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            step = await self._threads.wait(self._step)
        except BaseException:
            self._is_abandoned = True
            await self._threads.finish(self._end)
            raise
        if step is None:
            raise StopAsyncIteration
        return step

    def _step(self) -> T | None:
        with self._mutex:
            try:
                return next(self._steps, None)
            finally:
                if self._is_abandoned:
                    self._close()

    def _end(self) -> None:
        if self._mutex.acquire(blocking=False):
            try:
                self._close()
            finally:
                self._mutex.release()

    def _close(self) -> None:
        close = getattr(self._steps, "close", None)
        if close is not None:
            close()
