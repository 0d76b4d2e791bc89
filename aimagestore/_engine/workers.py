"""Worker threads that never keep the interpreter from exiting."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_HELPERS_MAX = 4

# Makes a call, and returns what lets its caller know that it has ended.
_Work = Callable[[], Callable[[], object]]


class WorkerPool(Executor):
    """An executor of daemon threads, started on demand.

    The interpreter waits at its exit for :class:`concurrent.futures.ThreadPoolExecutor` and anyio's
    worker threads, so one call that hangs, on a network file system for instance, would keep the
    program from ending. Every write of this library survives being cut off at any moment, so its
    threads may end with the program.

    :param limit: the most threads to start
    :param name: the name of each thread
    """

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        # Guards what follows; held for a few instructions, or while a thread is started.
        self._mutex = threading.Lock()
        self._threads = 0
        # Idle threads, less the calls that are queued for the next ones.
        self._spare = 0
        self._is_shut_down = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call.

        :raises RuntimeError: after :meth:`shutdown`, or when there is no thread and none can start
        """
        future: Future[T] = Future()

        def work() -> Callable[[], object]:
            if not future.set_running_or_notify_cancel():
                return _do_nothing
            try:
                return partial(future.set_result, fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 (whoever waits raises it)
                return partial(future.set_exception, error)

        self._add(work)
        return future

    def spawn(self, function: Callable[[], object], ended: Callable[[], object]) -> None:
        """Queue a call whose result and errors nobody waits for.

        :param ended: called at its end, when its thread is free for the next call; does not raise
        :raises RuntimeError: as :meth:`submit`
        """

        # Without a future, which takes longer to make than the way to the thread.
        def work() -> Callable[[], object]:
            with suppress(BaseException):
                function()
            return ended

        self._add(work)

    def _add(self, work: _Work) -> None:
        with self._mutex:
            if self._is_shut_down:
                raise RuntimeError("the worker threads were shut down")
            if self._spare > 0 or self._threads == self._limit or not self._start_thread():
                # An idle thread takes the call, or the next one that becomes idle.
                self._spare -= 1
            self._queue.put(work)

    def _start_thread(self) -> bool:
        """Start one more thread, or return ``False`` when that fails and there are others."""
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError:  # the process may have no more threads
            if not self._threads:
                raise
            return False
        self._threads += 1
        return True

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            tell = work()
            # Before the end is known: a caller that makes one call after another would otherwise
            # find no idle thread, and start one for each call up to the limit.
            with self._mutex:
                self._spare += 1
            tell()
            del work, tell

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. The threads end when those that are queued are done.

        :param wait: ignored, because a thread may hang
        :param cancel_futures: ignored, because a queued call may release something
        """
        del wait, cancel_futures
        with self._mutex:
            if self._is_shut_down:
                return
            self._is_shut_down = True
            for _ in range(self._threads):
                self._queue.put(None)


def call_all(calls: Iterable[Callable[[], object]], helpers: Executor) -> None:
    """Make calls that mostly wait, with the help of some threads, and return when all have ended.

    Raises what one of them has raised. Then some of the others may not have been made.
    """
    pending = deque(calls)
    number = len(pending)

    def make() -> None:
        while True:
            try:
                call = pending.popleft()
            except IndexError:
                return
            call()

    helping: list[Future[None]] = []
    try:
        with suppress(RuntimeError):  # the helpers were shut down, or no thread can start
            while len(helping) < min(number // 2, _HELPERS_MAX):
                helping.append(helpers.submit(make))
        make()
    finally:
        wait([future for future in helping if not future.cancel()])
    for future in helping:
        if not future.cancelled():
            future.result()


def _do_nothing() -> None:
    pass
