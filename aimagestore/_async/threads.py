"""The one place from which the event loop calls blocking code."""

from __future__ import annotations

import io
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from time import monotonic
from typing import Any, Generic, TypeVar, TypeVarTuple

from anyio import Event

from .._engine.lock import AnyGrant
from .._engine.protocol import Steps
from .._engine.workers import WorkerPool
from ..errors import StoreClosedError
from .loop import EventLoop, wait_through

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_THREADS = 16
_STREAM_THREADS = 6
"""Each thread's heap keeps some chunks for itself, so fewer threads move big data."""


class Call(Generic[T]):
    """A blocking call, owned by the thread that makes it; a task only waits for its end.

    :ivar ended: set in the event loop when the call has returned or raised
    """

    def __init__(
        self, function: Callable[[], T], dispose: Callable[[T], object] | None = None
    ) -> None:
        self.ended: Event = Event()
        self._function = function
        self._dispose = dispose
        # Guards the state: a call, and then its result, has one owner, its thread or its task.
        self._mutex = threading.Lock()
        self._has_begun = False
        self._has_ended = False
        self._is_unwanted = False
        self._result: T
        self._error: BaseException | None = None

    def run(self) -> None:
        """Make the call, in a worker thread."""
        with self._mutex:
            if self._is_unwanted:
                return
            self._has_begun = True
        try:
            self._result = self._function()
        except BaseException as error:  # noqa: BLE001 (the task raises it)
            self._error = error
        with self._mutex:
            self._has_ended = True
            is_unwanted = self._is_unwanted
        if is_unwanted:
            self.dispose()

    def cancel(self) -> bool:
        """Keep the call from being made; ``False`` when it has begun."""
        with self._mutex:
            if not self._has_begun:
                self._is_unwanted = True
            return not self._has_begun

    def abandon(self) -> bool:
        """Leave the call to its thread, which disposes of the result.

        :returns: ``False`` when it has ended, so that the caller must dispose of the result
        """
        with self._mutex:
            self._is_unwanted = True
            return not self._has_ended

    def dispose(self) -> None:
        """Release the result, if there is one that needs it."""
        if self._error is None and self._dispose is not None:
            self._dispose(self._result)

    def result(self) -> T:
        """Return what the call returned, or raise what it raised. Once: it keeps neither."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame
        return self._result


class Threads:
    """Worker threads of one store, limited in number and apart from everybody else's.

    Created within the event loop that uses it. Each way to make a call says what an interruption
    of the awaiting task (by anyio, by trio, or by asyncio itself) does:

    - :meth:`run`: a call that has not begun is not made; one that has begun is waited for, and made
      to end soon where it can be interrupted;
    - :meth:`run_shielded`: the call is made, and waited for;
    - :meth:`run_deciding`: the task leaves at once, and the thread does nothing more;
    - :meth:`run_abandonable`: the task leaves at once, and the thread releases the result.
    """

    def __init__(self, loop: EventLoop) -> None:
        self.loop = loop
        self._calls = WorkerPool(_THREADS, "aimagestore worker")
        self._streams = WorkerPool(_STREAM_THREADS, "aimagestore stream")
        # Guards the number of calls and activities that have not ended.
        self._mutex = threading.Lock()
        self._activities = 0
        self._when_idle: Callable[[], object] | None = None
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether what waited for the threads to be idle was called; they take no more calls."""
        with self._mutex:
            return self._is_over

    def spawn(self, function: Callable[[], object]) -> None:
        """Begin a call that nobody waits for, and that does not raise. Callable in any thread."""
        try:
            self._submit(self._calls, function, None)
        except StoreClosedError:  # a last release, which nothing waits for any more
            try:
                self._calls.submit(function)
            except RuntimeError:
                threading.Thread(target=function, daemon=True).start()

    def start(
        self,
        function: Callable[[*Ts], T],
        *args: *Ts,
        dispose: Callable[[T], object] | None = None,
    ) -> Call[T]:
        """Begin a call in the event loop. The threads own it from here on."""
        return self._start(self._calls, lambda: function(*args), dispose)

    def _start(
        self,
        pool: WorkerPool,
        function: Callable[[], T],
        dispose: Callable[[T], object] | None = None,
    ) -> Call[T]:
        call = Call(function, dispose)
        self._submit(pool, call.run, call.ended.set)
        return call

    def _submit(
        self,
        pool: WorkerPool,
        function: Callable[[], object],
        ended: Callable[[], object] | None,
    ) -> None:
        def note_end(_: object) -> None:
            if ended is not None:
                self.loop.post(ended)
            self.release()

        self.hold()
        try:
            future = pool.submit(function)
        except BaseException:
            self.release()
            raise
        # By the pool, when the thread is free for the next call.
        future.add_done_callback(note_end)

    def hold(self) -> None:
        """Count one more activity, so that :meth:`when_idle` waits for its :meth:`release`.

        :raises StoreClosedError: when the wait is over, and what the activity needs may be closed
        """
        with self._mutex:
            if self._is_over:
                raise StoreClosedError("the store was closed while this call was under way")
            self._activities += 1

    def release(self) -> None:
        """End an activity."""
        with self._mutex:
            self._activities -= 1
            when_idle = None
            if not self._activities:
                when_idle, self._when_idle = self._when_idle, None
                self._is_over = when_idle is not None
        if when_idle is not None:
            when_idle()

    def when_idle(self, function: Callable[[], object]) -> None:
        """Call a function once, in any thread, when no activity and no call is under way.

        From then on there are none but those that :meth:`spawn` begins.
        """
        self.hold()
        self._when_idle = function
        self.release()

    async def run(
        self,
        function: Callable[[*Ts], T],
        *args: *Ts,
        interrupt: Callable[[], object] | None = None,
    ) -> T:
        """Make a call whose result needs no release. Interrupted, it is not made, or waited for.

        :param interrupt: makes the call end soon; must not block. One that returns ``False`` cannot
            do that, and the call is left to its thread.
        """
        return await self._run(self.start(function, *args), interrupt)

    async def run_streaming(
        self,
        function: Callable[[*Ts], T],
        *args: *Ts,
        interrupt: Callable[[], object] | None = None,
    ) -> T:
        """Make a call as :meth:`run` does, in one of the few threads that move big data."""
        return await self._run(self._start(self._streams, lambda: function(*args)), interrupt)

    async def _run(self, call: Call[T], interrupt: Callable[[], object] | None = None) -> T:
        try:
            await call.ended.wait()
        except BaseException:
            if not call.cancel():
                if interrupt is not None and interrupt() is False:
                    call.abandon()
                else:
                    await wait_through(call.ended)
            raise
        return call.result()

    async def run_shielded(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Make a call that must be made. Interrupted, it is waited for.

        The call begins before anything is awaited.
        """
        return await self.finish(self.start(function, *args))

    async def finish(self, call: Call[T]) -> T:
        """Wait for a call that was begun, whatever interrupts the wait."""
        await wait_through(call.ended)
        return call.result()

    async def run_deciding(self, function: Callable[[Callable[[], bool]], T]) -> T:
        """Make a call that asks, before it does anything, whether it is still to do it.

        Interrupted before that, this returns at once; after that, the call is waited for.

        :param function: gets what tells whether its task still waits; asks once
        """
        # Acquired once: by the thread when it asks, or by the task when it leaves.
        decision = threading.Lock()
        call = self.start(function, lambda: decision.acquire(blocking=False))
        try:
            await call.ended.wait()
        except BaseException:
            if not call.cancel() and not decision.acquire(blocking=False):
                await wait_through(call.ended)
            raise
        return call.result()

    async def run_abandonable(
        self,
        function: Callable[[*Ts], T],
        *args: *Ts,
        dispose: Callable[[T], object] | None = None,
    ) -> T:
        """Make a call that nobody has to wait for. Interrupted, this returns at once.

        :param dispose: releases the result when nobody takes it; called in a worker thread
        """
        return await self._wait(self.start(function, *args, dispose=dispose))

    async def run_while_wanted(
        self,
        function: Callable[[Callable[[], None]], T],
        *,
        dispose: Callable[[T], object] | None = None,
    ) -> T:
        """Make a call as :meth:`run_abandonable` does. Interrupted, it can end before its time.

        :param function: gets what raises when nobody waits for it any more
        """
        is_unwanted = threading.Event()

        def check() -> None:
            if is_unwanted.is_set():
                raise CancelledError

        try:
            return await self.run_abandonable(function, check, dispose=dispose)
        except BaseException:
            is_unwanted.set()
            raise

    async def _wait(self, call: Call[T]) -> T:
        try:
            await call.ended.wait()
        except BaseException:
            if not call.abandon():
                self.spawn(call.dispose)
            raise
        return call.result()

    def async_file(self, file: io.RawIOBase | io.BufferedIOBase) -> Any:
        """Return an asynchronous file that makes a file's calls in the few threads of big data."""
        from aiofiles.threadpool import wrap  # noqa: PLC0415 (it imports all of asyncio)

        return wrap(file, loop=self)

    def run_in_executor(self, executor: object, function: Callable[[], T]) -> Awaitable[T]:
        """Stand in for the event loop in aiofiles, which then works on every loop.

        Interrupted, the task leaves the call to its thread: sources and sinks serialize theirs.
        """
        return self._wait(self._start(self._streams, function))

    def shutdown(self) -> None:
        """Let the threads end when the calls that were begun have ended."""
        self._calls.shutdown()
        self._streams.shutdown()


class Stepper(Generic[T]):
    """Runs blocking steps in worker threads, with the event loop free in between.

    :param grant: the lock that the steps need, if any: interrupted, the present step is waited for.
        Otherwise it is left to its thread.
    """

    _SECONDS = 0.02

    def __init__(self, steps: Steps[T], threads: Threads, grant: AnyGrant | None = None) -> None:
        self._steps = steps
        self._threads = threads
        self._grant = grant
        # Held while a step runs, and while the steps are closed.
        self._mutex = threading.Lock()
        self._is_over = False
        self._result: T

    async def run(self, progress: Callable[[int, int], object] | None = None) -> T:
        """Run all steps and return their result. Interrupted, they end after the present step."""
        # Under the lock things change: what progress raises ends that before the next step.
        seconds = 0 if self._grant is not None and progress is not None else self._SECONDS
        try:
            while (figures := await self._next(seconds)) is not None:
                if progress is not None:
                    progress(*figures)
        except BaseException:
            self._is_over = True
            if self._grant is not None:
                await self._threads.run_shielded(self._close)
            else:
                self._threads.spawn(self._close)
            raise
        return self._result

    async def _next(self, seconds: float) -> tuple[int, int] | None:
        if self._grant is not None:
            return await self._threads.run(self._grant.run, self._advance, seconds)
        return await self._threads.run_abandonable(self._advance, seconds)

    def _advance(self, seconds: float) -> tuple[int, int] | None:
        """Run one step at least, and return the last one's figures; ``None`` at the end."""
        figures: tuple[int, int] | None = None
        with self._mutex:
            end = monotonic() + seconds
            while not self._is_over:
                try:
                    figures = next(self._steps)
                except StopIteration as stop:
                    self._is_over = True
                    self._result = stop.value
                    break
                if monotonic() >= end:
                    break
        return figures

    def _close(self) -> None:
        with self._mutex:
            self._steps.close()
