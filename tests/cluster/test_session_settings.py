"""Settings of the role, the database or the environment do not change what a store reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import pytest
from anyio.to_thread import run_sync

from aimagestore import ImageStore, check
from aimagestore.cluster import migrate

from .drills import MARKER, Bucket, shorten_grace_period, until_collected
from .ledger import until_requested

if TYPE_CHECKING:
    from .servers import Place, Servers


async def assert_works(place: Place) -> None:
    """Check that texts, bytes and dates are written and read as they are."""
    async with ImageStore(place.location()) as store:
        image = await store.create(
            "one", names=["名前"], metadata="Größe →", big_data={"ключ": b"1"}
        )
        assert await store.get("名前") == image
        assert await store.big_data("名前", "ключ") == b"1"
        assert (await check(place.location())).ok
        await store.delete("名前")
        await shorten_grace_period(place)
        assert [finding.key for finding in (await until_collected(store)).findings] == ["ключ"]


@pytest.mark.parametrize(
    "setting",
    [
        "client_encoding = 'LATIN1'",
        "client_encoding = 'SQL_ASCII'",
        "datestyle = 'German'",
        "datestyle = 'SQL, DMY'",
        "standard_conforming_strings = off",
    ],
)
async def test_a_setting_of_the_database_changes_nothing(
    servers: Servers, place: Place, setting: str
) -> None:
    await servers.execute(place, f"ALTER DATABASE {place.database} SET {setting}")
    await assert_works(place)


async def test_an_encoding_in_the_environment_changes_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    await assert_works(place)


@pytest.fixture(params=["read committed", "repeatable read", "serializable"])
def isolated(request: pytest.FixtureRequest, servers: Servers, place: Place) -> Place:
    """A place whose database has this isolation level by default."""
    statement: Any = (
        f"ALTER DATABASE {place.database} SET default_transaction_isolation = '{request.param}'"
    )
    servers.postgres.execute(statement)
    return place


# As a garbage collection marks an object that it is about to remove.
_CONDEMN = """
    INSERT INTO image_items (blob, image_id, key, size, removed)
    VALUES (%s, '', 'pending', 1, clock_timestamp())
"""


async def test_a_change_sees_what_was_condemned_while_it_waited_for_the_lock(
    servers: Servers, isolated: Place
) -> None:
    async with (
        ImageStore(isolated.location()) as store,
        ImageStore(isolated.location()) as other,
        store.stage(b"data") as staged,
    ):
        (blob,) = set(await run_sync(Bucket(servers, isolated).read)) - {MARKER}

        async def create() -> None:
            with pytest.raises(ValueError, match="stage it again"):
                await store.create("one", big_data={"key": staged})

        async with anyio.create_task_group() as tasks, other.transaction():
            tasks.start_soon(create)
            await until_requested(servers, isolated)
            await servers.execute(isolated, _CONDEMN, blob)
        assert await store.images() == []


async def test_two_migrations_at_once_make_the_tables_once(
    servers: Servers, isolated: Place
) -> None:
    await servers.execute(isolated, "DROP TABLE image_store, images, image_names, image_digests")
    await servers.execute(isolated, "DROP TABLE image_items, image_commits, image_changes")
    hold = "SELECT pg_advisory_lock(hashtext('aimagestore migrate'))"
    waiting = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    async with anyio.create_task_group() as tasks:
        with psycopg.connect(isolated.records_url, autocommit=True) as holder:
            holder.execute(hold)
            for _ in range(2):
                tasks.start_soon(run_sync, migrate, isolated.records_url)
            with anyio.fail_after(60):
                while len(await servers.execute(isolated, waiting)) < 2:
                    await anyio.sleep(0.01)
    async with ImageStore(isolated.location()) as store:
        assert await store.images() == []
