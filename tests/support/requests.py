"""Interrupts a call while its requests to the servers of a cluster are under way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from aimagestore._async.loop import EventLoop
from aimagestore.cluster import _lock
from aimagestore.cluster._blobs import Blobs
from aimagestore.cluster._sessions import Session, Sessions
from aimagestore.cluster._staged import StagedBlob
from aimagestore.cluster._upload import Upload

_ROUNDS = 4
"""Rounds of the event loop after which an interrupted task has ended, or waits again."""


class Requests:
    """Interrupts a call at a step: a thread is about to make a request, or has its answer.

    The thread waits there until the task has been interrupted. Requests of the store's other tasks
    count too, because they share commits with the call.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Guards what follows.
        self._mutex = threading.Lock()
        self._count = 0
        self._step = 0
        self._interrupt: Callable[[], object] = lambda: None
        self._loop: EventLoop | None = None
        for owner, name in (
            (Sessions, "connect"),
            (Blobs, "get"),
            (Blobs, "delete"),
            (StagedBlob, "_wait"),
            (Upload, "write"),
            (Upload, "complete"),
            (_lock, "_readable"),
        ):
            monkeypatch.setattr(owner, name, self._stepping(getattr(owner, name)))
        monkeypatch.setattr(Session, "limited", self._limited(Session.limited))

    def _stepping(self, request: Any) -> Any:
        def stepping(*args: Any, **kwargs: Any) -> Any:
            self._pass()
            answer = request(*args, **kwargs)
            self._pass()
            return answer

        return stepping

    def _limited(self, real: Any) -> Any:
        @contextmanager
        def limited(session: Session) -> Iterator[Any]:
            self._pass()
            with real(session) as connection:
                yield connection
            self._pass()

        return limited

    def _pass(self) -> None:
        """Count a step, in a thread, and interrupt the call if it is the chosen one."""
        with self._mutex:
            loop, interrupt = self._loop, self._interrupt
            self._count += 1
            if loop is None or self._count != self._step:
                return
        has_left = threading.Event()

        def go_round(rounds: int) -> None:
            if rounds:
                loop.post(lambda: go_round(rounds - 1))
            else:
                has_left.set()

        def begin() -> None:
            interrupt()
            go_round(_ROUNDS)

        loop.post(begin)
        assert has_left.wait(20)

    @contextmanager
    def _interrupting(self, step: int, interrupt: Callable[[], object]) -> Iterator[None]:
        with self._mutex:
            self._count, self._step, self._interrupt = 0, step, interrupt
            self._loop = EventLoop()
        try:
            yield
        finally:
            with self._mutex:
                self._loop = None

    async def by_scope(self, call: Callable[[], Awaitable[object]], step: int) -> bool:
        """Cancel an anyio scope around the call; see :data:`Interruption`."""
        with anyio.CancelScope() as scope, self._interrupting(step, scope.cancel):
            await call()
        return self._count >= step

    async def by_task_cancel(self, call: Callable[[], Awaitable[object]], step: int) -> bool:
        """Cancel the asyncio task of the call; see :data:`Interruption`."""

        async def run() -> None:
            await call()

        task = asyncio.ensure_future(run())
        with self._interrupting(step, task.cancel):
            await asyncio.wait([task])
        if not task.cancelled():
            task.result()
        return self._count >= step
