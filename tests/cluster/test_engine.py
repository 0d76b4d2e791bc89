"""The cluster engine: tables, objects, garbage, the cache, and secrets in messages."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.to_thread import run_sync

from aimagestore import (
    AmbiguousImageError,
    FindingKind,
    ImageStore,
    ImageUnknownError,
    LockTimeoutError,
    StoreSchemaError,
    StoreUnavailableError,
    WatchExpiredError,
    check,
)

for package in ("psycopg", "obstore"):
    pytest.importorskip(package, reason="needs the clients: pip install 'aimagestore[cluster]'")

import psycopg

from aimagestore._core import mutations
from aimagestore.cluster import SCHEMA_VERSION, ClusterLocation, _garbage, _writing, migrate
from aimagestore.cluster._addresses import BucketAddress
from aimagestore.cluster._blobs import Blob, Blobs, Marker
from aimagestore.cluster._lookups import Lookups
from aimagestore.cluster._views import LockedView

from ..support.blocking import acquire, engine_of
from .drills import NO_GRACE, shorten_grace_period, until_collected
from .ledger import until_requested

if TYPE_CHECKING:
    from .proxy import Proxy
    from .servers import Place, Servers


@pytest.fixture
async def store(place: Place) -> AsyncIterator[ImageStore]:
    """A new store, open."""
    async with open_store(place) as store:
        yield store


def open_store(place: Place, **options: Any) -> ImageStore:
    return ImageStore(place.location(**options))


# Tables


async def test_a_database_without_tables_is_refused(servers: Servers, place: Place) -> None:
    await servers.execute(place, "DROP TABLE image_store CASCADE")
    with pytest.raises(StoreSchemaError, match="aimagestore cluster migrate"):
        async with open_store(place):
            pass


@pytest.mark.parametrize(("version", "advice"), [(0, "cluster migrate"), (99, "newer aimagestore")])
async def test_tables_of_another_version_are_refused(
    servers: Servers, place: Place, version: int, advice: str
) -> None:
    await servers.execute(place, "UPDATE image_store SET schema_version = %s", version)
    with pytest.raises(StoreSchemaError, match=advice):
        async with open_store(place):
            pass


def test_migrating_twice_changes_nothing(servers: Servers, place: Place) -> None:
    assert migrate(place.records_url) == SCHEMA_VERSION
    servers.postgres.execute("UPDATE image_store SET schema_version = 99", (), place.database)
    with pytest.raises(StoreSchemaError, match="newer"):
        migrate(place.records_url)


def test_a_migration_does_not_wait_long_for_others_that_use_the_tables(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimagestore.cluster._schema._TABLES_TIMEOUT", 0.1)
    with psycopg.connect(place.records_url) as reader:
        reader.execute("UPDATE image_store SET schema_version = %s", [SCHEMA_VERSION - 1])
        reader.commit()
        reader.execute("SELECT FROM image_items")
        with pytest.raises(StoreUnavailableError, match="migrate again"):
            migrate(place.records_url)


def test_a_database_of_another_encoding_is_refused(servers: Servers) -> None:
    servers.postgres.execute(
        "CREATE DATABASE latin TEMPLATE template0 ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    try:
        with pytest.raises(StoreSchemaError, match="UTF8"):
            migrate(servers.postgres.url("latin"))
    finally:
        servers.postgres.drop_database("latin")


# Addresses


def test_a_location_is_a_value() -> None:
    one, two = (ClusterLocation("postgresql://host/db", "s3://bucket") for _ in range(2))
    assert one == two
    assert len({one, two, ClusterLocation("postgresql://host/db", "s3://bucket", deadline=5)}) == 2
    with pytest.raises(AttributeError):
        one.deadline = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("grace_period", timedelta(0), ValueError),
        ("grace_period", -timedelta(days=1), ValueError),
        ("grace_period", 3600, TypeError),
        ("cache_size", -1, ValueError),
        ("cache_size", 1.5, TypeError),
        ("deadline", 0, ValueError),
        ("deadline", float("nan"), ValueError),
        ("deadline", 1e7, ValueError),
        ("deadline", True, TypeError),
    ],
)
def test_a_bad_option_of_a_location_is_refused(
    option: str, value: Any, error: type[Exception]
) -> None:
    options = {option: value}
    with pytest.raises(error, match=option):
        ClusterLocation("postgresql://host/db", "s3://bucket", **options)


async def test_a_refused_login_is_reported_at_once(servers: Servers, place: Place) -> None:
    where = place.records_url.replace("postgres@", "postgres:s3cret@")
    with pytest.raises(StoreUnavailableError, match="authentication failed") as caught:
        with anyio.fail_after(5):
            async with ImageStore(ClusterLocation(where, place.blobs_url)):
                pass
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "allows", "is_open"),
    [
        ("http://example.com", "", False),
        ("http://10.0.0.1:80", "false", False),
        ("http://example.com", "true", True),
        ("https://example.com", "", True),
        ("http://localhost:1", "", True),
        ("http://[::1]:1", "", True),
    ],
)
def test_plain_http_is_allowed_on_this_machine_only(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, allows: str, is_open: bool
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ALLOW_HTTP", allows)
    bucket = BucketAddress.of("s3://bucket/prefix/")
    if is_open:
        assert bucket.open(attempt=5, retries=5) is not None
    else:
        with pytest.raises(ValueError, match="AWS_ALLOW_HTTP"):
            bucket.open(attempt=5, retries=5)


def test_a_client_is_made_once_for_each_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making one blocks the event loop."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:1")
    bucket = BucketAddress.of("s3://bucket/prefix")
    client = bucket.open(attempt=5, retries=5)
    assert BucketAddress.of("s3://bucket/prefix").open(attempt=5, retries=5) is client
    assert bucket.open(attempt=5, retries=0) is not client
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:2")
    assert bucket.open(attempt=5, retries=5) is not client


async def test_a_location_opens_any_number_of_stores(place: Place) -> None:
    location = place.location()
    for _ in range(2):
        async with ImageStore(location) as one, ImageStore(location) as two:
            image = await one.create()
            assert await two.get(image.id) == image
            await two.delete(image.id)


# Names and keys that PostgreSQL or a pattern would not take as they are


async def test_texts_that_postgres_would_refuse_are_stored(store: ImageStore) -> None:
    names = ["a\0b", "x" * 100_000, "\U0010ffff", "'; DROP TABLE images; --", "%s"]
    keys = ["a\0b", "Ä", "'"]
    image = await store.create(names=names, metadata="\0", big_data={k: k.encode() for k in keys})
    assert image.names == tuple(names)
    for name in names:
        assert await store.lookup(name) == image.id
    for key in keys:
        assert await store.big_data(image.id, key) == key.encode()
    for ref in ["a\0", "\0", "\ud800", "%", "_"]:
        assert not await store.exists(ref)
    await store.set_names(image.id, ["other"])
    assert not await store.exists(names[0])


async def test_a_prefix_is_not_a_pattern(store: ImageStore) -> None:
    for image_id in ("a%", "a_", "a", "ab\U0010ffff", "b"):
        await store.create(image_id)
    assert await store.lookup("ab") == "ab\U0010ffff"
    assert await store.lookup("a") == "a"
    await store.delete("a")
    with pytest.raises(AmbiguousImageError) as caught:
        await store.get("a")
    assert caught.value.candidates == ("a%", "a_", "ab\U0010ffff")


# Group commits


async def test_a_batch_takes_few_statements(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create("one", names=["moves"])
    statements: list[object] = []
    execute = psycopg.Connection.execute

    def count(connection: Any, statement: Any, *args: Any, **options: Any) -> Any:
        statements.append(statement)
        return execute(connection, statement, *args, **options)

    monkeypatch.setattr(psycopg.Connection, "execute", count)
    async with anyio.create_task_group() as tasks:
        for i in range(64):
            tasks.start_soon(partial(store.create, f"id{i}", names=[f"name{i}"]))
            tasks.start_soon(store.add_names, "one", ["moves", f"other{i}"])
    assert len(statements) <= 40  # for 128 changes
    assert len(await store.images()) == 65


# The cache


async def test_cached_images_and_names_are_kept_up_to_date(place: Place, store: ImageStore) -> None:
    async with open_store(place) as other:
        await store.create("one", names=["a"], metadata="1")
        for i in range(20):
            assert (await other.get("a")).id == "one"
            assert await other.metadata("one") == str(i + 1)
            await store.set_metadata("one", str(i + 2))
        await store.create("a")  # its ID is the name that was cached
        assert await other.lookup("a") == "a"
        await store.delete("a")
        assert await other.lookup("a") == "one"
        await store.set_names("one", ["b"])
        with pytest.raises(ImageUnknownError):
            await other.get("a")


async def test_a_cached_lookup_reads_the_changes_since_and_nothing_else(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create("one", names=["a"])
    await store.get("one")
    await store.get("a")
    monkeypatch.delattr(Lookups, "find")
    assert (await store.get("one")).names == ("a",)
    assert (await store.get("a")).id == "one"


async def test_too_many_changes_empty_the_cache(
    place: Place, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimagestore.cluster._lookups.CHANGES_MAX", 3)
    await store.create("one")
    async with open_store(place) as other:
        assert await other.metadata("one") == ""
        await store.set_metadata("one", "new")
        for i in range(10):
            await store.create(f"other{i}")
        assert await other.metadata("one") == "new"


async def test_a_small_cache_drops_images_and_reads_them_again(
    place: Place, store: ImageStore
) -> None:
    await store.create("large", metadata="x" * 10_000)
    for i in range(50):
        await store.create(f"small{i:02}")
    async with open_store(place, cache_size=5_000) as other:
        for _ in range(2):
            for image in await store.images():
                assert await other.get(image.id) == image
        cache = engine_of(other).reader._cache
        assert 1 <= len(cache._records) <= 10
        assert "large" not in cache._records
    async with open_store(place, cache_size=0) as other:
        assert (await other.get("small01")).id == "small01"


async def test_a_name_that_moved_from_a_record_too_large_for_the_cache_is_found(
    place: Place, store: ImageStore
) -> None:
    await store.create("one", names=["a"], metadata="x" * 10_000)
    await store.create("two")
    async with open_store(place, cache_size=5_000) as other:
        assert await other.lookup("a") == "one"
        await store.add_names("two", ["a"])
        await store.set_metadata("one", "")
        assert await other.lookup("one") == "one"
        assert await other.lookup("a") == "two"


async def test_lookups_of_one_read_see_one_commit(place: Place, store: ImageStore) -> None:
    await store.create("one", metadata="0")
    await store.create("two", metadata="0")
    engine = engine_of(store)
    looks: list[str] = []

    async def change() -> None:
        async with open_store(place) as other, other.transaction() as tx:
            await tx.set_metadata("one", "1")
            await tx.set_metadata("two", "1")

    def look(view: Any) -> tuple[str, str]:
        first: str = view.get("one").metadata
        looks.append(first)
        if len(looks) == 1:
            anyio.from_thread.run(change)
        return first, view.get("two").metadata

    assert await run_sync(engine.reader.read, look) == ("1", "1")
    assert looks == ["0", "1"]


# Big data and garbage


async def test_replaced_and_deleted_items_are_garbage_after_the_grace_period(place: Place) -> None:
    async with open_store(place) as store, open_store(place) as other:
        await store.create("one", big_data={"a": b"1", "b": b"22"})
        await store.create("two", big_data={"a": b"333"})
        await store.set_big_data("one", "a", b"4444")
        await store.delete("two")
        assert (await store.collect_garbage()).findings == ()
        await shorten_grace_period(place)
        figures: list[tuple[int, int]] = []
        report = await other.collect_garbage(progress=lambda *each: figures.append(each))
        found = {(f.kind, f.id, f.key) for f in report.findings}
        assert found == {
            (FindingKind.ITEM_UNLISTED, "one", "a"),
            (FindingKind.ITEM_UNLISTED, "two", "a"),
        }
        assert (report.images, report.bytes) == (1, 4)
        assert figures[-1] == (2, 2)
        assert (await other.collect_garbage()).findings == ()
        assert await store.big_data("one", "a") == b"4444"
        assert await store.big_data("one", "b") == b"22"


async def test_uploads_of_a_dead_process_are_garbage(servers: Servers, place: Place) -> None:
    bucket = servers.objects.bucket(place.blobs_url.rpartition("/")[2])
    await run_sync(bucket.put, "notes.txt", b"mine")
    async with open_store(place, grace_period=NO_GRACE) as store:
        engine = engine_of(store)
        staged = await run_sync(engine.items.stage)
        await run_sync(staged.sink.write, b"12345")
        await run_sync(staged.finish)
        (finding,) = (await until_collected(store)).findings
        assert finding.kind == FindingKind.TEMPORARY_STALE
        assert finding.path == f"{place.blobs_url}/{staged.id.hex}"
        with pytest.raises(ValueError, match="stage it again"):
            await store._core.submit(mutations.create().with_items({"key": staged}))
        assert await store.images() == []
        image = await store.create(big_data={"key": b"new"})
        assert await store.big_data(image.id, "key") == b"new"
    notes = await run_sync(bucket.get, "notes.txt")
    assert bytes(await run_sync(notes.bytes)) == b"mine"


async def test_staged_data_is_safe_from_an_object_store_with_a_wrong_clock(
    place: Place, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object's age is measured by that clock alone."""
    pages, read_marker = Blobs.pages, Blobs.read_marker
    late = timedelta(days=20)

    def late_pages(blobs: Blobs) -> Iterator[list[Blob]]:
        for page in pages(blobs):
            yield [blob._replace(written=blob.written - late) for blob in page]

    def late_marker(blobs: Blobs) -> Marker:
        marker = read_marker(blobs)
        assert marker.written is not None
        return marker._replace(written=marker.written - late)

    monkeypatch.setattr(Blobs, "pages", late_pages)
    monkeypatch.setattr(Blobs, "read_marker", late_marker)
    async with store.stage(b"data") as item:
        assert (await store.collect_garbage()).findings == ()
        await store.create("one", big_data={"key": item})
    assert await store.big_data("one", "key") == b"data"


@pytest.mark.parametrize("minutes", [-2, 2])
async def test_data_that_may_be_expired_is_looked_up_before_use(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    """Either two minutes have passed, or the clock of this machine was set back."""
    present = time.time
    engine = engine_of(store)
    async with store.stage(b"collected") as collected, store.stage() as there:
        await run_sync(engine.items._blobs.delete, await objects_of(engine))
        await there.write(b"there")
        monkeypatch.setattr(time, "time", lambda: present() + 60 * minutes)
        with pytest.raises(ValueError, match="stage it again"):
            await store.create("one", big_data={"collected": collected})
        await store.create("two", big_data={"there": there})
    assert [image.id for image in await store.images()] == ["two"]
    assert await store.big_data("two", "there") == b"there"


async def test_a_transaction_refuses_staged_data_that_was_collected(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database records collected objects for twice as long as staged data can be used."""
    present = time.time
    async with (
        open_store(place, grace_period=NO_GRACE) as store,
        store.stage(b"collected") as collected,
    ):
        await until_collected(store)
        async with store.stage(b"there") as there:
            monkeypatch.setattr(time, "time", lambda: present() + 3600)
            async with store.transaction() as transaction:
                with pytest.raises(ValueError, match="stage it again"):
                    await transaction.create("one", big_data={"collected": collected})
                await transaction.create("two", big_data={"there": there})
        async with store.stage(b"there") as there:
            monkeypatch.setattr(time, "time", lambda: present() + 31 * 86400)
            async with store.transaction() as transaction:
                with pytest.raises(ValueError, match="stage it again"):
                    await transaction.create("three", big_data={"there": there})
    async with open_store(place) as store:
        assert [image.id for image in await store.images()] == ["two"]


async def test_a_missing_object_is_a_missing_file(place: Place, store: ImageStore) -> None:
    await store.create("one", big_data={"key": b"data"})
    engine = engine_of(store)
    blobs = await objects_of(engine)
    await run_sync(engine.items._blobs.delete, blobs)
    with pytest.raises(FileNotFoundError, match=blobs[0].hex):
        await store.big_data("one", "key")


async def test_a_check_finds_missing_altered_and_orphaned_objects(
    place: Place, store: ImageStore
) -> None:
    items = {key: key.encode() for key in ("fine", "lost", "short", "altered", "unlisted")}
    await store.create("one", big_data=items)
    engine = engine_of(store)
    blobs = engine.items._blobs

    def damage() -> None:
        rows = engine._sessions.call(
            lambda c: c.execute("SELECT key, blob FROM image_items").fetchall()
        )
        objects = {key.decode(): blob for key, blob in rows}
        blobs.delete([objects["lost"]])
        for key, data in [("short", b"s"), ("altered", b"ALTERED")]:
            writer = blobs.writer(objects[key])
            writer.write(data)
            writer.close()
        engine._sessions.call(lambda c: c.execute("DELETE FROM image_items WHERE key = 'unlisted'"))

    await run_sync(damage)
    await shorten_grace_period(place)
    report = await check(place.location())
    with anyio.fail_after(10):  # the object store's times are whole seconds
        while len(report.findings) < 5:
            report = await check(place.location())
    assert {(finding.kind, finding.key) for finding in report.findings} == {
        (FindingKind.ITEM_MISSING, "lost"),
        (FindingKind.ITEM_SHORT, "short"),
        (FindingKind.ITEM_ALTERED, "altered"),
        (FindingKind.ITEM_MISSING, "unlisted"),
        (FindingKind.TEMPORARY_STALE, ""),
    }
    assert (report.images, report.items) == (1, 5)
    quick = await check(place.location(), verify=False)
    assert [finding.key for finding in quick.findings] == ["lost", "short", "unlisted", ""]


# Watching


# Commits of two days ago, each with a change.
_OLD_COMMITS = """
    UPDATE image_store SET version = 256;
    INSERT INTO image_commits
        SELECT n, gen_random_uuid(), now() FROM generate_series(2, 256) n;
    UPDATE image_commits SET made = made - interval '2 days';
    INSERT INTO image_changes
        SELECT n, 1, 'image' || n, 'changed' FROM generate_series(2, 256) n
"""


async def test_a_commit_forgets_some_of_many_old_changes_and_a_collection_all(
    servers: Servers, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (_writing, _garbage):
        monkeypatch.setattr(module, "FORGOTTEN_AT_ONCE", 10)

    async def numbers() -> list[int]:
        (row,) = await servers.execute(
            place,
            "SELECT (SELECT count(*) FROM image_changes), (SELECT count(*) FROM image_commits)",
        )
        return list(row)

    async with ImageStore(place.location()):
        pass
    await servers.execute(place, _OLD_COMMITS)
    changes, commits = await numbers()
    async with ImageStore(place.location()) as store:
        await store.create("one")
        left = await numbers()
        assert changes - 15 < left[0] <= changes - 5
        assert commits - 15 < left[1] <= commits - 5
        await store.collect_garbage()
        assert await numbers() == [1, 2]
        await store.create("two")
        assert [image.id for image in await store.images()] == ["one", "two"]


async def test_a_watch_that_is_too_far_behind_expires(place: Place, store: ImageStore) -> None:
    await shorten_grace_period(place)
    async with open_store(place) as other, store.watch() as changes:
        await other.create("one")
        await other.create("two")
        await other.collect_garbage()
        with pytest.raises(WatchExpiredError, match="start another"):
            await anext(changes)
    async with store.watch() as changes:
        await store.delete("one")
        assert (await anext(changes)).kind == "deleted"


async def test_a_watch_yields_the_net_changes_of_others(place: Place, store: ImageStore) -> None:
    await store.create("kept")
    await store.create("deleted")
    async with open_store(place) as other, store.watch() as changes:
        await other.create("brief")
        await other.delete("brief")
        await other.create("new")
        await other.set_metadata("new", "text")
        await other.set_metadata("deleted", "text")
        await other.delete("deleted")
        await other.delete("kept")
        await other.create("kept", metadata="anew")
        events = [await anext(changes) for _ in range(3)]
    assert {(c.kind, c.id, c.image.metadata if c.image else None) for c in events} == {
        ("created", "new", "text"),
        ("deleted", "deleted", None),
        ("changed", "kept", "anew"),
    }


async def test_a_watch_yields_own_changes_one_by_one(place: Place, store: ImageStore) -> None:
    await store.create("one")
    async with open_store(place) as other, store.watch() as changes:
        for number, who in zip(range(6), itertools.cycle([store, other]), strict=False):
            await who.set_metadata("one", str(number))
        events = [await anext(changes) for _ in range(4)]
    assert [c.image.metadata for c in events if c.image] == ["0", "2", "4", "5"]


# The lock


async def test_a_lock_timeout_names_the_holder(place: Place, store: ImageStore) -> None:
    async with open_store(place) as other, other.transaction():
        holder = r"'aimagestore' from 127\.0\.0\.1"
        async with ImageStore(place.location(), lock_timeout=0.05) as waiting:
            with pytest.raises(LockTimeoutError, match=holder) as caught:
                await waiting.create()
    assert caught.value.path is not None
    assert place.database in caught.value.path


async def test_a_cancelled_wait_for_the_lock_does_not_hold_up_the_next_one(
    servers: Servers, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimagestore.cluster._lock._CANCEL_TIMEOUT", 600)
    async with open_store(place) as holder, open_store(place) as store:
        async with holder.transaction(), anyio.create_task_group() as tasks:
            tasks.start_soon(store.create, "one")
            await until_requested(servers, place)
            tasks.cancel_scope.cancel()
        with anyio.fail_after(60):
            await store.create("two")
        assert [image.id for image in await store.images()] == ["two"]


async def test_waiting_for_an_unreachable_server_can_be_cancelled(
    servers: Servers, place: Place, to_postgres: Proxy
) -> None:
    async with ImageStore(servers.by_way_of(place, to_postgres.port).location()) as store:
        await store.create("one")
        with to_postgres.refusing():
            with anyio.fail_after(5), anyio.move_on_after(0.2) as scope:
                await store.create("two")
            assert scope.cancelled_caught
            with anyio.fail_after(5), anyio.move_on_after(0.2) as scope:
                async with store.transaction():
                    pass
            assert scope.cancelled_caught
        await store.create("three")
        assert [image.id for image in await store.images()] == ["one", "three"]


# Sessions that are lost, and commits that are refused


async def test_a_watch_continues_after_its_session_was_lost(
    servers: Servers, place: Place, store: ImageStore
) -> None:
    async with ImageStore(place.location()) as other, store.watch() as changes:
        await other.create("one")
        assert (await anext(changes)).id == "one"
        await run_sync(servers.postgres.end_sessions, place.database)
        await other.create("two")
        with anyio.fail_after(20):
            assert (await anext(changes)).id == "two"
        assert changes._feed.descriptor is not None


async def test_a_lookup_in_a_transaction_whose_session_is_lost_raises(
    servers: Servers, place: Place, store: ImageStore
) -> None:
    with pytest.raises(StoreUnavailableError):
        async with store.transaction() as tx:
            await tx.create("one")
            await run_sync(servers.postgres.end_sessions, place.database)
            await tx.get("two")
    assert await store.images() == []


async def test_a_transaction_whose_session_was_lost_acquires_the_lock_again(
    servers: Servers, place: Place, store: ImageStore
) -> None:
    async with store.transaction() as tx:
        await tx.create("one")
        await run_sync(servers.postgres.end_sessions, place.database)
    assert [image.id for image in await store.images()] == ["one"]


async def test_a_commit_whose_lock_another_store_has_acquired_may_have_happened(
    servers: Servers, place: Place
) -> None:
    store = open_store(place, deadline=1)
    async with store, open_store(place) as other, anyio.create_task_group() as tasks:
        has_taken, is_over = anyio.Event(), anyio.Event()

        async def take() -> None:
            async with other.transaction() as theirs:
                await theirs.create("theirs")
                has_taken.set()
                await is_over.wait()

        with pytest.raises(
            StoreUnavailableError, match=r"holds the lock .*may have happened"
        ) as caught:
            async with store.transaction() as tx:
                await tx.create("mine", big_data={"key": b"data"})
                await run_sync(servers.postgres.end_sessions, place.database)
                tasks.start_soon(take)
                await has_taken.wait()
        # The commit was sent, and only the holder of the lock can find out what became of it.
        assert caught.value.may_have_happened
        is_over.set()
    async with open_store(place) as after:
        assert [image.id for image in await after.images()] == ["theirs"]


async def test_a_transaction_on_an_outdated_state_is_not_committed(
    servers: Servers, place: Place, store: ImageStore
) -> None:
    async with ImageStore(place.location()) as other:
        with pytest.raises(StoreUnavailableError, match="try it again"):
            async with store.transaction() as tx:
                await tx.create("mine")
                await run_sync(servers.postgres.end_sessions, place.database)
                await other.create("theirs")
    assert [image.id for image in await store.images()] == ["theirs"]


async def test_a_commit_that_the_server_refuses_raises_and_is_undone(
    servers: Servers, place: Place, store: ImageStore
) -> None:
    await servers.execute(place, "ALTER TABLE images ADD CHECK (id <> 'bad')")
    with pytest.raises(StoreUnavailableError, match="violates check constraint") as caught:
        await store.create("bad", big_data={"key": b"data"})
    assert not caught.value.may_have_happened
    assert "nothing was changed" in str(caught.value)
    assert await objects_of(engine_of(store)) == []
    await store.create("good")


async def test_a_view_answers_every_kind_of_lookup(store: ImageStore) -> None:
    image = await store.create("one", names=["a"], big_data={"manifest": b"{}"})
    engine = engine_of(store)

    def look(view: Any) -> None:
        assert view.owner_of("a") == "one"
        assert view.owner_of("b") is None
        assert view.ids_with_digest(image.digest) == ["one"]
        assert list(view.ids_with_prefix("o", 9)) == ["one"]
        assert view.ids_with_prefix("", 9) == []
        assert view.record_of("on") is None
        assert view.record_of("") is None
        assert view.record_of("a") is None
        assert [record.id for record in view.records()] == ["one"]
        assert len(view.freeze()) == 1

    await run_sync(engine.reader.read, look)


@pytest.fixture
def records_url_of_other(servers: Servers, place: Place) -> Iterator[str]:
    """The place's database, as a role that may write the store and is no superuser."""
    for statement in (
        "CREATE ROLE other LOGIN PASSWORD 'other'",
        "GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO other",
    ):
        servers.postgres.execute(statement, (), place.database)
    yield place.records_url.replace("postgres@", "other:other@")
    servers.postgres.execute("DROP OWNED BY other", (), place.database)
    servers.postgres.execute("DROP ROLE other")


async def test_a_holder_of_another_role_is_named_without_its_address(
    place: Place, records_url_of_other: str
) -> None:
    async with ImageStore(place.location()) as holder, holder.transaction():
        other = ClusterLocation(records_url_of_other, place.blobs_url)
        async with ImageStore(other, lock_timeout=0.05) as store:
            with pytest.raises(LockTimeoutError, match="of 'aimagestore' holds it"):
                await store.create()


async def test_garbage_whose_session_is_lost_is_collected_later(
    servers: Servers, place: Place
) -> None:
    async with open_store(place, grace_period=NO_GRACE) as store:
        engine = engine_of(store)
        await stage_orphan(engine)
        removals = engine.writer.garbage(dry_run=False)

        def lose() -> None:
            removal = next_removal(engine, removals)
            grant = acquire(engine.lock)
            servers.postgres.end_sessions(place.database)
            try:
                list(removal(grant))
            finally:
                grant.release()

        with pytest.raises(StoreUnavailableError):
            await run_sync(lose)
        assert len((await store.collect_garbage()).findings) == 1
        assert await objects_of(engine) == []


async def test_objects_are_removed_after_the_lock_was_released(
    servers: Servers, place: Place
) -> None:
    async with open_store(place, grace_period=NO_GRACE) as store, open_store(place) as other:
        engine = engine_of(store)
        orphan = await stage_orphan(engine)

        def condemn() -> None:
            removal = next_removal(engine, removals)
            grant = acquire(engine.lock)
            list(removal(grant))
            grant.release()

        removals = engine.writer.garbage(dry_run=False)
        await run_sync(condemn)
        assert await objects_of(engine) == [orphan.id]
        with pytest.raises(ValueError, match="stage it again"):
            await other._core.submit(mutations.create().with_items({"key": orphan}))
        removals.close()  # as if the process had died
        assert (await store.collect_garbage()).findings == ()
        assert await objects_of(engine) == []


async def test_a_dry_run_removes_nothing(place: Place) -> None:
    async with open_store(place, grace_period=NO_GRACE) as store:
        engine = engine_of(store)
        await store.create("one", big_data={"key": b"1"})
        await store.set_big_data("one", "key", b"22")
        await stage_orphan(engine)
        before = await objects_of(engine)
        report = await store.collect_garbage(dry_run=True)
        assert await objects_of(engine) == before
        assert await store.collect_garbage() == report
        assert len(await objects_of(engine)) == 1


async def stage_orphan(engine: Any) -> Any:
    """Upload an object that no image uses, and wait until its grace period is over."""

    def stage() -> Any:
        staged = engine.items.stage()
        staged.sink.write(b"12345")
        staged.finish()
        return staged

    staged = await run_sync(stage)
    await anyio.sleep(1.1)  # the object store's times are whole seconds
    return staged


def next_removal(engine: Any, removals: Iterator[Any]) -> Any:
    """Begin a collection, and return the function that makes its first removal."""
    begin = next(removals)
    grant = acquire(engine.lock)
    list(begin(grant))
    grant.release()
    return next(removals)


async def objects_of(engine: Any) -> list[Any]:
    """Return the IDs of the objects in the store's prefix of the bucket."""

    def listed() -> list[Any]:
        return [blob.id for page in engine.items._blobs.pages() for blob in page]

    return await run_sync(listed)


async def test_lookups_by_id_after_a_prefetch_take_no_round_trip(store: ImageStore) -> None:
    await store.create("one", names=["a"])
    engine = engine_of(store)
    statements: list[object] = []

    def look(view: Any) -> None:
        execute = view._lookups._execute

        def count(statement: Any, values: Any) -> Any:
            statements.append(statement)
            return execute(statement, values)

        locked = LockedView(count, engine.reader._history, view.version)
        locked.prefetch(["a", "sha256:one", "sha256:no"], ["b"])
        assert len(statements) == 1
        assert locked.find("a").id == locked.find("one").id == "one"
        record = locked.find_by_digest("sha256:one")
        assert record is not None
        assert record.id == "one"
        assert locked.find_by_digest("sha256:no") is None
        assert locked.owner_of("b") is None
        assert len(statements) == 1

    await run_sync(engine.reader.read, look)


async def test_an_image_with_many_names_is_fetched_once(store: ImageStore) -> None:
    names = [f"name{number}" for number in range(2000)]
    image = await store.create("one", names=names)
    engine = engine_of(store)
    rows: list[int] = []

    def look(view: Any) -> None:
        execute = view._lookups._execute

        def count(statement: Any, values: Any) -> Any:
            result = execute(statement, values)
            rows.append(result.rowcount)
            return result

        locked = LockedView(count, engine.reader._history, view.version)
        locked.prefetch(["one"], names)
        assert locked.owner_of(names[-1]) == locked.find("one").id == image.id

    await run_sync(engine.reader.read, look)
    assert rows == [1]
    other = await store.create("two")
    async with store.transaction() as tx:
        await tx.add_names("two", names)
    assert (await store.get(names[0])).id == other.id


async def test_an_iteration_yields_no_image_twice(place: Place, store: ImageStore) -> None:
    for image_id in "abcd":
        await store.create(image_id)
    seen = []
    async for image in store.iter_images(page_size=1):
        seen.append(image.id)
        if image.id == "b":
            await store.delete("a")
            await store.create("a")
            await store.delete("c")
    assert seen == ["a", "b", "d"]
