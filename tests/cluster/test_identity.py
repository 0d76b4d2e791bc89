"""A store notices when its database or its bucket was restored or copied, or is another store's."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import pytest
from anyio.to_thread import run_sync

from aimagestore import ImageStore, StoreIdentityError, StoreReadOnlyError

for package in ("psycopg", "obstore"):
    pytest.importorskip(package, reason="needs the clients: pip install 'aimagestore[cluster]'")

from aimagestore.cluster._blobs import Blobs, Marker

from ..support.blocking import acquire, engine_of
from ..support.stores import becomes_true
from .drills import (
    MARKER,
    NO_GRACE,
    Bucket,
    DrillLedger,
    Dump,
    adopted,
    assert_nothing_is_lost,
    assert_refused,
    fill,
    restored_elsewhere,
    until_collected,
)
from .ledger import TASKS

if TYPE_CHECKING:
    from aimagestore.cluster._local.postgres import Postgres

    from .servers import Place, Servers

SOON = timedelta(seconds=2)


@pytest.fixture
def other(servers: Servers) -> Iterator[Place]:
    """Another place."""
    with servers.new_place() as place:
        yield place


@pytest.fixture
def restored(servers: Servers, place: Place) -> Callable[[], Any]:
    """Restore a dump of the place's database as another database, for a block."""

    @asynccontextmanager
    async def restore() -> AsyncIterator[Place]:
        restoring = restored_elsewhere(servers, place)
        place_of_copy = await run_sync(restoring.__enter__)
        try:
            yield place_of_copy
        finally:
            with anyio.CancelScope(shield=True):
                await run_sync(restoring.__exit__, None, None, None)

    return restore


# The first opening


async def test_stores_that_open_a_new_place_at_once_give_it_one_identity(
    servers: Servers, place: Place
) -> None:
    async with anyio.create_task_group() as tasks:

        async def create(name: str) -> None:
            async with ImageStore(place.location()) as store:
                await fill(store, name)

        for number in range(8):
            tasks.start_soon(create, f"image{number}")
    await assert_nothing_is_lost(place)
    ((identity, blobs_url),) = await servers.execute(
        place, "SELECT identity::text, blobs_url FROM image_store"
    )
    assert blobs_url == place.blobs_url
    assert identity.encode() in (await run_sync(Bucket(servers, place).read))[MARKER]


async def test_a_first_opening_that_was_interrupted_is_completed(
    servers: Servers, place: Place
) -> None:
    async with ImageStore(place.location()):
        pass
    bucket = Bucket(servers, place)
    await run_sync(bucket.write, {})
    await servers.execute(place, "UPDATE image_store SET blobs_url = NULL")
    async with ImageStore(place.location(), read_only=True):
        pass
    async with ImageStore(place.location()) as store:
        await fill(store, "one")
    assert MARKER in await run_sync(bucket.read)
    await assert_nothing_is_lost(place)


async def test_a_new_place_can_be_read(place: Place) -> None:
    async with ImageStore(place.location(), read_only=True) as reader:
        assert await reader.images() == []
        async with ImageStore(place.location()) as store:
            await fill(store, "one")
            assert await reader.exists("one")
            with pytest.raises(StoreReadOnlyError):
                await reader.create("two")


# Another store's prefix


async def test_a_new_database_on_the_prefix_of_another_is_refused(
    place: Place, other: Place
) -> None:
    async with ImageStore(place.location()) as store:
        await fill(store, "one", "two")
        mistaken = replace(other, blobs_url=place.blobs_url)
        await assert_refused(mistaken, "another database uses")
        with pytest.raises(StoreIdentityError, match="knows none of the objects"):
            await adopted(mistaken)
    await assert_nothing_is_lost(place)


async def test_a_database_in_use_on_the_prefix_of_another_is_refused(
    place: Place, other: Place
) -> None:
    for each in (place, other):
        async with ImageStore(each.location()) as store:
            await fill(store, "one", "two")
    await assert_refused(replace(other, blobs_url=place.blobs_url), "another database uses")
    elsewhere = replace(place, blobs_url=f"{place.blobs_url}-mistyped")
    await assert_refused(elsewhere, "no marker of a store")


async def test_a_prefix_with_unknown_objects_and_no_marker_is_refused(
    servers: Servers, place: Place
) -> None:
    bucket = Bucket(servers, place)
    await run_sync(bucket.write, {uuid4().hex: b"data"})
    with pytest.raises(StoreIdentityError, match="knows none of the objects"):
        async with ImageStore(place.location()):
            pass
    await run_sync(bucket.write, {"notes.txt": b"mine"})
    async with ImageStore(place.location()) as store:
        await fill(store, "one")


async def test_a_database_without_an_identity_is_refused_without_its_objects(
    servers: Servers, place: Place
) -> None:
    async with ImageStore(place.location()) as store:
        await fill(store, "one")
    bucket = Bucket(servers, place)
    objects = await run_sync(bucket.read)
    del objects[MARKER]
    # As a migration of older tables leaves them.
    await servers.execute(
        place, "UPDATE image_store SET identity = NULL, blobs_url = NULL, collections = '{}'"
    )
    await run_sync(bucket.write, {})
    with pytest.raises(StoreIdentityError, match="none of the objects"):
        async with ImageStore(place.location()):
            pass
    await run_sync(bucket.write, objects)
    async with ImageStore(place.location()) as store:
        assert await store.big_data("one", "manifest") == b"one"


# Restored databases and copied buckets


async def test_a_restored_dump_is_refused_until_it_is_adopted(
    place: Place, restored: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ImageStore(place.location()) as store:
        await fill(store, "one")
        async with restored() as copy:
            await fill(store, "two")
            await assert_refused(copy, "is a copy, or was restored from a dump")
            await fill(store, "three")
            await adopted(copy)
            # From now on the original is refused what needs the bucket.
            await assert_refused(place, "another database uses")
            with pytest.raises(StoreIdentityError, match="another database uses"):
                await store.collect_garbage()
            monkeypatch.setattr("aimagestore.cluster._identity._RECHECK", 0)
            with pytest.raises(StoreIdentityError, match="another database uses"):
                await fill(store, "four")
            assert await store.big_data("two", "manifest") == b"two"
            await assert_nothing_is_lost(copy)
            async with ImageStore(copy.location()) as drill:
                assert [image.id for image in await drill.images()] == ["one"]


async def test_nothing_is_collected_in_a_grace_period_after_an_adoption(
    place: Place, restored: Callable[[], Any]
) -> None:
    async with ImageStore(place.location(grace_period=SOON)) as store:
        await fill(store, "one")
        async with restored() as copy:
            await fill(store, "two")
            await anyio.sleep(SOON.total_seconds() + 1)
            await adopted(copy)
            async with ImageStore(copy.location()) as drill:
                assert (await drill.collect_garbage(dry_run=True)).findings == ()
                assert (await drill.collect_garbage()).findings == ()
                assert await store.big_data("two", "manifest") == b"two"
                await until_collected(drill)
            await assert_nothing_is_lost(copy)


async def test_nothing_is_collected_in_a_grace_period_after_a_promotion(
    servers: Servers, place: Place
) -> None:
    async with ImageStore(place.location(grace_period=SOON)) as store:
        await fill(store, "one")
        await store.delete("one")
        await anyio.sleep(SOON.total_seconds() + 1)
        # The row has another timeline on a server that was promoted.
        await servers.execute(place, "UPDATE image_store SET timeline = '00000000'")
        assert (await store.collect_garbage(dry_run=True)).findings == ()
        assert (await store.collect_garbage()).findings == ()
        await until_collected(store)


async def test_a_copied_bucket_is_refused_until_it_is_adopted(
    servers: Servers, place: Place
) -> None:
    async with ImageStore(place.location()) as store:
        await fill(store, "one")
    copy = replace(place, blobs_url=f"{place.blobs_url}-copy")
    objects = await run_sync(Bucket(servers, place).read)
    await run_sync(Bucket(servers, copy).write, objects)
    await assert_refused(copy, "the bucket is a copy", reads=True)
    async with ImageStore(copy.location(), read_only=True) as reader:
        assert await reader.big_data("one", "manifest") == b"one"
    await assert_nothing_is_lost(copy)
    await adopted(copy)
    async with ImageStore(copy.location()) as store:
        await fill(store, "two")
    await assert_nothing_is_lost(copy)
    await assert_refused(place, "another database uses")


async def test_an_old_bucket_is_refused_by_a_newer_database_until_it_is_adopted(
    servers: Servers, place: Place
) -> None:
    bucket = Bucket(servers, place)
    async with ImageStore(place.location(grace_period=NO_GRACE)) as store:
        await fill(store, "one")
        objects = await run_sync(bucket.read)
        await store.create("two", big_data={"lost": b"two"})
        await run_sync(bucket.write, objects)
        await store.collect_garbage()
        await assert_nothing_is_lost(place, "lost")
        await run_sync(bucket.write, objects)
        with pytest.raises(StoreIdentityError, match="was restored"):
            await store.collect_garbage()
    await assert_refused(place, "was restored")
    await adopted(place)
    await assert_nothing_is_lost(place, "lost")
    async with ImageStore(place.location()) as store:
        await store.collect_garbage()
        assert await store.big_data("one", "manifest") == b"one"
    await assert_nothing_is_lost(place, "lost")


async def test_an_old_dump_is_refused_with_a_newer_bucket_until_it_is_adopted(place: Place) -> None:
    async with ImageStore(place.location(grace_period=NO_GRACE)) as store:
        await store.create("one", big_data={"kept": b"1", "replaced": b"2"})
        dump = await run_sync(Dump, place)
        await store.set_big_data("one", "replaced", b"new")
        await store.create("two", big_data={"kept": b"3"})
        await store.collect_garbage()
        await run_sync(dump.restore)
    await assert_refused(place, "a garbage collection that the database does not know")
    await adopted(place)
    await assert_nothing_is_lost(place, "replaced")
    async with ImageStore(place.location()) as store:
        await anyio.sleep(1.1)  # the object store tells the time in seconds
        assert len((await store.collect_garbage()).findings) == 2
        assert await store.big_data("one", "kept") == b"1"
    await assert_nothing_is_lost(place, "replaced")


# A comparison beside other calls


async def test_a_collection_that_begins_during_a_comparison_is_no_difference(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_marker = Blobs.read_marker
    is_reading, may_go_on = threading.Event(), threading.Event()

    def read_later(self: Blobs) -> Marker:
        if not is_reading.is_set():
            is_reading.set()
            assert may_go_on.wait(30)
        return read_marker(self)

    async with ImageStore(place.location()) as store:
        await fill(store, "one")
        for read_only in (False, True):
            is_reading.clear()
            may_go_on.clear()
            opening = ImageStore(place.location(), read_only=read_only)
            with monkeypatch.context() as patch:
                patch.setattr(Blobs, "read_marker", read_later)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(opening.__aenter__)
                    await run_sync(is_reading.wait, 30)
                    await store.collect_garbage()
                    may_go_on.set()
            assert await opening.big_data("one", "manifest") == b"one"
            await opening.aclose()


# A database that goes back in time


async def test_stores_in_use_notice_that_the_database_went_back(place: Place) -> None:
    location = place.location(grace_period=NO_GRACE)
    async with ImageStore(location) as store, ImageStore(location) as idle:
        await fill(store, "old")
        dump = await run_sync(Dump, place)
        await idle.get("old")
        ledger = DrillLedger(store)
        async with ledger.busy():
            await ledger.until_acknowledged(TASKS)
            await run_sync(dump.restore)
            await ledger.until_refused(TASKS)
        assert all("went back in time" in str(error) for error in ledger.refused)
        for call in (store.images, store.collect_garbage, store.touch, store.refresh):
            with pytest.raises(StoreIdentityError, match="open the store again"):
                await call()
        # It has seen no commit that was lost.
        await fill(idle, "new")
    await assert_nothing_is_lost(place)
    async with ImageStore(location) as store:
        assert [image.id for image in await store.images()] == ["old", "new"]
        await anyio.sleep(1.1)  # the object store tells the time in seconds
        assert len((await store.collect_garbage()).findings) >= TASKS
    await assert_nothing_is_lost(place)


async def until_busy_tasks_are_refused(
    store: ImageStore, happens: Callable[[], Awaitable[object]], problem: str
) -> None:
    """Change a store from several tasks, and check that all end with an error when this happens.

    :param problem: what each error says
    """
    ledger = DrillLedger(store)
    async with ledger.busy():
        await ledger.until_acknowledged(TASKS)
        await happens()
        await ledger.until_refused(TASKS)
    for error in ledger.refused:
        assert problem in str(error)


async def test_busy_stores_notice_an_adoption(place: Place) -> None:
    async with ImageStore(place.location()) as store:
        await until_busy_tasks_are_refused(store, lambda: adopted(place), "adopted")
    await assert_nothing_is_lost(place)


async def test_busy_stores_notice_that_another_database_has_their_prefix(
    place: Place, restored: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimagestore.cluster._identity._RECHECK", 0)
    async with ImageStore(place.location()) as store, AsyncExitStack() as stack:
        await fill(store, "one")
        copy = await stack.enter_async_context(restored())
        await until_busy_tasks_are_refused(store, lambda: adopted(copy), "another database uses")
        await assert_nothing_is_lost(copy)
    await adopted(place)
    await assert_nothing_is_lost(place)


async def test_busy_stores_notice_an_old_bucket(
    servers: Servers, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimagestore.cluster._identity._RECHECK", 0)
    bucket = Bucket(servers, place)
    async with ImageStore(place.location()) as store:
        await store.create("one", big_data={"kept": b"1"})
        objects = await run_sync(bucket.read)
        await store.create("two", big_data={"lost": b"2"})
        await store.collect_garbage()

        async def restore() -> None:
            await run_sync(bucket.write, {MARKER: objects[MARKER]})

        await until_busy_tasks_are_refused(store, restore, "was restored")
    await assert_refused(place, "was restored")


@pytest.mark.parametrize("more", [0, 1, 2, 3])
async def test_no_call_takes_the_commits_of_a_restored_database_for_those_it_has_seen(
    place: Place, more: int
) -> None:
    async with ImageStore(place.location()) as store:
        await store.create("one", metadata="old", big_data={"manifest": b"old"})
        dump = await run_sync(Dump, place)
        async with store.watch() as changes:
            await store.create("lost", names=["name"])
            await store.set_metadata("one", "lost")
            assert (await store.get("name")).id == "lost"
            for _ in range(2):
                await anext(changes)
            await run_sync(dump.restore)
            async with ImageStore(place.location()) as after:
                for number in range(more):
                    await after.set_metadata("one", str(number))
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: store.get("one"),
                lambda: store.get("name"),
                lambda: store.exists("lo"),
                lambda: store.by_digest("sha256:" + 64 * "0"),
                lambda: store.big_data("one", "manifest"),
                lambda: store.set_metadata("one", "new"),
                lambda: store.create("new", big_data={"manifest": b"new"}),
                lambda: store.transaction().__aenter__(),
                lambda: store.watch().__aenter__(),
                lambda: anext(changes),
                lambda: anext(aiter(store.iter_images())),
                store.images,
                store.snapshot,
                store.refresh,
                store.modified,
                store.touch,
                store.collect_garbage,
            ]
            history = engine_of(store).reader._history
            for call in calls:
                with pytest.raises(StoreIdentityError, match="went back in time"):
                    await call()
                history._problem = None  # so that the next call has to notice it too
    async with ImageStore(place.location()) as after:
        assert await after.metadata("one") == (str(more - 1) if more else "old")
        assert not await after.exists("lost")


async def begin_collection(store: ImageStore) -> Any:
    """Begin a collection, and return the iterator whose next step removes the first objects."""
    engine = engine_of(store)
    removals = engine.writer.garbage(dry_run=False)

    def remove() -> None:
        removal = next(removals)
        grant = acquire(engine.lock)
        try:
            list(removal(grant))
        finally:
            grant.release()

    for _ in range(2):
        await run_sync(remove)
    return removals


async def test_a_collection_ends_when_the_database_goes_back(place: Place) -> None:
    async with ImageStore(place.location(grace_period=NO_GRACE)) as store:
        await store.create("one", big_data={"manifest": b"1"})
        dump = await run_sync(Dump, place)
        await store.delete("one")
        removals = await begin_collection(store)
        await run_sync(dump.restore)
        with pytest.raises(StoreIdentityError, match="a garbage collection that the database does"):
            await run_sync(next, removals)
    await adopted(place)
    await assert_nothing_is_lost(place)


async def test_a_collection_ends_when_the_store_is_adopted(servers: Servers, place: Place) -> None:
    async with ImageStore(place.location(grace_period=NO_GRACE)) as store:
        await store.create("one", big_data={"manifest": b"1"})
        await store.delete("one")
        removals = await begin_collection(store)
        await adopted(place)
        with pytest.raises(StoreIdentityError, match="adopted"):
            await run_sync(next, removals)
        assert len(await run_sync(Bucket(servers, place).read)) == 2


async def test_open_stores_notice_an_adoption(place: Place) -> None:
    async with ImageStore(place.location()) as store, store.watch() as changes:
        await fill(store, "one")
        await anext(changes)
        await adopted(place)
        for call in (lambda: store.get("one"), lambda: fill(store, "two"), store.collect_garbage):
            with pytest.raises(StoreIdentityError, match="adopted"):
                await call()
        with pytest.raises(StoreIdentityError, match="adopted"):
            await anext(changes)
    async with ImageStore(place.location()) as store:
        assert [image.id for image in await store.images()] == ["one"]


@pytest.fixture
def standby(servers: Servers) -> Iterator[Postgres]:
    """A standby that follows the server asynchronously."""
    with servers.standby() as standby:
        yield standby
    servers.postgres.kill()
    servers.postgres.start()


def stop_following(standby: Postgres) -> None:
    """Disconnect a standby from the primary."""
    standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
    standby.execute("SELECT pg_reload_conf()")
    assert becomes_true(lambda: not standby.execute("SELECT 1 FROM pg_stat_wal_receiver"))


async def test_a_copy_that_is_promoted_beside_the_original_takes_nothing_from_it(
    servers: Servers, place: Place, standby: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator makes such a copy to recover to a point in time on another server."""
    monkeypatch.setattr("aimagestore.cluster._identity._RECHECK", 0)
    copied = servers.by_way_of(place, standby.port)
    async with ImageStore(place.location(grace_period=SOON)) as store:
        await fill(store, "one", "two")
        async with ImageStore(copied.location(), read_only=True) as reader:
            with anyio.fail_after(30):
                while not await reader.exists("two"):
                    await anyio.sleep(0.01)
        await run_sync(standby.execute, "SELECT pg_promote()")
        await fill(store, "three")
        async with ImageStore(copied.location()) as drill:
            await drill.delete("one")
            await anyio.sleep(SOON.total_seconds() + 1)
            assert (await drill.collect_garbage()).findings == ()
            for call in (partial(fill, store, "four"), store.collect_garbage):
                with pytest.raises(StoreIdentityError, match="was restored"):
                    await call()
            for name in ("one", "two", "three"):
                assert await store.big_data(name, "manifest") == name.encode()
            await adopted(place)
            for call in (partial(fill, drill, "four"), drill.collect_garbage):
                with pytest.raises(StoreIdentityError, match="another database uses"):
                    await call()
    await assert_nothing_is_lost(place)


async def test_busy_stores_notice_that_a_standby_without_the_last_commits_took_over(
    servers: Servers, place: Place, standby: Postgres
) -> None:
    both = servers.on_primary_of(place, standby)
    async with ImageStore(both.location(grace_period=SOON)) as store:
        ledger = DrillLedger(store)
        async with ledger.busy():
            await ledger.until_acknowledged(TASKS)
            await run_sync(stop_following, standby)
            await ledger.until_acknowledged(TASKS)
            await run_sync(servers.postgres.kill)
            await run_sync(standby.execute, "SELECT pg_promote()")
            await ledger.until_refused(1)
        assert "went back in time" in str(ledger.refused[0])
    await assert_nothing_is_lost(both)
    async with ImageStore(both.location()) as store:
        await fill(store, "after")
        await anyio.sleep(SOON.total_seconds() + 1)
        assert (await store.collect_garbage()).findings == ()
        await until_collected(store)
        assert len(await store.images()) < len(ledger.acknowledged)
    await assert_nothing_is_lost(both)
