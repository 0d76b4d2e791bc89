"""The line for a store's lock: who waits for it, and who holds it.

A *request* stands in the line; a *grant* is the lock, held. A grant has one owner at every
moment, and changes hands in one step under the line's mutex:

- when the kernel or the server gives the lock, the first request in line gets the grant; if no
  request is left, the line releases it;
- the request owns it until its maker takes it (``take``);
- whoever cancels a request learns in the same step whether it has a grant to be released.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, TypeVarTuple

from ..errors import StoreClosedError
from .failure import copied

H = TypeVar("H")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Holder(NamedTuple):
    """Who holds a store's lock, as far as that is known.

    :ivar lock: the name of the lock, for messages
    :ivar description: the holder and the last writer, as a phrase for messages
    :ivar process: the ID of the process that holds it, if it runs on this machine
    :ivar last_writer: the ID of the process that wrote last, if it runs on this machine
    """

    lock: str
    description: str
    process: int | None = None
    last_writer: int | None = None


class LockPrimitive(Protocol[H]):
    """The lock itself, as the kernel or a server has it. A *held* value stands for one hold."""

    def try_acquire(self) -> H | None:
        """Acquire the lock if it is free; ``None`` if it is not. Never waits for its holder."""
        ...

    def acquire(self) -> H | None:
        """Wait for the lock; ``None`` when :meth:`interrupt` ended the wait."""
        ...

    def interrupt(self) -> None:
        """End the wait in :meth:`acquire` if that can be done. Does not block."""
        ...

    def release(self, held: H) -> None:
        """Release one hold."""
        ...

    def describe_holder(self) -> Holder:
        """Say who holds the lock."""
        ...


class Grant(Generic[H]):
    """The lock, held. Release it once; further releases do nothing.

    :ivar held: what the primitive returned for this hold
    """

    def __init__(self, line: LockLine[H], held: H) -> None:
        self._line = line
        self.held = held
        self._is_released = False
        # Held while something is done under the lock: a task that is closed cannot wait for its
        # thread, so the release may come while that is still at work.
        self._uses = threading.RLock()

    def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call a function under the lock, which is not released before its end.

        :raises StoreClosedError: when the lock was released before this call
        """
        with self._uses:
            if self._is_released:
                raise StoreClosedError("the lock was released before this call began")
            return function(*args)

    def release(self) -> None:
        """Release the lock. Idempotent.

        Blocks until no call of :meth:`run` is left, and for a system call or a round trip.
        """
        with self._uses:
            self._line._release(self)


class Request(Generic[H]):
    """A place in the line."""

    def __init__(self, line: LockLine[H], notify: Callable[[], object]) -> None:
        self._line = line
        self._notify = notify
        self._grant: Grant[H] | None = None
        self._error: BaseException | None = None

    def cancel(self) -> bool:
        """Leave the line. Does not block.

        :returns: ``False`` when the request was decided already: :meth:`take` then returns the
            grant, which the caller must release, or raises
        """
        return self._line._cancel(self)

    def take(self) -> Grant[H]:
        """Return the grant, once the request is decided. Called once.

        :raises StoreClosedError: when the request was cancelled
        :raises BaseException: what kept the lock from being acquired
        """
        if self._error is not None:
            raise self._error
        grant, self._grant = self._grant, None
        assert grant is not None, "the request was granted, and is taken once"
        return grant


class LockLine(Generic[H]):
    """All requests of this process for one lock, first come first served.

    At most one thread waits in the kernel or at the server, however many requests there are or were
    cancelled. It is a daemon thread, because a wait in the kernel cannot always be interrupted. If
    all requests are cancelled meanwhile, it releases the lock as soon as it gets it.

    :param name: the name of that thread
    :param when_unused: called in any thread when no store uses the line any more and no thread
        waits; :attr:`is_unused` tells whether that is still so
    """

    def __init__(
        self,
        primitive: LockPrimitive[H],
        name: str,
        when_unused: Callable[[], object] = lambda: None,
    ) -> None:
        self.primitive = primitive
        self._when_unused = when_unused
        self._name = name
        # Guards the line and who owns a grant. Never held during a system call.
        self._mutex = threading.Lock()
        self._line: deque[Request[H]] = deque()
        self._holder: Grant[H] | None = None
        self._is_trying = False
        self._has_waiter = False
        self._users = 0

    def join(self) -> None:
        """Count one more store that uses the line."""
        with self._mutex:
            self._users += 1

    def leave(self) -> None:
        """Count one store less. None of its requests is in the line."""
        with self._mutex:
            self._users -= 1
            is_unused = not self._users and not self._has_waiter
        if is_unused:
            self._when_unused()

    @property
    def is_unused(self) -> bool:
        """Whether no store uses the line, and no thread waits for the lock."""
        with self._mutex:
            return not self._users and not self._has_waiter

    def try_acquire(self) -> Grant[H] | None:
        """Acquire the lock if it is free and nobody waits in line; ``None`` otherwise.

        Blocks for a system call or a round trip.
        """
        with self._mutex:
            if self._holder is not None or self._line or self._is_trying or self._has_waiter:
                return None
            self._is_trying = True
        grant: Grant[H] | None = None
        try:
            held = self.primitive.try_acquire()
            grant = None if held is None else Grant(self, held)
            return grant
        finally:
            with self._mutex:
                self._is_trying = False
                self._holder = grant
                failed = self._ensure_waiter()
            _notify_all(failed)

    def request(self, notify: Callable[[], object]) -> Request[H]:
        """Join the line. Does not block.

        :param notify: called once, in any thread, when the request is granted or has failed; not
            called when the request was cancelled
        :raises RuntimeError: when no thread can be started to wait
        """
        request = Request(self, notify)
        with self._mutex:
            self._line.append(request)
            # While others are in line, a thread waits or the lock is held: so only this can fail.
            failed = self._ensure_waiter()
        if failed:
            request.take()
        return request

    def describe_holder(self) -> Holder:
        """Say who holds the lock."""
        return self.primitive.describe_holder()

    def fail(self, requests: set[Request[H]], error: Callable[[], BaseException]) -> None:
        """Let requests fail with an error, except those that are decided already."""
        failed = [request for request in requests if self._cancel(request, error())]
        _notify_all(failed)

    def _ensure_waiter(self) -> list[Request[H]]:
        """Have a thread wait if a request is in line. The mutex is held.

        :returns: the requests that failed because no thread can be started: to be notified when the
            mutex is released
        """
        failed: list[Request[H]] = []
        is_free = self._holder is None and not self._is_trying
        if self._line and is_free and not self._has_waiter:
            try:
                threading.Thread(target=self._wait, name=self._name, daemon=True).start()
            except RuntimeError as error:  # the process may have no more threads
                failed = self._fail_line(error)
            else:
                self._has_waiter = True
        return failed

    def _fail_line(self, error: BaseException) -> list[Request[H]]:
        """Let all requests in line fail, and return them. The mutex is held."""
        failed = list(self._line)
        self._line.clear()
        for request in failed:
            request._error = copied(error)
        return failed

    def _wait(self) -> None:
        """Wait for the lock on behalf of the line. Runs in a thread of its own."""
        held: H | None = None
        error: BaseException | None = None
        try:
            held = self.primitive.acquire()
        except BaseException as failure:  # noqa: BLE001 (the requests in line raise it)
            error = failure
        decided: list[Request[H]] = []
        unwanted: Grant[H] | None = None
        with self._mutex:
            self._has_waiter = False
            if error is not None:
                decided = self._fail_line(error)
            elif held is not None:
                grant = self._holder = Grant(self, held)
                if self._line:
                    request = self._line.popleft()
                    request._grant = grant
                    decided.append(request)
                else:
                    unwanted = grant
            else:
                decided = self._ensure_waiter()  # interrupted, but a request may have come since
            is_unused = not self._users and not self._has_waiter
        if unwanted is not None:
            unwanted.release()
        if is_unused:
            self._when_unused()
        _notify_all(decided)

    def _cancel(self, request: Request[H], error: BaseException | None = None) -> bool:
        with self._mutex:
            try:
                self._line.remove(request)
            except ValueError:
                return False
            request._error = error or StoreClosedError("the request for the lock was cancelled")
            is_unwanted = self._has_waiter and not self._line
        if is_unwanted:
            self.primitive.interrupt()
        return True

    def _release(self, grant: Grant[H]) -> None:
        with self._mutex:
            if grant._is_released:
                return
            grant._is_released = True
        try:
            self.primitive.release(grant.held)
        finally:
            with self._mutex:
                if self._holder is grant:
                    self._holder = None
                failed = self._ensure_waiter()
            _notify_all(failed)


def _notify_all(requests: list[Request[H]]) -> None:
    for request in requests:
        request._notify()


AnyGrant = Grant[Any]
AnyLine = LockLine[Any]
