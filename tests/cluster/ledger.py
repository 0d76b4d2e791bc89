"""Changes to a store while servers and networks fail, and checks of the store afterwards."""

from __future__ import annotations

import itertools
import os
import signal
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from anyio.to_thread import run_sync

from aimagestore import ImageStore, StoreUnavailableError

if TYPE_CHECKING:
    from aimagestore.cluster._local.server import Server

    from .servers import Place, Servers

TASKS = 8


class Ledger:
    """Tasks that go on changing a store while its servers fail, and the results of their calls.

    :ivar acknowledged: the names of the images that were created
    :ivar unavailable: the errors of the calls that failed
    :ivar is_over: whether the tasks end after their present call
    """

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._numbers = itertools.count()
        self.acknowledged: set[str] = set()
        self.unavailable: list[StoreUnavailableError] = []
        self.is_over = False

    async def run(self, meanwhile: Callable[[], Awaitable[object]]) -> None:
        """Change the store from several tasks until ``meanwhile`` returns."""
        async with anyio.create_task_group() as tasks:
            for _ in range(TASKS):
                tasks.start_soon(self._work)
            await meanwhile()
            self.is_over = True

    async def _work(self) -> None:
        while not self.is_over:
            name = f"name-{next(self._numbers)}"
            data = name.encode() * 1000
            try:
                await self._store.create(names=[name], big_data={"manifest": data})
            except StoreUnavailableError as error:
                self.unavailable.append(error)
                await anyio.sleep(0.05)
            else:
                self.acknowledged.add(name)

    async def until_acknowledged(self, more: int) -> None:
        """Wait until ``more`` further changes are acknowledged."""
        enough = len(self.acknowledged) + more
        with anyio.fail_after(60):
            while len(self.acknowledged) < enough:
                await anyio.sleep(0.01)


async def check_whole(place: Place, ledger: Ledger) -> None:
    """Check that the store has each acknowledged image once, and that all images are whole."""
    async with ImageStore(place.location()) as store:
        images = await store.images()
        names = [name for image in images for name in image.names]
        assert len(names) == len(set(names)) == len(images)
        assert ledger.acknowledged <= set(names)
        for image in images:
            async with store.open_big_data(image.id, "manifest", verify=True) as reader:
                assert await reader.read() == image.names[0].encode() * 1000
        await store.collect_garbage()


@asynccontextmanager
async def killed(server: Server) -> AsyncIterator[None]:
    """Kill a server, and start it again after the block."""
    await run_sync(server.kill)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(server.start)


@contextmanager
def frozen(*servers: Server) -> Iterator[None]:
    """Stop servers with SIGSTOP for the block; their connections stay open."""
    stopped: list[int] = []
    try:
        for server in servers:
            assert server._process is not None
            _stop(server._process.pid, stopped)
        yield
    finally:
        for pid in reversed(stopped):
            with suppress(ProcessLookupError):  # it was ending when it was stopped
                os.kill(pid, signal.SIGCONT)


def _stop(pid: int, stopped: list[int]) -> None:
    """Stop a process, so that it starts no more children, and then its children."""
    os.kill(pid, signal.SIGSTOP)
    stopped.append(pid)
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        _stop(int(child), stopped)


async def fails(servers: Servers, call: Callable[[], Awaitable[object]]) -> None:
    """Check that a call raises ``StoreUnavailableError``, without secrets in its traceback."""
    with anyio.fail_after(60), pytest.raises(StoreUnavailableError) as caught:
        await call()
    text = "".join(traceback.format_exception(caught.value))
    assert servers.postgres.password not in text
    assert servers.objects.secret_key not in text


async def until_requested(servers: Servers, place: Place) -> None:
    """Return when a session waits for the store's lock."""
    statement = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with anyio.fail_after(60):
        while not await servers.execute(place, statement):
            await anyio.sleep(0.01)
