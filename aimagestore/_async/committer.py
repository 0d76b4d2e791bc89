"""The group committer: mutations queue, and one commit makes all that are queued."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec
from anyio import Event, move_on_after

from .._core.image import Image
from .._core.mutations import Mutation
from .._engine.failure import copied
from .._engine.lock import AnyGrant, AnyLine, Request
from .._engine.protocol import Outcome, Writer
from ..errors import LockTimeoutError, StoreClosedError
from .threads import Threads


class _Batch:
    """The mutations that one commit makes.

    :ivar decided: set in the event loop when the outcome of each is known
    :ivar pending: the mutations, in order
    """

    __slots__ = ("decided", "pending")

    def __init__(self) -> None:
        self.decided = Event()
        self.pending: dict[Entry, None] = {}


class Entry(msgspec.Struct, eq=False):
    """One mutation of a batch.

    :ivar image: the image that it returns, once it was committed
    :ivar error: why it failed
    :ivar is_decided: whether it was committed or has failed
    """

    mutation: Mutation
    batch: _Batch
    image: Image | None = None
    error: BaseException | None = None
    is_decided: bool = False

    def result(self) -> Image | None:
        """Return the image that the mutation returns, or raise its error."""
        if self.error is not None:
            raise self.error
        return self.image

    def decide(self, outcome: Outcome | BaseException) -> None:
        """Note its outcome."""
        if isinstance(outcome, BaseException):
            self.error = copied(outcome)
        else:
            self.image = outcome.image
        self.is_decided = True


class GroupCommitter:
    """Commits mutations in batches, in worker threads that it owns.

    A task only queues a mutation and waits for the outcome. At every moment the mutation belongs
    either to the open batch, from which its task can withdraw it, or to the commit that has taken
    the batch. The batch changes hands under the mutex. So if the task is interrupted, the mutation
    is never committed, or its commit completes without the task.

    At most one commit, or one request for the lock, is under way at a time.

    :param lock_timeout: seconds that a mutation may be pending; 0 tries the lock once
    :param timeout_error: makes the error that says that the lock was not free in time
    """

    def __init__(
        self,
        writer: Writer,
        line: AnyLine,
        threads: Threads,
        lock_timeout: float | None,
        timeout_error: Callable[[], Awaitable[LockTimeoutError]],
    ) -> None:
        self._writer = writer
        self._line = line
        self._threads = threads
        self._lock_timeout = lock_timeout
        self._timeout_error = timeout_error
        # Guards everything below; held for a few instructions only.
        self._mutex = threading.Lock()
        self._open_batch: _Batch | None = None
        self._request: Request[object] | None = None
        # Acquired by the thread that begins the activity; ``None`` while there is none.
        self._activity: threading.Lock | None = None
        self._is_closed = False

    async def submit(self, mutation: Mutation) -> Image | None:
        """Have a mutation committed, and return the image that it returns, if any.

        If interrupted, the mutation was committed or never will be.

        :raises LockTimeoutError: when the lock was not free in time
        :raises StoreClosedError: when the committer was closed before
        """
        entry = self._queue(mutation)
        try:
            if self._lock_timeout:
                with move_on_after(self._lock_timeout):
                    await entry.batch.decided.wait()
            else:  # a cancel scope would take as long as the rest of the wait
                await entry.batch.decided.wait()
        except BaseException:
            if not self._withdraw(entry):
                await self._threads.loop.wait_through(entry.batch.decided)
            raise
        if not entry.is_decided and not self._withdraw(entry):
            await self._threads.loop.wait_through(entry.batch.decided)
        if not entry.is_decided:
            raise await self._timeout_error()
        return entry.result()

    def _queue(self, mutation: Mutation) -> Entry:
        begun: threading.Lock | None = None
        try:
            with self._mutex:
                if self._is_closed:
                    raise _closed()
                batch = self._open_batch
                if batch is None:
                    batch = self._open_batch = _Batch()
                entry = Entry(mutation, batch)
                batch.pending[entry] = None
                if self._activity is None:
                    begun = self._activity = threading.Lock()
            if begun is not None:
                self._threads.hold(begun)
                # By way of the event loop, so that tasks which are ready to run join the batch.
                self._threads.loop.call_soon(partial(self._begin, begun))
        except KeyboardInterrupt:  # at any instruction: others may have joined the batch
            if begun is not None:
                self._begin(begun)
            raise
        return entry

    def _begin(self, activity: threading.Lock) -> None:
        """Have a thread begin an activity, unless it is over by now."""
        try:
            with self._mutex:
                if self._activity is not activity:
                    return
                self._threads.hold(activity)
            self._threads.spawn(partial(self._commit_first, activity))
        except KeyboardInterrupt:
            self._threads.spawn(partial(self._commit_first, activity))
            raise

    def _commit_first(self, activity: threading.Lock) -> None:
        if activity.acquire(blocking=False):
            self._commit()

    def _withdraw(self, entry: Entry) -> bool:
        """Remove a mutation from the open batch; return ``False`` if a commit has taken it."""
        with self._mutex:
            batch = self._open_batch
            if batch is None or entry not in batch.pending:
                return False
            del batch.pending[entry]
            if batch.pending:
                return True
            self._open_batch = None
            request = self._request
        if request is not None and request.cancel():
            self._deactivate_or_commit()
        return True

    def _commit(self) -> None:
        """Commit the open batch if the lock is free, else request the lock. In a worker thread."""
        # If the lock is tried once only, the result is that of the mutations queued before.
        tried = self._take_open_batch() if self._lock_timeout == 0 else None
        try:
            grant = self._line.try_acquire()
        except BaseException as error:  # noqa: BLE001 (whoever waits raises it)
            self._decide(tried or self._take_open_batch(), error)
            return
        if grant is not None:
            self._commit_with(grant, tried or self._take_open_batch())
        elif self._lock_timeout == 0:
            self._decide(tried, None)
        else:
            try:
                with self._mutex:
                    is_closed = self._is_closed
                    is_wanted = self._open_batch is not None and not is_closed
                    if is_wanted:
                        self._request = self._line.request(self._granted)
            except RuntimeError as error:  # the thread that waits for the lock cannot be started
                self._fail_open_batch(error)
                return
            if is_closed:
                self._fail_open_batch(_closed())
            elif not is_wanted:
                self._deactivate_or_commit()  # all were withdrawn, but more may be queued since

    def _granted(self) -> None:
        """Continue with the decided request. In the line's thread, which must not commit."""
        self._threads.spawn(self._take_grant)

    def _take_grant(self) -> None:
        with self._mutex:
            request, self._request = self._request, None
        assert request is not None, "a grant was requested"
        try:
            grant = request.take()
        except BaseException as error:  # noqa: BLE001 (whoever waits raises it)
            self._fail_open_batch(error)
        else:
            self._commit_with(grant, self._take_open_batch())

    def _commit_with(self, grant: AnyGrant, batch: _Batch | None) -> None:
        """Commit a batch, and release the lock."""
        outcomes: list[Outcome] | BaseException = []
        try:
            if batch is not None:
                outcomes = self._writer.commit(grant, [e.mutation for e in batch.pending])
        except BaseException as error:  # noqa: BLE001 (whoever waits raises it)
            outcomes = error
        try:
            grant.release()
        finally:
            self._decide(batch, outcomes)

    def _fail_open_batch(self, error: BaseException) -> None:
        self._decide(self._take_open_batch(), error)

    def _decide(
        self, batch: _Batch | None, outcomes: Sequence[Outcome] | BaseException | None
    ) -> None:
        """End a batch with its outcomes, or undecided with ``None``: the lock was not free."""
        if batch is not None and outcomes is not None:
            for number, entry in enumerate(batch.pending):
                entry.decide(outcomes if isinstance(outcomes, BaseException) else outcomes[number])
        try:
            self._deactivate_or_commit()
        finally:
            # At the very end: from here on, the loop and this thread want the interpreter lock.
            if batch is not None:
                self._threads.loop.post(batch.decided.set)

    def _take_open_batch(self) -> _Batch | None:
        with self._mutex:
            batch, self._open_batch = self._open_batch, None
        return batch

    def _deactivate_or_commit(self) -> None:
        """End the activity if nothing is queued, else begin the next commit."""
        with self._mutex:
            self._request = None
            activity = self._activity
            is_over = self._open_batch is None
            if is_over:
                self._activity = None
        if is_over:
            self._threads.release(activity)
        else:
            self._threads.spawn(self._commit)

    def close(self) -> None:
        """Refuse mutations from now on, and fail those that wait for the lock.

        A commit under way completes.
        """
        with self._mutex:
            self._is_closed = True
            request = self._request
        # If the request is granted already, the open batch is committed with the grant.
        if request is not None and request.cancel():
            self._fail_open_batch(_closed())


def _closed() -> StoreClosedError:
    return StoreClosedError("the store was closed before this change was made")
