"""The changes of a store as an async iterator."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Self

from anyio import CancelScope, Event, move_on_after

from .._core.events import ChangeEvent
from .._engine.protocol import Feed
from ..errors import StoreClosedError
from .loop import wait_through

if TYPE_CHECKING:
    from .core import StoreCore


class Watch(AsyncIterator[ChangeEvent]):
    """The changes of a store, from the moment :meth:`ImageStore.watch` was entered.

    Each change comes once, and the changes of one image in their order. The commits of this store
    come one by one; of what others commit between two polls only the result comes.

    Cancelled, the next change is still the next. Several tasks may iterate; each gets others.

    :raises StoreClosedError: when the block has ended or the store was closed
    :raises WatchExpiredError: when more than 10,000 changes were pending: read the store anew
    """

    def __init__(self, core: StoreCore, feed: Feed) -> None:
        self._core = core
        self._feed = feed
        self._pending: deque[ChangeEvent] = deque()
        # Held while changes move here. A task that was cancelled leaves its thread in a poll: the
        # next poll waits for what that one has taken from the feed, which would be missed else.
        self._mutex = threading.Lock()
        # The task that polls; the others wait for it. An event each time, so that no task owns it.
        self._polling: Event | None = None
        self._reading: CancelScope | None = None
        self._waiting: CancelScope | None = None
        self._is_closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChangeEvent:
        while not self._pending:
            if self._is_closed:
                raise StoreClosedError("the watch has ended, or its store was closed")
            self._core.check_here()
            if self._polling is not None:
                await self._polling.wait()
                continue
            polling = self._polling = Event()
            try:
                with CancelScope() as self._reading:
                    await self._core.read_whole(
                        lambda: self._core.threads.run_abandonable(self._poll), waits_for_ever=True
                    )
                if not self._pending:
                    await self._wait()
            finally:
                self._polling = self._reading = None
                polling.set()
        return self._pending.popleft()

    def _poll(self) -> None:
        # Kept here, not returned: a cancelled caller would lose them.
        with self._mutex:
            self._pending.extend(self._feed.poll())

    async def _wait(self) -> None:
        if self._is_closed:
            return
        self._core.threads.hold()  # the store closes the descriptor when nobody waits for it
        try:
            with move_on_after(self._feed.interval) as self._waiting:
                descriptor = self._feed.descriptor
                if descriptor is None:
                    await Event().wait()
                else:
                    from anyio import wait_readable  # noqa: PLC0415 (anyio imports ssl for it)

                    await wait_readable(descriptor)
                    while not self._feed.is_due():
                        await wait_readable(descriptor)
        finally:
            self._waiting = None
            self._core.threads.release()

    def end(self) -> None:
        """Raise from now on, also in the task that waits. In the event loop."""
        self._is_closed = True
        for scope in (self._reading, self._waiting):
            if scope is not None:
                scope.cancel()

    async def aclose(self) -> None:
        """End it, and return when no task waits any more for the feed's descriptor."""
        self.end()
        if self._waiting is not None and self._polling is not None:
            await wait_through(self._polling)
