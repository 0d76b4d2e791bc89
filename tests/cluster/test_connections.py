"""Interrupted calls of a cluster's store hold no connection to the object store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from aimagestore import ImageStore

from ..support.connections import connections_to, discard_clients
from ..support.interruptions import Interruption, by_scope, by_task_cancel
from ..support.stores import library_threads, until

if TYPE_CHECKING:
    from ..support.requests import Requests
    from .proxy import Proxy
    from .servers import Place

LARGE = b"x" * 9_000_000
"""More than one part of an upload, and more than the buffers of a connection take."""

Call = Callable[[ImageStore], Awaitable[object]]


async def read(store: ImageStore) -> None:
    await store.big_data("one", "small")


async def stream(store: ImageStore) -> None:
    async with store.open_big_data("one", "large") as reader:
        await reader.read(100_000)


async def write(store: ImageStore) -> None:
    await store.set_big_data("one", "new", LARGE)


async def stage(store: ImageStore) -> None:
    async with store.stage() as staged:
        await staged.write(b"content")
        await store.set_big_data("one", "new", staged)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    """Interrupts calls during their requests."""
    from ..support.requests import Requests

    return Requests(monkeypatch)


async def at_every_step(place: Place, call: Call, ways: Sequence[Interruption]) -> None:
    """Interrupt a call in each of these ways at each of its steps, on a store of its own."""
    async with ImageStore(place.location()) as store:
        await store.create("one", big_data={"small": b"small", "large": LARGE})
        for interrupt in ways:
            step = 1
            while await interrupt(lambda: call(store), step):
                step += 1


@pytest.mark.parametrize("call", [read, stream, write, stage])
async def test_an_interrupted_call_holds_no_connection(
    place: Place, to_objects: Proxy, requests: Requests, call: Call, anyio_backend: Any
) -> None:
    if anyio_backend[0] == "trio":
        ways = [requests.by_scope, by_scope]
    else:
        ways = [requests.by_task_cancel, by_task_cancel]
    await at_every_step(place, call, ways)
    assert connections_to(to_objects.port), "nothing was requested"
    # Removers go on after a store is closed.
    await until(lambda: not library_threads())
    discard_clients()
    await until(lambda: not connections_to(to_objects.port), seconds=10)
