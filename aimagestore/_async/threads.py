"""Blocking calls in worker threads, and what cancelling the awaiting task does to each."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from importlib import import_module
from time import monotonic
from typing import Any, Final, Generic, TypeVar, TypeVarTuple

from anyio import Event

from .._engine.lock import AnyGrant
from .._engine.protocol import Steps
from .._engine.workers import WorkerPool
from ..errors import StoreClosedError
from .loop import EventLoop

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_THREADS = 16
_STREAM_THREADS = 6
"""Threads that move big data. Fewer, because the heap of each keeps the memory of some chunks."""

_SOURCE_THREADS = 64
"""Threads that read callers' files and iterables. More, because each may wait for anything."""

ASYNC_FILES: Final = "aiofiles.threadpool"
"""The module that :meth:`Threads.async_file` imports."""

_loaded: Final[set[str]] = set()


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
        # Guards the state. The call, and then its result, has one owner: its thread or its task.
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
        """Keep the call from being made; return ``False`` if it has begun."""
        with self._mutex:
            if not self._has_begun:
                self._is_unwanted = True
            return not self._has_begun

    def abandon(self) -> bool:
        """Leave the call to its thread, which does not begin it, or disposes of the result.

        :returns: ``False`` if it has ended: then the caller disposes of the result
        """
        with self._mutex:
            self._is_unwanted = True
            return not self._has_ended

    def dispose(self) -> None:
        """Release the result, if there is one that needs it. Idempotent."""
        with self._mutex:
            dispose, self._dispose = self._dispose, None
        if self._error is None and dispose is not None:
            dispose(self._result)

    def result(self) -> T:
        """Return what the call returned, or raise what it raised. Called once."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame
        return self._result


class Threads:
    """The worker threads of one store, limited in number and separate from all others.

    Created within the event loop that uses them. The ways to make a call differ in what happens if
    the awaiting task is interrupted: by anyio, by trio, or by asyncio itself.

    - :meth:`run`: a call that has not begun is not made; one that has begun is waited for, and ends
      soon if it can be interrupted;
    - :meth:`run_shielded`: the call is made and waited for;
    - :meth:`run_deciding`: the call is waited for if it has decided to act, and does nothing
      otherwise;
    - :meth:`run_abandonable`: the call is not waited for, and the thread releases its result.
    """

    def __init__(self, loop: EventLoop) -> None:
        self.loop = loop
        self._calls = WorkerPool(_THREADS, "aimagestore worker")
        self._streams = WorkerPool(_STREAM_THREADS, "aimagestore stream")
        self._sources = WorkerPool(_SOURCE_THREADS, "aimagestore source")
        # Guards what follows.
        self._mutex = threading.Lock()
        # The calls and other activities that have not ended.
        self._activities: set[object] = set()
        self._when_idle: Callable[[], object] | None = None
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether the function of :meth:`when_idle` was called; no more calls are taken then."""
        with self._mutex:
            return self._is_over

    def spawn(self, function: Callable[[], object]) -> None:
        """Begin a call that nobody waits for and that does not raise. Callable in any thread."""
        try:
            self._submit(self._calls, function, None)
        except StoreClosedError:  # a last release, after the threads were idle
            try:
                self._calls.spawn(function, lambda: None)
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
        try:
            self._submit(pool, call.run, lambda: self._note_end(call))
        except BaseException:
            if not call.abandon():
                self.spawn(call.dispose)
            raise
        return call

    def _note_end(self, call: Call[Any]) -> None:
        """Let the task know that its call has ended, in the thread that made the call."""
        if not self.loop.post(call.ended.set) and not call.abandon():
            self.spawn(call.dispose)  # the loop has ended, and no task gets the result

    def _submit(
        self,
        pool: WorkerPool,
        function: Callable[[], object],
        ended: Callable[[], object] | None,
    ) -> None:
        # Acquired once: by the thread that begins the call, or here if Ctrl-C interrupts this,
        # which is possible at any instruction.
        turn = threading.Lock()

        def begin() -> None:
            if turn.acquire(blocking=False):
                function()

        def note_end() -> None:
            if ended is not None:
                ended()
            self.release(turn)

        try:
            self.hold(turn)
            # Not noted at the end of the function: the thread is free for the next call after that.
            pool.spawn(begin, note_end)
        except BaseException:
            if turn.acquire(blocking=False):
                self.release(turn)
            raise

    def hold(self, activity: object) -> None:
        """Note an activity, so that :meth:`when_idle` waits for its :meth:`release`. Idempotent.

        :raises StoreClosedError: when :meth:`when_idle` waits no more: what the activity needs may
            be closed
        """
        with self._mutex:
            if self._is_over:
                raise StoreClosedError("the store was closed while this call was under way")
            self._activities.add(activity)

    def release(self, activity: object) -> None:
        """End an activity. Idempotent."""
        with self._mutex:
            self._activities.discard(activity)
            when_idle = None
            if not self._activities:
                when_idle, self._when_idle = self._when_idle, None
                self._is_over = self._is_over or when_idle is not None
        if when_idle is not None:
            when_idle()

    def when_idle(self, function: Callable[[], object]) -> None:
        """Call a function once, in any thread, when no activity and no call is under way.

        From then on, only :meth:`spawn` begins calls.
        """
        self.hold(function)
        self._when_idle = function
        self.release(function)

    async def run(
        self,
        function: Callable[[*Ts], T],
        *args: *Ts,
        interrupt: Callable[[], object] | None = None,
    ) -> T:
        """Make a call whose result needs no release.

        If interrupted, the call is not made, or is waited for if it has begun.

        :param interrupt: makes a call that has begun end soon; must not block. If it returns
            ``False``, it cannot do that, and the call is left to its thread.
        """
        return await self._run(self.start(function, *args), interrupt)

    def start_streaming(self, function: Callable[[], T]) -> Call[T]:
        """Begin a call as :meth:`start` does, in one of the few threads that move big data."""
        return self._start(self._streams, function)

    async def run_streaming(
        self,
        function: Callable[[*Ts], T],
        *args: *Ts,
        interrupt: Callable[[], object] | None = None,
    ) -> T:
        """Make a call as :meth:`run` does, in one of the few threads that move big data."""
        return await self._run(self.start_streaming(lambda: function(*args)), interrupt)

    async def run_source(self, function: Callable[[], T]) -> T:
        """Make a call of a caller's file or iterable as :meth:`run` does.

        It may block for any time, so it has a thread for which only other such calls wait.
        """
        return await self._run(self._start(self._sources, function))

    async def _run(self, call: Call[T], interrupt: Callable[[], object] | None = None) -> T:
        try:
            await call.ended.wait()
        except BaseException:
            await self._end(call, interrupt)
            raise
        return call.result()

    async def _end(self, call: Call[T], interrupt: Callable[[], object] | None = None) -> None:
        """End a call for a task that was interrupted, as :meth:`run` does."""
        if not call.cancel():
            if interrupt is not None and interrupt() is False:
                call.abandon()
            else:
                await self.loop.wait_through(call.ended)

    async def leave(self, call: Call[Any]) -> None:
        """Leave a call of :meth:`start_streaming` that nobody waits for any more to its thread."""
        call.abandon()

    async def run_shielded(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Make a call that must be made. If interrupted, it is waited for.

        The threads own the call before anything is awaited.
        """
        return await self.finish(self.start(function, *args))

    async def finish(self, call: Call[T]) -> T:
        """Wait for a call that was started, even if interrupted, and return its result."""
        await self.loop.wait_through(call.ended)
        return call.result()

    async def run_deciding(self, function: Callable[[Callable[[], bool]], T]) -> T:
        """Make a call that asks, before it changes anything, whether its task still waits.

        If interrupted before it asks, this returns at once; after that, the call is waited for.

        :param function: gets a function that returns whether its task still waits; calls it once
        """
        # Acquired once: by the thread when it asks, or by the task when it is interrupted.
        decision = threading.Lock()
        call = self.start(function, lambda: decision.acquire(blocking=False))
        try:
            await call.ended.wait()
        except BaseException:
            if not call.cancel() and not decision.acquire(blocking=False):
                await self.loop.wait_through(call.ended)
            raise
        return call.result()

    async def run_abandonable(
        self,
        function: Callable[[*Ts], T],
        *args: *Ts,
        dispose: Callable[[T], object] | None = None,
    ) -> T:
        """Make a call that need not be waited for. If interrupted, this returns at once.

        :param dispose: releases the result if the task has not got it; called in a worker thread
        """
        return await self.wait_or_leave(self.start(function, *args, dispose=dispose))

    async def run_while_wanted(
        self,
        function: Callable[[Callable[[], None]], T],
        *,
        dispose: Callable[[T], object] | None = None,
    ) -> T:
        """Make a call as :meth:`run_abandonable` does, which can end early if interrupted.

        :param function: gets a function to call now and then, which raises if the task does not
            wait any more
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

    async def wait_or_leave(self, call: Call[T]) -> T:
        """Wait for a call that was started, and return its result; leave it if interrupted."""
        try:
            await call.ended.wait()
        except BaseException:
            if not call.abandon():
                self.spawn(call.dispose)
            raise
        return call.result()

    async def load(self, module: str) -> None:
        """Import a module that is seldom needed, so that the caller's import of it takes no time.

        In a worker thread, because a large one takes longer than the event loop may stop.
        """
        if module not in _loaded:
            await self.run_abandonable(import_module, module)
            _loaded.add(module)

    def async_file(self, file: io.RawIOBase | io.BufferedIOBase, *, loop: object) -> Any:
        """Return an asynchronous file, after :meth:`load` of :data:`ASYNC_FILES`.

        :param loop: has a ``run_in_executor`` that makes its calls. aiofiles takes this object for
            its event loop, so it works on trio, too.
        """
        from aiofiles.threadpool import wrap  # noqa: PLC0415 (it imports all of asyncio)

        return wrap(file, loop=loop)

    def shutdown(self) -> None:
        """Let the threads end after the calls that were started."""
        self._calls.shutdown()
        self._streams.shutdown()
        self._sources.shutdown()


class InTurn:
    """Makes the calls of a file in the threads that move big data, one after another.

    If interrupted, a call is left to its thread. Without a turn, such a call could read or set the
    position of the file in the middle of a call that was made later.
    """

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        # Set when the last call has ended, even if it was left.
        self._ended: Event | None = None

    async def run_in_executor(self, executor: object, function: Callable[[], T]) -> T:
        """Make a call, after the one before. aiofiles takes this object for its event loop."""
        await self.wait()
        call = self._threads.start_streaming(function)
        self._ended = call.ended
        return await self._threads.wait_or_leave(call)

    async def wait(self) -> None:
        """Wait until no call is under way. If interrupted, this returns at once."""
        while self._ended is not None and not self._ended.is_set():
            await self._ended.wait()


class Stepper(Generic[T]):
    """Runs blocking steps in worker threads.

    :param grant: the lock that the steps need, if any. If interrupted, a step with a lock is waited
        for; one without is left to its thread.
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
        """Run all steps and return their result. If interrupted, the present step is the last."""
        # Steps under the lock change something. One at a time, so that what progress raises keeps
        # the next step from being made.
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
        """Run at least one step, and return the figures of the last one; ``None`` at the end."""
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
