"""Sessions have one owner at a time, keep their deadlines, and are closed when they are idle."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from aimagestore import ImageStore

pytest.importorskip("psycopg")

from aimagestore.cluster._sessions import Session, Watchdog

from ..support.stores import ClusterStore, until
from .pooler import Pooler

if TYPE_CHECKING:
    from .servers import Place, Servers


class Watched:
    """Stands for a session, and records that the watchdog has shut it down."""

    def __init__(self) -> None:
        self.is_shut_down = threading.Event()

    def _end(self) -> None:
        self.is_shut_down.set()


def test_the_watchdog_works_again_after_its_thread_could_not_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aimagestore.cluster._sessions._IDLE", 0.01)
    watchdog = Watchdog()
    first: Any = Watched()
    second: Any = Watched()

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="new thread"):
            watchdog.watch(first, time.monotonic())
    watchdog.watch(second, time.monotonic())
    assert second.is_shut_down.wait(20)
    assert not first.is_shut_down.is_set()


async def test_a_session_is_never_used_by_a_thread_whose_transaction_is_over(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled read is still about to make its request when the transaction ends."""
    real = Session.limited
    mutex = threading.Lock()
    using: dict[Session, int] = {}
    shared: list[Session] = []

    @contextmanager
    def limited(session: Session) -> Iterator[Any]:
        with mutex:
            using[session] = using.get(session, 0) + 1
            if using[session] > 1:
                shared.append(session)
        try:
            time.sleep(0.02)  # meanwhile another thread could use the session
            with real(session) as connection:
                yield connection
        finally:
            with mutex:
                using[session] -= 1

    async with ImageStore(place.location()) as store:
        await store.create("one")
        monkeypatch.setattr(Session, "limited", limited)
        for _ in range(5):
            with pytest.raises(ZeroDivisionError):
                async with store.transaction() as tx:
                    with anyio.move_on_after(0.01):
                        await tx.get("one")
                    raise ZeroDivisionError
            await store.set_metadata("one", "text")
    assert not shared


async def test_many_stores_share_the_few_sessions_of_a_small_pooler(
    servers: Servers, place: Place
) -> None:
    """An idle store keeps no session."""
    with Pooler(place.records_url, shares=False, limit=5) as pooler:
        location = servers.by_way_of(place, pooler.port).location(deadline=30)
        async with AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(ImageStore(location)) for _ in range(12)]
            for _ in range(2):
                async with anyio.create_task_group() as tasks:
                    for store in stores:
                        tasks.start_soon(store.create)
            assert len(await stores[0].images()) == 24


async def test_idle_sessions_are_closed_after_a_while(place: Place) -> None:
    seen = ClusterStore(place)
    try:
        async with ImageStore(place.location()) as store:
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(store.images)
            assert seen.open_handles()
            await until(lambda: not seen.open_handles())
            assert await store.images() == []
            assert seen.open_handles() == 1
    finally:
        seen.close()
