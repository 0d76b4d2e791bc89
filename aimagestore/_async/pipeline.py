"""The commit pipeline: changes queue, and whoever leads commits all that wait in one go."""

from __future__ import annotations

import copy
import math
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CancelScope, Event, Lock, move_on_after
from anyio.lowlevel import checkpoint

from .._core.image import Image
from .._core.mutations import Mutation
from .._engine.protocol import Engine, LockClaim
from ..errors import LockTimeoutError, StoreClosedError
from .threads import Threads


class _Entry:
    """A change in the queue, and the task that waits for it.

    :ivar event: set when the change is settled, or falls to this one to lead; those that queue
        together share it
    """

    __slots__ = ("change", "error", "event", "image", "is_settled", "leads")

    event: Event

    def __init__(self, change: Mutation) -> None:
        self.change = change
        self.leads = False
        self.is_settled = False
        self.image: Image | None = None
        self.error: Exception | None = None

    def settle(self, image: Image | None, error: Exception | None) -> None:
        self.image = image
        # Each waiter raises an error of its own: a shared one would collect all their tracebacks.
        self.error = None if error is None else copy.copy(error)
        self.is_settled = True


class Pipeline:
    """Changes on their way into the engine.

    The first in the queue leads: it waits for its turn (the anyio lock), then for the store's
    lock, and commits whatever is in the queue by then. Who leaves the queue as its leader, because
    it was cancelled or its time is over, hands over to the next.
    """

    def __init__(self, engine: Engine, threads: Threads, lock_timeout: float | None) -> None:
        self._engine = engine
        self._threads = threads
        self._patience = math.inf if lock_timeout is None else lock_timeout
        # Held by the task that uses the engine's lock: a leader or a transaction.
        self._turn = Lock(fast_acquire=True)
        # Guards the queue, which a worker thread empties when it has got the engine's lock.
        self._mutex = threading.Lock()
        self._queue: deque[_Entry] = deque()
        self._claim: LockClaim | None = None
        self._is_closed = False

    async def submit(self, change: Mutation) -> Image | None:
        """Have a change committed, and return the image that it returns.

        Cancelled, the change has happened wholly or will never happen.
        """
        entry = _Entry(change)
        with self._mutex:
            entry.leads = not self._queue
            entry.event = Event() if entry.leads else self._queue[0].event
            self._queue.append(entry)
        if self._patience == math.inf:  # a scope costs as much as the rest of the wait
            await self._settle(entry)
        else:
            with move_on_after(self._patience):
                await self._settle(entry)
        if entry.error is not None:
            raise entry.error
        if not entry.is_settled:
            raise await self._timeout()
        return entry.image

    async def _settle(self, entry: _Entry) -> None:
        """Wait until the change is committed, leading the commit if it falls to this one."""
        try:
            while not entry.leads and not entry.is_settled:
                await entry.event.wait()
            if not entry.is_settled:
                await self._lead()
        except BaseException:
            if not self._withdraw(entry):
                with CancelScope(shield=True):
                    while not entry.is_settled:
                        await entry.event.wait()
            raise

    def _withdraw(self, entry: _Entry) -> bool:
        """Take a change back, unless it is being committed."""
        with self._mutex:
            if entry not in self._queue:
                return False
            self._queue.remove(entry)
            if entry.leads and self._queue:
                self._queue[0].leads = True
                following = Event()
                for other in self._queue:
                    other.event = following
                entry.event.set()
        return True

    async def _lead(self) -> None:
        async with self._turn:
            self._check_open()
            # Others that are ready to run get the chance to queue before the queue is taken.
            await checkpoint()
            batch: list[_Entry] = []
            try:
                if not await self._threads.finish(self._commit_if_free, batch):
                    await self._wait_for_lock()
                    await self._threads.finish(self._commit_queue, batch)
            finally:
                if batch:
                    batch[0].event.set()

    def _commit_if_free(self, batch: list[_Entry]) -> bool:
        if not self._engine.try_lock():
            return False
        self._commit_queue(batch)
        return True

    def _commit_queue(self, batch: list[_Entry]) -> None:
        """Commit all that is queued by now, and release the engine's lock. Blocks."""
        with self._mutex:
            batch.extend(self._queue)
            self._queue.clear()
        try:
            outcomes = self._engine.commit([entry.change for entry in batch])
        except Exception as error:  # noqa: BLE001 (every waiter raises it)
            for entry in batch:
                entry.settle(None, error)
        else:
            for entry, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Exception):
                    entry.settle(None, outcome)
                else:
                    entry.settle(outcome.image, None)
        finally:
            self._engine.unlock()

    async def _wait_for_lock(self) -> None:
        """Wait for the engine's lock; cancelled, this leaves nothing held."""
        self._check_open()
        claim = self._claim = self._engine.claim_lock()
        try:
            is_granted = await self._threads.wait(claim.wait)
        except BaseException:
            if claim.give_up():
                await self._threads.finish(self._engine.unlock)
            raise
        finally:
            self._claim = None
        if not is_granted:
            raise _closed()

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Hold the engine's lock."""
        acquired = False
        with move_on_after(self._patience):
            await self._turn.acquire()
            try:
                self._check_open()
                if not await self._threads.finish(self._engine.try_lock):
                    await self._wait_for_lock()
                acquired = True
            finally:
                if not acquired:
                    self._turn.release()
        if not acquired:
            raise await self._timeout()
        try:
            yield
        finally:
            try:
                await self._threads.finish(self._engine.unlock)
            finally:
                self._turn.release()

    async def _timeout(self) -> LockTimeoutError:
        holder = await self._threads.run(self._engine.describe_holder)
        return LockTimeoutError(
            f"{holder.lock} was not free within {self._patience} s: {holder.who}; "
            "try again, or give the store a longer lock_timeout",
            path=holder.lock,
            holder_pid=holder.process,
            last_writer_pid=holder.last_writer,
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise _closed()

    async def close(self) -> None:
        """Turn away who still waits for the lock, and return when nobody uses the engine."""
        self._is_closed = True
        claim = self._claim
        if claim is not None and claim.give_up():
            await self._threads.finish(self._engine.unlock)
        async with self._turn:
            await self._threads.drain()


def _closed() -> StoreClosedError:
    return StoreClosedError("the store was closed while this call waited for its lock")
