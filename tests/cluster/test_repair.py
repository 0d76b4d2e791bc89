"""Tables that were damaged by SQL: a check finds everything, and a repair loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.to_thread import run_sync

from aimagestore import (
    FindingKind,
    ImageStore,
    Report,
    StoreIdentityError,
    StoreUnavailableError,
    WatchExpiredError,
    check,
    repair,
)

from .gateway import error
from .ledger import until_requested

if TYPE_CHECKING:
    from aimagestore.cluster import ClusterLocation

    from .gateway import Gateway
    from .proxy import Proxy
    from .servers import Place, Servers

pytest.importorskip("psycopg")

Execute = Callable[..., Any]


@pytest.fixture
def execute(servers: Servers, place: Place) -> Execute:
    """Execute a statement in the store's database."""
    return lambda statement, *values: servers.execute(place, statement, *values)


async def fill(location: ClusterLocation) -> None:
    async with ImageStore(location) as store:
        await store.create("one", names=["a", "b"], big_data={"manifest": b"m1", "key": b"data"})
        await store.create("two", names=["c"], big_data={"manifest": b"m2"})
        await store.create("three", metadata="text")


async def contents(location: ClusterLocation) -> Any:
    """Return everything that the store has, as its callers see it."""
    async with ImageStore(location, read_only=True) as store:
        images = await store.images()
        return [
            (
                image,
                [(await store.get(name)).id == image.id for name in image.names],
                [image in await store.by_digest(digest) for digest in image.digests],
                [await store.big_data(image.id, key) for key in image.big_data_names],
            )
            for image in images
        ]


def kinds(report: Report) -> set[tuple[str, str, str]]:
    return {(finding.kind.value, finding.id, finding.key) for finding in report.findings}


ADD_ITEM = "INSERT INTO image_items (image_id, key, blob, size)"
WRONG = "sha256:" + "0" * 64

# The damage to the tables, and what the check finds.
DAMAGE: dict[str, tuple[str, set[tuple[str, str, str]]]] = {
    "names lost": (
        "DELETE FROM image_names",
        {("names-differ", "one", ""), ("names-differ", "two", "")},
    ),
    "a name lost": (
        "DELETE FROM image_names WHERE name = sha256('b')",
        {("names-differ", "one", "")},
    ),
    "a name of another": (
        "UPDATE image_names SET image_id = 'three' WHERE name = sha256('b')",
        {("names-differ", "one", ""), ("names-differ", "three", "")},
    ),
    "a name too many": (
        "INSERT INTO image_names VALUES (sha256('x'), 'three')",
        {("names-differ", "three", "")},
    ),
    "a name of no image": (
        "INSERT INTO image_names VALUES (sha256('x'), 'nobody')",
        {("names-differ", "nobody", "")},
    ),
    "digests lost": (
        "DELETE FROM image_digests",
        {("digests-differ", "one", ""), ("digests-differ", "two", "")},
    ),
    "a digest of another": (
        "UPDATE image_digests SET image_id = 'three' WHERE image_id = 'two'",
        {("digests-differ", "two", ""), ("digests-differ", "three", "")},
    ),
    "a digest too many": (
        f"INSERT INTO image_digests VALUES ('{WRONG}', 'one')",
        {("digests-differ", "one", "")},
    ),
    "a digest of no image": (
        f"INSERT INTO image_digests VALUES ('{WRONG}', 'nobody')",
        {("digests-differ", "nobody", "")},
    ),
    "an item that is not listed": (
        f"{ADD_ITEM} VALUES ('one', 'more', gen_random_uuid(), 3)",
        {("item-unlisted", "one", "more")},
    ),
    "an item of no image": (
        f"{ADD_ITEM} VALUES ('nobody', 'more', gen_random_uuid(), 3)",
        {("item-unlisted", "nobody", "more")},
    ),
    "the size of an item": (
        "UPDATE image_items SET size = 17 WHERE key = 'key'",
        {("items-differ", "one", "key")},
    ),
    "an item that counts as removed": (
        "UPDATE image_items SET removed = clock_timestamp() WHERE key = 'key'",
        {("item-missing", "one", "key")},
    ),
    "an item of another key": (
        "UPDATE image_items SET key = 'other' WHERE key = 'key'",
        {("item-missing", "one", "key"), ("item-unlisted", "one", "other")},
    ),
    "items of another image": (
        "UPDATE image_items SET image_id = 'nobody' WHERE image_id = 'one'",
        {
            ("item-missing", "one", "manifest"),
            ("item-missing", "one", "key"),
            ("item-unlisted", "nobody", "manifest"),
            ("item-unlisted", "nobody", "key"),
        },
    ),
    "too many images counted": (
        "UPDATE image_store SET images = 17",
        {("counters-differ", "", "")},
    ),
    "a place that is used": (
        "UPDATE image_store SET last_place = 1",
        {("counters-differ", "", "")},
    ),
    "a commit that is made": (
        "UPDATE image_store SET version = 1",
        {("counters-differ", "", "")},
    ),
    "everything forgotten": (
        "UPDATE image_store SET pruned = 1000",
        {("counters-differ", "", "")},
    ),
    "all at once": (
        (
            "DELETE FROM image_names; DELETE FROM image_digests; UPDATE image_store SET images = 0;"
            " UPDATE image_items SET removed = clock_timestamp()"
        ),
        {
            ("names-differ", "one", ""),
            ("names-differ", "two", ""),
            ("digests-differ", "one", ""),
            ("digests-differ", "two", ""),
            ("counters-differ", "", ""),
            ("item-missing", "one", "manifest"),
            ("item-missing", "one", "key"),
            ("item-missing", "two", "manifest"),
        },
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
async def test_damaged_tables_are_found_and_rebuilt(
    place: Place, execute: Execute, name: str
) -> None:
    location = place.location()
    await fill(location)
    before = await contents(location)
    statement, expected = DAMAGE[name]
    await execute(statement)
    found = await check(location)
    assert kinds(found) == expected
    assert (found.images, found.items) == (3, 3)
    done = await repair(location, found)
    # Giving a name back to its owner repairs the other image too.
    assert set() < kinds(done) <= expected
    again = await check(location)
    assert again.findings == ()
    assert await contents(location) == before
    # The tables stay consistent under later changes.
    async with ImageStore(location) as store:
        await store.create("four", names=["d"], big_data={"manifest": b"m4"})
        await store.set_names("one", ["b", "c"])
        await store.delete("three")
    assert (await check(location)).findings == ()


async def test_rows_that_no_record_has_fail_no_change(place: Place, execute: Execute) -> None:
    location = place.location()
    await fill(location)
    async with ImageStore(location) as store:
        digest = (await store.get("one")).digest
        await execute("DELETE FROM images WHERE id = 'two'")
        await execute("INSERT INTO image_digests VALUES (%s, 'four')", digest)
        image = await store.create("four", names=["c"], big_data={"manifest": b"m1"})
        assert await store.get("c") == image
        assert {found.id for found in await store.by_digest(digest)} == {"one", "four"}


async def test_items_whose_rows_are_lost_get_their_objects_back(
    place: Place, execute: Execute
) -> None:
    """They get them once the objects are too old to be staged data of a running upload."""
    location = place.location()
    await fill(location)
    before = await contents(location)
    await execute("UPDATE image_store SET grace_period = '1 microsecond'")
    await execute("UPDATE image_items SET blob = gen_random_uuid() WHERE key = 'key'")
    await execute("DELETE FROM image_items WHERE image_id = 'two'")
    with anyio.fail_after(20):  # the object store tells the time in seconds
        while True:
            found = await check(location)
            if sum(f.kind is FindingKind.TEMPORARY_STALE for f in found.findings) == 2:
                break
    missing = {f for f in kinds(found) if f[0] == "item-missing"}
    assert missing == {("item-missing", "one", "key"), ("item-missing", "two", "manifest")}
    await repair(location, found)
    assert (await check(location)).findings == ()
    assert await contents(location) == before


async def test_an_item_that_was_replaced_since_the_check_keeps_its_new_content(
    place: Place, execute: Execute
) -> None:
    location = place.location()
    await fill(location)
    await execute("UPDATE image_items SET removed = clock_timestamp() WHERE key = 'key'")
    found = await check(location)
    async with ImageStore(location) as store:
        await store.set_big_data("one", "key", b"newer")
    await repair(location, found)
    assert (await check(location)).findings == ()
    async with ImageStore(location) as store:
        assert await store.big_data("one", "key") == b"newer"


async def test_an_object_that_may_be_collected_is_not_restored(
    place: Place, execute: Execute
) -> None:
    """A collection that has begun may remove it, whatever its row says by then."""
    location = place.location()
    await fill(location)
    await execute("UPDATE image_items SET removed = clock_timestamp() WHERE key = 'key'")
    found = await check(location)
    await execute("UPDATE image_items SET removed = removed - interval '2 days' WHERE key = 'key'")
    assert (await repair(location, found)).findings == ()
    assert kinds(await check(location)) == {("item-missing", "one", "key")}


async def test_repair_resolves_a_name_conflict(place: Place, execute: Execute) -> None:
    location = place.location()
    await fill(location)
    record = 'replace(record, \'"c"\', \'"c","a"\')'
    await execute(f"UPDATE images SET record = {record} WHERE id = 'two'")
    found = await check(location)
    assert kinds(found) == {("duplicate-name", "two", "")}
    await repair(location, found)
    assert (await check(location)).findings == ()
    async with ImageStore(location) as store:
        assert (await store.get("a")).id == "one"
        assert (await store.get("two")).names == ("c",)
    await execute(f"UPDATE images SET record = {record} WHERE id = 'two'")
    await execute("DELETE FROM image_names")
    await repair(location, await check(location))
    assert (await check(location)).findings == ()
    async with ImageStore(location) as store:
        # The table has no owner, so the later image keeps the name.
        assert (await store.get("a")).id == "two"
        assert (await store.get("one")).names == ("b",)


@pytest.mark.parametrize("text", ["{", '{"id":"other","created":"2020-01-01T00:00:00Z"}'])
async def test_a_damaged_record_stays_until_it_is_dropped(
    place: Place, execute: Execute, text: str
) -> None:
    location = place.location()
    await fill(location)
    await execute("UPDATE images SET record = %s WHERE id = 'one'", text)
    found = await check(location)
    assert kinds(found) == {("record-damaged", "one", "")}
    assert (await repair(location, found)).findings == ()
    # The tables still say what it had.
    assert kinds(await check(location)) == {("record-damaged", "one", "")}
    done = await repair(location, found, drop=True)
    assert f"it was: {text}" in done.findings[0].detail
    assert (await check(location)).findings == ()
    async with ImageStore(location) as store:
        assert [image.id for image in await store.images()] == ["two", "three"]
        assert not await store.exists("a")


@pytest.mark.parametrize("kind", ["item-missing", "item-short", "item-long", "item-altered"])
async def test_a_lost_item_is_dropped_only_on_request(
    servers: Servers, place: Place, execute: Execute, kind: str
) -> None:
    from .drills import Bucket

    location = place.location()
    await fill(location)
    ((blob,),) = await execute("SELECT blob FROM image_items WHERE image_id = 'two'")

    def damage() -> None:
        bucket = Bucket(servers, place)
        objects = bucket.read()
        new = {"item-short": b"m", "item-long": b"m2m2", "item-altered": b"XX"}.get(kind)
        del objects[blob.hex]
        bucket.write(objects if new is None else objects | {blob.hex: new})

    await run_sync(damage)
    found = await check(location)
    assert kinds(found) == {(kind, "two", "manifest")}
    await repair(location, found)
    assert kinds(await check(location)) == {(kind, "two", "manifest")}
    await repair(location, found, drop=True)
    assert (await check(location)).findings == ()
    async with ImageStore(location) as store:
        image = await store.get("two")
        assert (image.big_data_names, image.names) == ((), ("c",))
        # The first digest of an image stays.
        assert image in await store.by_digest(image.digest)


async def test_an_item_that_was_replaced_is_not_dropped(place: Place, execute: Execute) -> None:
    location = place.location()
    await fill(location)
    await execute("UPDATE image_items SET blob = gen_random_uuid() WHERE key = 'key'")
    found = await check(location)
    async with ImageStore(location) as store:
        await store.set_big_data("one", "key", b"newer")
        assert (await repair(location, found, drop=True)).findings == ()
        assert await store.big_data("one", "key") == b"newer"


async def test_stores_that_are_open_notice_a_repair(place: Place, execute: Execute) -> None:
    location = place.location()
    await fill(location)
    async with ImageStore(location) as store, store.watch() as changes:
        await execute("UPDATE image_names SET image_id = 'two' WHERE name = sha256('b')")
        assert (await store.get("b")).id == "two"
        await repair(location, await check(location))
        assert (await store.get("b")).id == "one"
        with pytest.raises(WatchExpiredError):
            await anext(changes)
        await store.set_metadata("b", "text")


async def test_a_repair_waits_for_the_lock(
    servers: Servers, place: Place, execute: Execute
) -> None:
    location = place.location()
    await fill(location)
    await execute("DELETE FROM image_names")
    found = await check(location)
    async with (
        ImageStore(location) as store,
        anyio.create_task_group() as tasks,
        store.transaction() as transaction,
    ):
        tasks.start_soon(repair, location, found)
        await until_requested(servers, place)
        assert await execute("SELECT 1 FROM image_names") == []
        await transaction.create("four", names=["d"])
    assert (await check(location)).findings == ()


async def test_a_repair_that_fails_changes_nothing(place: Place, execute: Execute) -> None:
    location = place.location()
    await fill(location)
    await execute("DELETE FROM image_names; UPDATE image_store SET images = 0")
    found = await check(location)
    await execute("ALTER TABLE image_names ADD CHECK (image_id <> 'one')")
    with pytest.raises(StoreUnavailableError, match="nothing was changed") as caught:
        await repair(location, found)
    assert not caught.value.may_have_happened
    assert kinds(await check(location)) == kinds(found)


async def test_a_repair_without_an_answer_says_that_it_may_have_happened(
    servers: Servers, place: Place, execute: Execute, to_postgres: Proxy
) -> None:
    await fill(place.location())
    await execute("DELETE FROM image_names")
    found = await check(place.location())
    there = servers.by_way_of(place, to_postgres.port)
    to_postgres.lose_answer_to(b"COMMIT\0")
    with pytest.raises(StoreUnavailableError, match="may have happened") as caught:
        await repair(there.location(), found)
    assert caught.value.may_have_happened
    assert (await check(place.location())).findings == ()


async def test_only_what_was_reported_is_repaired(place: Place, execute: Execute) -> None:
    location = place.location()
    await fill(location)
    await execute("DELETE FROM image_digests WHERE image_id = 'one'")
    found = await check(location)
    await execute("DELETE FROM image_names WHERE image_id = 'two'")
    await repair(location, found)
    assert kinds(await check(location)) == {("names-differ", "two", "")}


async def test_a_repair_of_another_store_is_refused(place: Place, execute: Execute) -> None:
    await fill(place.location())
    await execute("UPDATE image_store SET identity = gen_random_uuid()")
    with pytest.raises(StoreIdentityError):
        await repair(place.location(), Report())


async def test_many_names_and_images_are_compared_in_pages(
    place: Place, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimagestore.cluster._tables.PAGE", 3)
    location = place.location()
    async with ImageStore(location) as store, store.transaction() as transaction:
        for number in range(10):
            names = [f"{number}-{index}" for index in range(7)]
            data = {"manifest": str(number).encode()}
            await transaction.create(f"image{number}", names=names, big_data=data)
    before = await contents(location)
    assert (await check(location)).findings == ()
    await execute("DELETE FROM image_names WHERE image_id < 'image5'")
    await execute("UPDATE image_names SET image_id = 'image6' WHERE image_id = 'image7'")
    await execute("DELETE FROM image_digests")
    found = await check(location)
    numbers = [0, 1, 2, 3, 4, 6, 7]
    assert {f[1] for f in kinds(found) if f[0] == "names-differ"} == {f"image{n}" for n in numbers}
    await repair(location, found)
    assert (await check(location)).findings == ()
    assert await contents(location) == before


async def test_a_check_reads_one_snapshot(place: Place) -> None:
    """Names move, and images come and go, while it compares."""
    location = place.location()
    async with ImageStore(location) as store:
        await store.create("one")
        await store.create("two")
        async with anyio.create_task_group() as tasks:

            async def change() -> None:
                while True:
                    for image_id in ("one", "two"):
                        await store.add_names(image_id, ["a", "b"])
                        await store.create("brief", names=["c"], big_data={"manifest": b"m"})
                        await store.delete("brief")

            tasks.start_soon(change)
            for _ in range(20):
                found = await check(location)
                assert found.findings == ()
            tasks.cancel_scope.cancel()


async def test_unreadable_objects_are_reported(
    place: Place, execute: Execute, gateway: Gateway
) -> None:
    location = place.location()
    await fill(location)
    ((blob,),) = await execute("SELECT blob FROM image_items WHERE key = 'key'")

    def rule(method: str, path: str, query: str) -> Any:
        refuses = path.endswith(blob.hex) or "list-type" in query
        return error(403, "AccessDenied") if refuses else None

    gateway.rule = rule
    found = await check(location)
    assert kinds(found) == {("item-unreadable", "one", "key"), ("item-unreadable", "", "")}
    assert "s3:GetObject" in found.findings[0].detail
    assert "s3:ListBucket" in found.findings[1].detail
