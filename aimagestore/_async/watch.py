"""The changes of a store as an async iterator."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Self

from anyio import CancelScope, Event, move_on_after

from .._core.events import ChangeEvent
from .._engine.protocol import Feed
from ..errors import StoreClosedError

if TYPE_CHECKING:
    from .core import StoreCore


class Watch:
    """The changes of a store since its :meth:`ImageStore.watch` block began: an async iterator.

    Each change comes once, and the changes of one image come in order. The commits of this store
    come one by one. If others commit several times between two polls, only the result comes.

    If cancelled, no change is lost: the next call returns it. If several tasks iterate, each change
    goes to one of them.

    :raises StoreClosedError: after the pending changes, when the block has ended or the store was
        closed
    :raises WatchExpiredError: when more than 10,000 changes were pending: start another watch, then
        read all images
    :raises StoreCorruptError: when images.json is damaged
    """

    def __init__(self, core: StoreCore, feed: Feed) -> None:
        self._core = core
        self._feed = feed
        self._pending: deque[ChangeEvent] = deque()
        # Held by a thread that moves changes from the feed to the pending ones. A cancelled task
        # leaves its thread behind: the next poll waits for that thread, and so sees its changes.
        self._mutex = threading.Lock()
        # While a task polls: set at its end. The other tasks wait for it.
        self._polling: Event | None = None
        self._reading: CancelScope | None = None
        self._waiting: CancelScope | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return f"<Watch of {self._core.location.name!r}: {state}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChangeEvent:
        """Wait for the next change, and return it."""
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
        # The changes are not returned, because a cancelled task would lose them.
        with self._mutex:
            self._pending.extend(self._feed.poll())

    async def _wait(self) -> None:
        if self._is_closed:
            return
        self._core.threads.hold(self)  # keeps a store that is closing from closing the descriptor
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
            self._core.threads.release(self)

    def _end(self) -> None:
        """Have iteration end after the pending changes, also in a task that waits."""
        self._is_closed = True
        for scope in (self._reading, self._waiting):
            if scope is not None:
                scope.cancel()

    async def _aclose(self) -> None:
        """End the iteration, and return when no task waits for the feed's descriptor any more."""
        self._end()
        if self._waiting is not None and self._polling is not None:
            await self._core.threads.loop.wait_through(self._polling)
