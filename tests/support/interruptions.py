"""The ways in which an awaiting task can be interrupted, at a chosen step."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import anyio

_LONG = 3600
"""Seconds that no call takes."""


class Steps:
    """Awaits something, and calls a function each time that it is about to be suspended.

    :ivar count: the number of suspensions so far
    """

    def __init__(self, call: Awaitable[object], at_step: Callable[[int, Any], object]) -> None:
        self._call = call
        self._at_step = at_step
        self.count = 0

    def __await__(self) -> Generator[Any, Any, object]:
        inner: Any = self._call.__await__()
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                request = inner.send(value) if error is None else inner.throw(error)
            except StopIteration as stop:
                return stop.value
            self.count += 1
            self._at_step(self.count, request)
            value = error = None
            try:
                value = yield request
            except BaseException as caught:
                error = caught


Interruption = Callable[[Callable[[], Awaitable[object]], int], Awaitable[bool]]
"""Runs a call, interrupts it at a step, and returns whether it came to that step.

Steps are counted from 1: a step is each time that the call is about to be suspended.
"""


async def by_scope(call: Callable[[], Awaitable[object]], step: int) -> bool:
    """Cancel an anyio scope around the call."""
    with anyio.CancelScope() as scope:
        await Steps(call(), lambda count, _: scope.cancel() if count == step else None)
    return scope.cancel_called


async def _native(
    call: Callable[[], Awaitable[object]], at_step: Callable[[int, Any, Any], bool]
) -> bool:
    is_interrupted = False

    def interrupt(count: int, request: Any) -> None:
        nonlocal is_interrupted
        is_interrupted |= at_step(count, request, asyncio.current_task())

    async def run() -> None:
        await Steps(call(), interrupt)

    task = asyncio.ensure_future(run())
    try:
        await task
    except asyncio.CancelledError:
        assert task.cancelled()
        assert is_interrupted
    return is_interrupted


async def by_task_cancel(call: Callable[[], Awaitable[object]], step: int) -> bool:
    """Cancel the asyncio task of the call."""

    def at_step(count: int, request: Any, task: Any) -> bool:
        if count == step:
            task.cancel()
        return count == step

    return await _native(call, at_step)


async def by_repeated_cancels(call: Callable[[], Awaitable[object]], step: int) -> bool:
    """Cancel the asyncio task at this step and, as long as it goes on, at its next two."""

    def at_step(count: int, request: Any, task: Any) -> bool:
        if step <= count < step + 3:
            task.cancel()
        return count >= step

    return await _native(call, at_step)


async def by_cancel_at_completion(call: Callable[[], Awaitable[object]], step: int) -> bool:
    """Cancel the asyncio task when what it waits for is done, before it runs again."""

    def at_step(count: int, request: Any, task: Any) -> bool:
        if count == step and asyncio.isfuture(request):
            request.add_done_callback(lambda _: task.cancel())
            return True
        return count == step

    return await _native(call, at_step)


async def by_timeout(call: Callable[[], Awaitable[object]], step: int) -> bool:
    """Let an ``asyncio.timeout`` expire around the call."""
    loop = asyncio.get_running_loop()
    is_interrupted = False
    try:
        async with asyncio.timeout(None) as timeout:

            def at_step(count: int, _: Any) -> None:
                nonlocal is_interrupted
                if count == step:
                    is_interrupted = True
                    timeout.reschedule(loop.time() - 1)

            await Steps(call(), at_step)
    except TimeoutError:
        assert timeout.expired()
    return is_interrupted


async def by_wait_for(call: Callable[[], Awaitable[object]], step: int) -> bool:
    """Cancel the asyncio task that waits for the call with a time limit by ``asyncio.wait_for``.

    Before Python 3.12 the call then runs in a task of its own, which ``wait_for`` cancels.
    """
    is_interrupted = False

    def at_step(count: int, _: Any) -> None:
        nonlocal is_interrupted
        if count == step:
            is_interrupted = True
            task.cancel()

    async def run() -> None:
        await asyncio.wait_for(_as_coroutine(Steps(call(), at_step)), _LONG)

    task = asyncio.ensure_future(run())
    try:
        await task
    except asyncio.CancelledError:
        assert task.cancelled()
        assert is_interrupted
    return is_interrupted


async def _as_coroutine(call: Awaitable[object]) -> None:
    await call


class SiblingError(Exception):
    """Raised by the other task of the group."""


async def by_sibling(call: Callable[[], Awaitable[object]], step: int) -> bool:
    """Fail another task of the same ``asyncio.TaskGroup``."""
    fail = asyncio.Event()
    is_over = asyncio.Event()

    async def sibling() -> None:
        waits = [asyncio.ensure_future(fail.wait()), asyncio.ensure_future(is_over.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if fail.is_set():
            raise SiblingError

    async def run() -> None:
        await Steps(call(), lambda count, _: fail.set() if count == step else None)
        is_over.set()

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(sibling())
            tasks.create_task(run())
    except* SiblingError:
        pass
    return fail.is_set()


async def by_ctrl_c(call: Callable[[], Awaitable[object]], step: int) -> bool:
    """Send SIGINT to the process, as Ctrl-C does. Only in the main task of ``asyncio.run``."""
    is_interrupted = False

    def at_step(count: int, _: Any) -> None:
        nonlocal is_interrupted
        if count == step:
            is_interrupted = True
            signal.raise_signal(signal.SIGINT)

    try:
        await Steps(call(), at_step)
    except asyncio.CancelledError:
        assert is_interrupted
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
    return is_interrupted


ASYNCIO: dict[str, Interruption] = {
    "scope": by_scope,
    "task_cancel": by_task_cancel,
    "repeated_cancels": by_repeated_cancels,
    "cancel_at_completion": by_cancel_at_completion,
    "timeout": by_timeout,
    "wait_for": by_wait_for,
    "sibling": by_sibling,
}
"""The ways to interrupt a call in any task of asyncio, by name."""
