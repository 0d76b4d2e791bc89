"""Time limits that an operator has set for a role do not end the calls of a store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.to_thread import run_sync

from aimagestore import ImageStore

from ..support.blocking import acquire, engine_of

if TYPE_CHECKING:
    from .servers import Place, Servers

pytest.importorskip("psycopg")

LIMIT = 1.0
"""Seconds; more than a short transaction takes on a busy machine."""

LONGER = 2 * LIMIT
SLEEP = f"SELECT pg_sleep({LONGER})"

LIMITS = [
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
]


def limit(servers: Servers, place: Place, setting: str) -> None:
    """Set a time limit for the role in a place's database."""
    statement: Any = (
        f"ALTER ROLE postgres IN DATABASE {place.database} SET {setting} = '{int(1000 * LIMIT)}ms'"
    )
    servers.postgres.execute(statement)


@pytest.fixture
def limited(servers: Servers, place: Place) -> Place:
    """A place whose role has every limit that the server knows."""
    known = servers.postgres.execute("SELECT name FROM pg_settings WHERE name = ANY(%s)", [LIMITS])
    for (setting,) in known:
        limit(servers, place, setting)
    return place


@pytest.fixture(params=["direct", "pooler"])
def way(request: pytest.FixtureRequest, servers: Servers, limited: Place) -> Iterator[Place]:
    """That place, directly or by way of a pooler that ignores the options of clients."""
    if request.param == "direct":
        yield limited
        return
    from .pooler import Pooler

    with Pooler(limited.records_url, shares=False) as pooler:
        yield servers.by_way_of(limited, pooler.port)


async def test_a_wait_for_the_lock_may_be_longer_than_every_limit(way: Place) -> None:
    async with (
        ImageStore(way.location()) as holder,
        ImageStore(way.location()) as store,
        anyio.create_task_group() as tasks,
    ):
        async with holder.transaction() as transaction:
            tasks.start_soon(store.create, "waited")
            await anyio.sleep(LONGER)
            await transaction.create("held")
        with anyio.fail_after(20):
            while len(await store.images()) < 2:
                await anyio.sleep(0.01)


async def test_a_statement_under_the_lock_may_be_longer_than_every_limit(way: Place) -> None:
    async with ImageStore(way.location()) as store:
        engine = engine_of(store)
        grant = await run_sync(acquire, engine.lock)
        await run_sync(grant.held.session.execute, SLEEP)
        await run_sync(grant.release)


async def test_a_statement_may_be_longer_than_the_limit_for_statements(
    servers: Servers, place: Place
) -> None:
    await run_sync(limit, servers, place, "statement_timeout")
    async with ImageStore(place.location()) as store:
        await run_sync(engine_of(store)._sessions.call, lambda session: session.execute(SLEEP))


async def test_a_wait_behind_a_pooler_may_be_longer_than_the_deadline(
    servers: Servers, place: Place
) -> None:
    """The server confirms the wait, although the client knows the session by another process ID."""
    from .pooler import Pooler

    with Pooler(place.records_url, shares=False) as pooler:
        there = servers.by_way_of(place, pooler.port)
        async with (
            ImageStore(place.location()) as holder,
            ImageStore(there.location(deadline=1.0)) as store,
            anyio.create_task_group() as tasks,
        ):
            async with holder.transaction():
                tasks.start_soon(store.create, "waited")
                await anyio.sleep(2.5)
            with anyio.fail_after(20):
                while not await holder.exists("waited"):
                    await anyio.sleep(0.01)
