"""Looking a store through that may be too damaged to be entered."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from .._core.report import Report
from .._directory.check import Check
from .threads import Threads

T = TypeVar("T")


async def check(
    path: str | os.PathLike[str],
    *,
    verify: bool = True,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Look a store through for damage and for what is left over; change nothing.

    Works on stores that cannot be entered, on read-only ones, and beside writers: what looks
    damaged is looked at again while no writer can be at it. Cancelled, it stops at once.

    :param path: the directory that holds images.json
    :param verify: read every item, and compare it with its recorded digest
    :param progress: called with the bytes done and the bytes in all
    :raises FileNotFoundError: when there is no such directory
    """
    examination = Check(os.fspath(path), verify=verify)
    async for done, total in _Walk(examination.steps()):
        if progress is not None:
            progress(done, total)
    return examination.report


class _Walk(Generic[T]):
    """Blocking steps, taken in worker threads; left alone at once when cancelled."""

    def __init__(self, steps: Iterator[T]) -> None:
        self._threads = Threads()
        self._steps = steps
        # Held while a step is taken: a step that was left to itself ends the walk.
        self._mutex = threading.Lock()
        self._is_abandoned = False

    def __aiter__(self) -> _Walk[T]:
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
