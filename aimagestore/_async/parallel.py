"""Calls for many things, several at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from anyio import create_task_group, get_cancelled_exc_class

T = TypeVar("T")

_AT_ONCE = 8


async def for_each(things: Iterable[T], call: Callable[[T], Awaitable[object]]) -> None:
    """Make a call for each thing, in a few tasks.

    The first call that raises cancels the others. Its error is raised as it is, without a group.
    """
    pending = iter(things)
    cancelled = get_cancelled_exc_class()
    first: list[BaseException] = []
    try:
        async with create_task_group() as tasks:

            async def call_some() -> None:
                try:
                    for thing in pending:
                        await call(thing)
                except cancelled:
                    raise
                except BaseException as error:  # noqa: BLE001 (raised below)
                    first.append(error)
                    tasks.cancel_scope.cancel()

            for _ in range(_AT_ONCE):
                tasks.start_soon(call_some)
    except BaseExceptionGroup as group:
        # trio delivers a KeyboardInterrupt here, while this waits for the tasks.
        error: BaseException = group.split(cancelled)[1] or group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        first.append(error)
    if first:
        raise first[0]
