"""Waiting for changes, by whomever they are made."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Self

from anyio import CancelScope, Lock, move_on_after, sleep_forever, wait_readable

from .._core.events import ChangeEvent
from .._engine.protocol import Watch
from ..errors import StoreClosedError
from .threads import Threads


class Changes(AsyncIterator[ChangeEvent]):
    """What changes in a store, from the moment :meth:`ImageStore.watch` was entered.

    Each change comes once, and those of one image in their order. What this store commits comes
    commit by commit; of what others commit before it is seen here, only what came of it. Who takes
    the changes late finds no more than 10,000 waiting: beyond that too only what came of them.

    Cancelled, the next change is still the next. Several tasks may take changes; each gets others.

    :raises StoreClosedError: when the store was closed
    """

    def __init__(self, watch: Watch, threads: Threads) -> None:
        self._watch = watch
        self._threads = threads
        self._turn = Lock()
        self._pending: deque[ChangeEvent] = deque()
        # What the task that waits is woken by when the watch is over.
        self._waiting: CancelScope | None = None
        self._is_closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChangeEvent:
        async with self._turn:
            while not self._pending:
                if self._is_closed:
                    raise StoreClosedError("the watch is over, or its store closed")
                await self._threads.run(self._look)
                if not self._pending:
                    await self._wait()
            return self._pending.popleft()

    def _look(self) -> None:
        # Not returned: a cancelled caller would lose them.
        self._pending.extend(self._watch.changes())

    async def _wait(self) -> None:
        if self._is_closed:
            return
        try:
            with move_on_after(self._watch.interval) as self._waiting:
                descriptor = self._watch.descriptor
                if descriptor is None:
                    await sleep_forever()
                else:
                    await wait_readable(descriptor)
                    while not self._watch.is_due():
                        await wait_readable(descriptor)
        finally:
            self._waiting = None

    def _end(self) -> None:
        """Raise from now on, in the task that waits as well."""
        self._is_closed = True
        if self._waiting is not None:
            self._waiting.cancel()
