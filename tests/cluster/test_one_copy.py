"""Equal items share one object, which is collected when no item has it, and never before."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.to_thread import run_sync

from aimagestore import FindingKind, ImageStore, StoreUnavailableError, check, repair
from aimagestore.cluster import _schema, migrate, set_grace_period

from ..support.sources import CONTENT, DIGEST, chunks
from .drills import MARKER, Bucket, shorten_grace_period

if TYPE_CHECKING:
    from .proxy import Proxy
    from .servers import Place, Servers


@pytest.fixture
async def store(place: Place) -> AsyncIterator[ImageStore]:
    """A new store, open."""
    async with ImageStore(place.location()) as store:
        yield store


@pytest.fixture
def objects(servers: Servers, place: Place) -> Callable[[], set[str]]:
    """Returns the names of the objects that hold content."""
    bucket = Bucket(servers, place)
    return lambda: {name for name in bucket.read() if not name.startswith("aimagestore")}


def unread() -> Iterator[bytes]:
    """Fail when the data are read."""
    raise AssertionError("the store has this content")
    yield b""


async def test_an_object_is_collected_when_no_item_has_it(
    store: ImageStore, place: Place, objects: Callable[[], set[str]]
) -> None:
    for image in ["one", "two", "three"]:
        await store.create(image, big_data={"key": CONTENT})
    assert len(await run_sync(objects)) == 1
    await shorten_grace_period(place)
    await store.delete("one")
    await store.set_big_data("two", "key", b"other")
    assert (await store.collect_garbage(dry_run=True)).findings == ()
    assert (await store.collect_garbage()).findings == ()
    assert await store.big_data("three", "key") == CONTENT
    await store.delete("three")
    forecast = await store.collect_garbage(dry_run=True)
    report = await store.collect_garbage()
    assert forecast == report
    assert [(f.kind, f.id, f.key) for f in report.findings] == [
        (FindingKind.ITEM_UNLISTED, "three", "key")
    ]
    assert report.bytes == len(CONTENT)
    assert len(await run_sync(objects)) == 1
    assert (await store.collect_garbage()).findings == ()
    assert await store.big_data("two", "key") == b"other"


async def test_an_object_of_many_items_that_were_all_deleted_is_collected_once(
    servers: Servers, store: ImageStore, place: Place, objects: Callable[[], set[str]]
) -> None:
    await store.create("one", big_data={"key": CONTENT})
    await store.delete("one")
    others = """
        INSERT INTO image_items (blob, image_id, key, size, removed, digest)
        SELECT blob, 'other' || n, key, size, removed, digest
        FROM image_items, generate_series(1, 300) n RETURNING image_id
    """
    assert len(await servers.execute(place, others)) == 300
    await shorten_grace_period(place)
    assert len((await store.collect_garbage()).findings) == 1
    assert await run_sync(objects) == set()
    assert (await store.collect_garbage()).findings == ()


async def test_rows_of_earlier_items_go_while_another_item_has_the_object(
    servers: Servers, store: ImageStore, place: Place
) -> None:
    for image in ["one", "two"]:
        await store.create(image, big_data={"key": CONTENT})
    await store.delete("one")
    rows = "SELECT image_id FROM image_items ORDER BY 1"
    await store.collect_garbage()
    assert await servers.execute(place, rows) == [("one",), ("two",)]
    await shorten_grace_period(place)
    await store.collect_garbage()
    assert await servers.execute(place, rows) == [("two",)]
    assert await store.big_data("two", "key") == CONTENT


async def test_an_object_that_no_item_has_any_more_is_used_again(
    store: ImageStore, place: Place, objects: Callable[[], set[str]]
) -> None:
    await store.create("one", big_data={"key": CONTENT})
    before = await run_sync(objects)
    await store.delete("one")
    await store.create("two")
    await store.set_big_data("two", "key", unread(), expected_digest=DIGEST)
    assert await run_sync(objects) == before
    await shorten_grace_period(place)
    await store.collect_garbage()
    assert await store.big_data("two", "key") == CONTENT
    assert (await check(place.location())).ok


async def test_an_object_that_was_lost_is_not_used_again(
    servers: Servers, store: ImageStore, place: Place
) -> None:
    """It was there when it was used before."""
    for image in ["one", "two"]:
        await store.create(image, big_data={"key": CONTENT})
    bucket = Bucket(servers, place)
    objects = await run_sync(bucket.read)
    await run_sync(bucket.write, {MARKER: objects[MARKER]})
    await store.create("three", big_data={"key": CONTENT})
    await store.create("four")
    await store.set_big_data("four", "key", chunks(), expected_digest=DIGEST)
    for image in ["three", "four"]:
        assert await store.big_data(image, "key") == CONTENT


async def test_an_object_that_may_be_collected_soon_is_not_used_again(
    servers: Servers, store: ImageStore, place: Place
) -> None:
    await store.create("one", big_data={"key": CONTENT})
    await store.delete("one")
    await store.create("two")
    await servers.execute(place, "UPDATE image_items SET removed = removed - interval '13 hours'")
    await store.set_big_data("two", "key", chunks(), expected_digest=DIGEST)
    blobs = await servers.execute(place, "SELECT DISTINCT blob FROM image_items")
    assert len(blobs) == 2


async def test_a_staged_object_that_was_collected_is_missed_when_it_is_committed(
    store: ImageStore, place: Place, objects: Callable[[], set[str]]
) -> None:
    await store.create("one", big_data={"key": CONTENT})
    async with store.stage(unread(), expected_digest=DIGEST) as staged:
        await store.delete("one")
        await shorten_grace_period(place)
        assert len((await store.collect_garbage()).findings) == 1
        with pytest.raises(ValueError, match="stage it again"):
            await store.create("two", big_data={"key": staged})
    assert await store.images() == []
    assert await run_sync(objects) == set()
    await store.create("two", big_data={"key": CONTENT})
    assert await store.big_data("two", "key") == CONTENT


async def test_a_collection_that_died_before_it_removed_an_object_leaves_none_to_be_used(
    servers: Servers, store: ImageStore, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create("one", big_data={"key": CONTENT})
    async with store.stage(unread(), expected_digest=DIGEST) as staged:
        await store.delete("one")
        await shorten_grace_period(place)
        with monkeypatch.context() as patch, pytest.raises(StoreUnavailableError):
            patch.setattr("aimagestore.cluster._blobs.Blobs.delete", _refuse)
            await store.collect_garbage()
        with pytest.raises(ValueError, match="stage it again"):
            await store.create("two", big_data={"key": staged})
    await run_sync(set_grace_period, place.records_url, timedelta(days=1))
    await store.create("two", big_data={"key": CONTENT})
    assert await store.big_data("two", "key") == CONTENT
    # The next collection completes it.
    await store.collect_garbage()
    rows = "SELECT image_id FROM image_items"
    assert await servers.execute(place, rows) == [("two",)]
    assert await store.big_data("two", "key") == CONTENT


def _refuse(*_: object) -> None:
    raise StoreUnavailableError("the object store is unavailable")


async def test_an_object_that_is_used_again_during_a_collection_stays(
    store: ImageStore, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is used after the collection has found it, and before the collection marks it."""
    from aimagestore.cluster._garbage import Garbage

    await store.create("one", big_data={"key": CONTENT})
    async with store.stage(unread(), expected_digest=DIGEST) as staged:
        await store.delete("one")
        await shorten_grace_period(place)
        found, may_go_on = threading.Event(), threading.Event()

        async def collect() -> None:
            report = await store.collect_garbage()
            assert report.findings == ()

        removed_items = Garbage._removed_items

        def wait(self: Garbage, *, dry_run: bool) -> Iterator[Any]:
            for removal in removed_items(self, dry_run=dry_run):
                found.set()
                assert may_go_on.wait(30)
                yield removal

        monkeypatch.setattr(Garbage, "_removed_items", wait)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collect)
            await run_sync(found.wait)
            await store.create("two", big_data={"key": staged})
            may_go_on.set()
    assert await store.big_data("two", "key") == CONTENT
    assert (await check(place.location())).ok


async def test_content_that_another_store_has_committed_meanwhile_is_not_kept_twice(
    store: ImageStore, place: Place, objects: Callable[[], set[str]]
) -> None:
    async with ImageStore(place.location()) as other, store.stage(CONTENT) as staged:
        await other.create("theirs", big_data={"key": CONTENT})
        await store.create("ours", big_data={"key": staged})
        await store.create("equal", big_data={"one": b"equal", "two": b"equal"})
    with anyio.fail_after(30):
        while len(await run_sync(objects)) != 2:
            await anyio.sleep(0.01)
    async with ImageStore(place.location()) as reader:
        for image in ["ours", "theirs"]:
            assert await reader.big_data(image, "key") == CONTENT
        assert await reader.big_data("equal", "two") == b"equal"


async def test_a_commit_whose_answer_is_lost_keeps_the_objects_that_it_needs(
    servers: Servers, place: Place, to_postgres: Proxy, objects: Callable[[], set[str]]
) -> None:
    there = servers.by_way_of(place, to_postgres.port)
    async with ImageStore(place.location()) as other, ImageStore(there.location()) as store:
        async with store.stage(CONTENT) as staged, store.stage(b"own") as own:
            await other.create("theirs", big_data={"key": CONTENT})
            to_postgres.lose_answer_to(b"COMMIT\0")
            await store.create("ours", big_data={"key": staged, "own": own})
            assert to_postgres.has_lost_it
        assert await other.big_data("ours", "key") == CONTENT
        assert await other.big_data("ours", "own") == b"own"
    with anyio.fail_after(30):
        while len(await run_sync(objects)) != 2:
            await anyio.sleep(0.01)
    assert (await check(place.location())).ok


async def test_a_check_reads_a_shared_object_once(store: ImageStore, place: Place) -> None:
    for number in range(5):
        await store.create(f"image{number}", big_data={"key": CONTENT, "own": b"%d" % number})
    reported: list[tuple[int, int | None]] = []
    report = await check(place.location(), progress=lambda *pair: reported.append(pair))
    assert report.ok
    assert (report.items, report.bytes) == (10, len(CONTENT) + 5)
    assert reported[-1] == (5 * len(CONTENT) + 5, 5 * len(CONTENT) + 5)


async def test_items_whose_object_is_lost_get_another_one_with_their_content(
    servers: Servers, store: ImageStore, place: Place
) -> None:
    for image in ["one", "two"]:
        await store.create(image, big_data={"key": b"content"})
    lose = "UPDATE image_items SET blob = gen_random_uuid()"
    await servers.execute(place, lose)
    await store.create("three", big_data={"key": b"content"})
    found = await check(place.location())
    missing = {f.id for f in found.findings if f.kind is FindingKind.ITEM_MISSING}
    assert missing == {"one", "two"}
    await repair(place.location(), found)
    assert not [f for f in (await check(place.location())).findings if f.id]
    for image in ["one", "two", "three"]:
        assert await store.big_data(image, "key") == b"content"


async def test_content_from_before_the_digests_were_noted_is_shared_too(
    servers: Servers, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ImageStore(place.location()) as store:
        await store.create("one", big_data={"key": CONTENT, "manifest": b"{}"})
        await store.create("two", big_data={"key": b"own"})
    downgrade: Sequence[str] = (
        "DROP INDEX image_items_blob, image_items_tombstone, image_items_digest",
        "ALTER TABLE image_items DROP COLUMN digest, ADD PRIMARY KEY (blob)",
        "UPDATE image_store SET schema_version = 2",
        "UPDATE images SET record = '{' WHERE id = 'two'",
    )
    for statement in downgrade:
        await servers.execute(place, statement)
    assert await run_sync(migrate, place.records_url) == _schema.SCHEMA_VERSION
    async with ImageStore(place.location()) as store:
        await store.create("three")
        await store.set_big_data("three", "key", unread(), expected_digest=DIGEST)
        assert await store.big_data("three", "key") == CONTENT
        assert await store.big_data("one", "manifest") == b"{}"
