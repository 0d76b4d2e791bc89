"""The event loop as other threads reach it, and the one wait that cancellation does not end."""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Callable
from threading import get_ident
from types import TracebackType
from typing import Any

from anyio import CancelScope, Event
from anyio.lowlevel import current_token

_AFTER_YIELD = 1
"""The argument of the instruction RESUME behind a ``yield``."""


class EventLoop:
    """The running event loop, asyncio's or trio's. Created within it.

    :ivar call_soon: calls a function when the tasks that are ready have run; only within the loop
    """

    def __init__(self) -> None:
        native: Any = current_token().native_token
        self._native = native
        # trio alone needs no asyncio, which takes a quarter of the time of importing this library.
        asyncio = sys.modules.get("asyncio")
        if asyncio is not None and isinstance(native, asyncio.AbstractEventLoop):
            self._post: Callable[[Callable[[], object]], object] = native.call_soon_threadsafe
            self.call_soon: Callable[[Callable[[], object]], object] = native.call_soon
            self._running: Callable[[], object] = asyncio.get_running_loop
            self._thread: int | None = get_ident()
        else:
            import trio.lowlevel  # noqa: PLC0415 (an optional dependency)

            self._post = self.call_soon = native.run_sync_soon
            self._running = trio.lowlevel.current_trio_token
            self._thread = None

    def post(self, function: Callable[[], object]) -> bool:
        """Call a function in the loop soon. Callable from any thread; never blocks.

        :returns: ``False`` once the loop has ended: nobody waits there any more
        """
        try:
            self._post(function)
        except RuntimeError:
            return False
        return True

    def is_running_here(self) -> bool:
        """Return whether this very loop runs the caller."""
        # A thread runs one loop at a time. Asking for it makes a system call in Python 3.11.
        if self._thread is not None and get_ident() == self._thread and self._native.is_running():
            return True
        try:
            return self._running() is self._native
        except RuntimeError:
            return False

    async def wait_through(self, event: Event) -> None:
        """Wait until an event is set, even if the task is cancelled meanwhile.

        This is the only place that does so. An anyio shield holds off the cancellation of anyio and
        trio. asyncio's own (``Task.cancel``, and so ``asyncio.timeout``, ``wait_for``, a failing
        ``TaskGroup``, Ctrl-C) passes through every shield, any number of times, and so does the
        ``KeyboardInterrupt`` that trio delivers. These are caught, and the last one is raised once
        when the event is set.

        A coroutine that is being closed (``GeneratorExit``) cannot wait. So only the task's own
        answer may depend on the end of this wait: what the event stands for is owned by the store
        and its threads.

        :raises RuntimeError: in another event loop, in which no event of this one wakes a task
        """
        if is_coroutine_closing():
            raise GeneratorExit
        if not self.is_running_here():
            raise RuntimeError("this block was entered in another event loop: leave it in that one")
        interruption: BaseException | None = None
        with CancelScope(shield=True):
            while not event.is_set():
                try:
                    await event.wait()
                except GeneratorExit:
                    raise
                except BaseException as error:  # noqa: BLE001 (raised below)
                    interruption = error
        if interruption is not None:
            raise interruption


def is_coroutine_closing() -> bool:
    """Return whether a coroutine is being closed, which cannot wait.

    A ``GeneratorExit`` alone does not show that. Two others are closed by one, and may wait: a
    generator that runs this event loop, and an asynchronous generator, whose ``aclose`` is awaited.
    """
    error = sys.exc_info()[1]
    if not isinstance(error, GeneratorExit) or error.__traceback__ is None:
        return isinstance(error, GeneratorExit)
    here = origin = error.__traceback__
    while origin.tb_next is not None:
        origin = origin.tb_next
    asynchronous = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    asynchronous |= inspect.CO_ITERABLE_COROUTINE
    if not here.tb_frame.f_code.co_flags & asynchronous:
        return False
    return not _is_at_a_yield(origin)


def _is_at_a_yield(origin: TracebackType) -> bool:
    """Return whether an asynchronous generator was closed at a ``yield``, not at an ``await``.

    At a ``yield``, the generator itself was closed; at an ``await``, the coroutine that iterates
    over it was.
    """
    code = origin.tb_frame.f_code
    if not code.co_flags & inspect.CO_ASYNC_GENERATOR:
        return False
    # A RESUME follows either, and its argument says which it was.
    for each in dis.get_instructions(code):
        if each.offset >= origin.tb_lasti and each.opname == "RESUME":
            return each.arg is not None and each.arg & 3 == _AFTER_YIELD
    return False
