"""The one place from which blocking calls are made, in worker threads."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple

from anyio import CancelScope, CapacityLimiter, Event, from_thread, to_thread

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_THREADS = 16
# Of them, those that move big data: each thread's heap keeps the size of some chunks for itself.
_STREAMING = 6


class Threads:
    """Worker threads of the store's own number, so that waiting here takes none of the others'.

    Made within the event loop that will use it.
    """

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(_THREADS)
        self._streaming = CapacityLimiter(_STREAMING)
        self._unlimited = CapacityLimiter(math.inf)
        self._running = 0
        self._idle: Event | None = None

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Make a call. Cancelled before it begins, it is not made; after that it is finished."""
        return await self._run(self._limiter, function, *args)

    async def _run(self, limiter: CapacityLimiter, function: Callable[[*Ts], T], *args: *Ts) -> T:
        with self._counted():
            return await to_thread.run_sync(function, *args, limiter=limiter)
        raise AssertionError("for type checkers")  # pragma: no cover

    async def finish(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Make a call that has to be made, cancelled or not."""
        with self._counted(), CancelScope(shield=True):
            return await to_thread.run_sync(function, *args, limiter=self._unlimited)
        raise AssertionError("for type checkers")  # pragma: no cover

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if not self._running and self._idle is not None:
                self._idle.set()

    async def wait(self, function: Callable[[], T]) -> T:
        """Make a call that waits for something; cancelled, it is left to itself at once."""
        return await to_thread.run_sync(function, limiter=self._unlimited, abandon_on_cancel=True)

    @staticmethod
    def reporter(progress: Callable[[*Ts], object] | None) -> Callable[[*Ts], object]:
        """What a call in a worker thread reports with, which has it said in the event loop."""
        if progress is None:
            return lambda *_: None
        return lambda *figures: from_thread.run_sync(progress, *figures)

    async def drain(self) -> None:
        """Return when no call is running any more."""
        while self._running:
            idle = self._idle = Event()
            await idle.wait()

    def run_in_executor(self, executor: object, function: Callable[[], T]) -> Awaitable[T]:
        """What aiofiles asks of an event loop: with this one it works on every one."""
        return self._run(self._streaming, function)
