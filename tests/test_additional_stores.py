"""Additional stores: which images are visible, and what a change of one of them copies."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import (
    AdditionalStore,
    AmbiguousImageError,
    BigDataMissingError,
    ChangeEvent,
    DigestMismatchError,
    DuplicateIDError,
    DuplicateNameError,
    GraphRootError,
    Image,
    ImageStore,
    ImageUnknownError,
    LockTimeoutError,
    StoreCorruptError,
    StoreLostError,
    StoreReadOnlyError,
    check,
    copy_images,
)
from aimagestore._async.store import core_of
from aimagestore._directory import engine
from aimagestore._stacked.copying import ItemCopies

from .support.foreign import foreign_writer
from .support.layouts import digest_of
from .support.stores import edit_index, is_locked, tree
from .support.watching import kinds, replay, take

MANIFEST = b'{"schemaVersion":2}'
LARGE = bytes(range(256)) * 10_000
THEN = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


class Stack:
    """A store and two additional ones.

    :ivar own: the path of the store
    :ivar first: the path of the first additional store
    :ivar second: that of the second
    """

    def __init__(self, root: Path) -> None:
        self.own = root / "store"
        self.first = root / "store-first"
        self.second = root / "store-second"

    def open(self, **options: Any) -> ImageStore:
        """Return the store with the additional ones."""
        return ImageStore(self.own, additional_stores=[self.first, self.second], **options)

    def additional(self) -> list[dict[str, object]]:
        """Return all that the additional stores hold."""
        return [tree(self.first), tree(self.second)]


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """A store without images, and additional ones with two each, one of them in both.

    The stores are whole in the end, and the additional ones are as they were.
    """
    stack = Stack(tmp_path)
    items = {"manifest": MANIFEST, "large": LARGE}
    async with ImageStore(stack.first) as store:
        await store.create("aa1", names=["a", "x"], big_data=items, metadata="m", created=THEN)
        await store.create("both", names=["b"], metadata="of the first")
        await store.set_flag("aa1", "flag", {"deep": [1]})
    async with ImageStore(stack.second) as store:
        await store.create("both", names=["b2"], metadata="of the second")
        await store.create("aa2", names=["c", "x"], big_data={"manifest": MANIFEST})
    before = stack.additional()
    yield stack
    if stack.own.exists():
        assert (await check(stack.own, verify=True)).findings == ()
    assert stack.additional() == before


async def shown(store: ImageStore) -> list[tuple[str, bool]]:
    """Return the ID of each image, and whether it comes from an additional store."""
    return [(image.id, image.read_only) for image in await store.images()]


def remove_measures(records: list[Any]) -> None:
    """Remove the sizes and digests of its items from the first record."""
    for name in ("big-data-sizes", "big-data-digests"):
        records[0].pop(name, None)


# Visible images


async def test_the_stores_are_listed_in_order_and_an_earlier_one_hides_ids(stack: Stack) -> None:
    async with stack.open() as store:
        assert await shown(store) == [("aa1", True), ("both", True), ("aa2", True)]
        await store.create("own", names=["o"])
        await store.set_metadata("both", "copied")
        expected = [("own", False), ("both", False), ("aa1", True), ("aa2", True)]
        assert await shown(store) == expected
        snapshot = await store.snapshot()
        assert [(image.id, image.read_only) for image in snapshot] == expected
        assert len(snapshot) == 4
        for size in (1, 3, 100):
            pages = store.iter_images(page_size=size)
            assert [(image.id, image.read_only) async for image in pages] == expected
        assert (await store.get("both")).metadata == "copied"
        assert not await store.exists("b2")
        assert (await store.get("aa1")).flags == {"flag": {"deep": [1]}}
        assert await store.by_digest(digest_of(MANIFEST)) == [
            await store.get("aa1"),
            await store.get("aa2"),
        ]
        described = [image.to_dict() for image in await store.images()]
        assert [each["read_only"] for each in described] == [False, False, True, True]


async def test_a_name_stands_for_the_image_of_the_first_store_that_has_it(stack: Stack) -> None:
    async with stack.open() as store:
        assert await store.lookup("x") == "aa1"
        assert (await store.get("aa2")).names == ("c", "x")  # as podman lists it
        await store.create("own", names=["x", "c"])
        assert await store.lookup("x") == await store.lookup("c") == "own"
        assert (await store.get("aa1")).names == ("a", "x")
        await store.delete("own")
        assert await store.lookup("x") == "aa1"
        await store.remove_names("aa1", ["x"])
        assert await store.lookup("x") == "aa2"
        assert await store.lookup("a") == "aa1"


async def test_an_id_and_a_name_take_precedence_over_a_prefix_in_every_store(stack: Stack) -> None:
    async with stack.open() as store:
        await store.create("aa11")
        await store.create("c12")
        assert await store.lookup("aa1") == "aa1"
        assert await store.lookup("c") == "aa2"
        assert await store.lookup("sha256:aa2") == "aa2"
        assert await store.lookup(f"c@{digest_of(MANIFEST)}") == "aa2"


async def test_a_prefix_stands_for_the_image_of_the_first_store_that_has_it(stack: Stack) -> None:
    async with stack.open() as store:
        assert await store.lookup("aa") == "aa1"
        await store.create("aa3")
        assert await store.lookup("aa") == "aa3"
        await store.create("aa4")
        with pytest.raises(AmbiguousImageError) as caught:
            await store.lookup("aa")
        assert caught.value.candidates == ("aa3", "aa4")
        with pytest.raises(ImageUnknownError):
            await store.lookup("")


async def test_items_of_every_store_are_read(stack: Stack) -> None:
    async with stack.open() as store:
        assert await store.big_data("aa1", "manifest") == MANIFEST
        async with store.open_big_data("x", "large", verify=True) as reader:
            assert reader.image == await store.get("aa1")
            assert reader.image.read_only
            assert await reader.read() == LARGE
        assert await store.big_data("aa2", "manifest") == MANIFEST
        async with store.transaction() as tx:
            assert await tx.big_data("aa1", "large") == LARGE
            assert [image.id for image in await tx.images()] == ["aa1", "both", "aa2"]


async def test_measuring_an_item_copies_nothing(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    for path in (stack.first, stack.second):
        async with ImageStore(path) as store:
            await store.create(path.name, big_data={"k": b"data"})
        edit_index(path, remove_measures)
    async with stack.open() as store:
        assert await store.big_data_size(stack.first.name, "k") == 4
        assert await store.big_data_digest(stack.second.name, "k") == digest_of(b"data")
        async with store.transaction() as tx:
            assert await tx.big_data_size(stack.first.name, "k") == 4
        assert [is_copied for _, is_copied in await shown(store)] == [True, True]


async def test_a_read_only_store_has_additional_stores_too(stack: Stack) -> None:
    async with ImageStore(stack.own):
        pass
    async with stack.open(read_only=True) as store:
        assert store.read_only
        assert len(await store.images()) == 3
        with pytest.raises(StoreReadOnlyError, match="read-only"):
            await store.set_metadata("aa1", "new")


# Changes

CHANGES: dict[str, Callable[[Any], Awaitable[Image]]] = {
    "set_metadata": lambda store: store.set_metadata("aa1", "new"),
    "set_names": lambda store: store.set_names("aa1", ["n", "b"]),
    "add_names": lambda store: store.add_names("a", ["n"]),
    "remove_names": lambda store: store.remove_names("aa1", ["a", "b"]),
    "set_flag": lambda store: store.set_flag("x", "new", 1),
    "clear_flag": lambda store: store.clear_flag("aa1", "flag"),
    "set_big_data": lambda store: store.set_big_data("aa1", "new", b"new"),
    "replace an item": lambda store: store.set_big_data("aa1", "large", b"new"),
}


async def expected_of(stack: Stack, change: str, tmp_path: Path) -> tuple[Image, dict[str, bytes]]:
    """Return the image that a change makes in a store without additional ones, and its items."""
    shutil.copytree(stack.first, tmp_path / "store-plain")
    async with ImageStore(tmp_path / "store-plain") as store:
        image = await CHANGES[change](store)
        return image, {key: await store.big_data("aa1", key) for key in image.big_data_names}


@pytest.mark.parametrize("is_in_transaction", [False, True])
@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_copies_the_image_first_in_the_same_commit(
    stack: Stack, tmp_path: Path, change: str, is_in_transaction: bool
) -> None:
    expected, items = await expected_of(stack, change, tmp_path)
    async with stack.open() as store, ImageStore(stack.own) as own, own.watch() as watch:
        if is_in_transaction:
            async with store.transaction() as tx:
                image = await CHANGES[change](tx)
                assert await tx.get("aa1") == image
                for key, data in items.items():
                    assert await tx.big_data("aa1", key) == data
                assert not await own.exists("aa1")
                assert (await store.get("aa1")).read_only
        else:
            image = await CHANGES[change](store)
        assert image == expected
        assert not image.read_only
        assert await store.get("aa1") == await own.get("aa1") == image
        assert {key: await own.big_data("aa1", key) for key in image.big_data_names} == items
        created = await own.create("end")
        events = await take(watch, 2)
        assert events == [
            ChangeEvent("created", "aa1", image),
            ChangeEvent("created", "end", created),
        ]


async def test_a_copy_keeps_its_record_but_for_names_that_others_have(stack: Stack) -> None:
    edit_index(stack.second, lambda records: records[1].update({"unknown": {"b": 1.50}}))
    edit_index(stack.second, lambda records: records[1].update({"mapped-layers": ["layer"]}))
    before = tree(stack.second)
    async with stack.open() as store:
        assert (await store.get("aa2")).mapped_top_layers == ("layer",)
        image = await store.set_metadata("aa2", "new")
        assert image.names == ("c",)
        assert image.mapped_top_layers == ()
        assert await store.lookup("x") == "aa1"
        text = (stack.own / "images.json").read_bytes()
        assert b'"unknown":{"b":1.5}' in text
    assert tree(stack.second) == before
    edit_index(stack.second, lambda records: [records[1].pop("unknown")])
    edit_index(stack.second, lambda records: [records[1].pop("mapped-layers")])


async def test_a_name_of_an_additional_store_moves_without_a_copy_of_its_image(
    stack: Stack,
) -> None:
    async with stack.open() as store:
        await store.create("own", names=["a"])
        with pytest.raises(DuplicateNameError):
            await store.create(names=["a"])
        await store.add_names("own", ["x", "b"])
        expected = [("own", False), ("aa1", True), ("both", True), ("aa2", True)]
        assert await shown(store) == expected
        assert await store.lookup("x") == "own"
        await store.set_names("aa2", ["x"])
        assert await store.lookup("x") == "aa2"
        assert (await store.get("own")).names == ("b", "a")


async def test_an_image_of_an_additional_store_cannot_be_deleted(stack: Stack) -> None:
    async with stack.open() as store:
        for target in (store.delete, _deleted_in_transaction(store)):
            with pytest.raises(StoreReadOnlyError, match=str(stack.first)) as caught:
                await target("aa1")
            assert caught.value.path == str(stack.first)
            assert caught.value.id == "aa1"
        await store.set_metadata("both", "copied")
        await store.delete("both")
        image = await store.get("both")
        assert (image.read_only, image.metadata) == (True, "of the first")
        await store.create("own")
        await store.set_metadata("both", "copied")
        await store.wipe()
        assert await shown(store) == [("aa1", True), ("both", True), ("aa2", True)]


def _deleted_in_transaction(store: ImageStore) -> Callable[[str], Awaitable[None]]:
    async def delete(ref: str) -> None:
        async with store.transaction() as tx:
            await tx.delete(ref)

    return delete


async def test_deleting_an_image_in_a_transaction_reveals_the_hidden_one(stack: Stack) -> None:
    async with stack.open() as store:
        await store.set_big_data("aa1", "manifest", b"other")
        async with store.transaction() as tx:
            await tx.delete("aa1")
            assert (await tx.get("aa1")).read_only
            assert await tx.big_data("aa1", "manifest") == MANIFEST
            await tx.set_metadata("aa1", "copied again")
            assert await tx.big_data("aa1", "manifest") == MANIFEST
        assert await store.big_data("aa1", "manifest") == MANIFEST
        assert (await store.get("aa1")).metadata == "copied again"


async def test_an_image_is_created_over_one_of_an_additional_store(stack: Stack) -> None:
    async with stack.open() as store:
        image = await store.create("aa1", names=["n"], big_data={"large": b"new", "k": b"more"})
        assert image.names == ("a", "x", "n")
        assert image.names_history[:3] == ("n", "x", "a")
        assert (image.metadata, image.created, image.flags) == ("m", THEN, {})
        assert image.big_data_names == ("manifest", "large", "k")
        assert await store.big_data("aa1", "manifest") == MANIFEST
        assert await store.big_data("aa1", "large") == b"new"
        with pytest.raises(DuplicateIDError):
            await store.create("aa1")
        now = datetime(2025, 1, 1, tzinfo=UTC)
        image = await store.create("aa2", metadata="new", created=now, flags={"f": 1})
        assert (image.metadata, image.created, image.flags) == ("new", now, {"f": 1})
        assert image.names == ("c",)


async def test_images_are_copied_out_of_all_stores_with_the_names_they_have(
    stack: Stack, tmp_path: Path
) -> None:
    async with stack.open() as store, ImageStore(tmp_path / "store-copy") as copy:
        await store.set_metadata("both", "copied")
        await copy_images(store, copy)
        assert {image.id for image in await copy.images()} == {"aa1", "aa2", "both"}
        assert not any(image.read_only for image in await copy.images())
        assert await copy.lookup("x") == "aa1"
        assert (await copy.get("both")).metadata == "copied"
        assert await copy.big_data("aa1", "large") == LARGE
        assert (await copy.get("aa2")).names == ("c",)
        result = await copy_images(copy, store)
        assert (result.present, result.images, result.bytes) == (2, 1, 0)
        assert await shown(store) == [("both", False), ("aa2", False), ("aa1", True)]


# Additional stores that are missing, damaged or read-only


async def test_a_missing_additional_store_raises_an_error_or_is_left_out(
    stack: Stack, tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(FileNotFoundError, match="required=False") as caught:
        async with ImageStore(stack.own, additional_stores=[stack.first, missing]):
            pass
    assert caught.value.filename == str(missing)
    optional: list[Path | AdditionalStore] = [AdditionalStore(missing, required=False), stack.first]
    async with ImageStore(stack.own, additional_stores=optional) as store:
        assert await shown(store) == [("aa1", True), ("both", True)]
    async with ImageStore(stack.own, additional_stores=optional[:1]) as store:
        assert await shown(store) == []
    assert not missing.exists()


async def test_a_damaged_additional_store_raises_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    index = tmp_path / "other" / "images.json"
    for text in ("{}", "[", '[{"id":"a"}'):
        index.write_text(text)
        for given in (tmp_path / "other", AdditionalStore(tmp_path / "other", required=False)):
            with pytest.raises(StoreCorruptError, match=str(index)) as caught:
                async with ImageStore(tmp_path / "store", additional_stores=[given]):
                    pass
            assert caught.value.path == str(index)
    index.write_text('[{"id":"good","names":["g"]},{"id":"bad","names":7}]')
    async with ImageStore(tmp_path / "store", additional_stores=[tmp_path / "other"]) as store:
        assert await shown(store) == [("good", True)]
        await store.create("bad")
        index.write_text("{}")
        for call in (store.images, store.snapshot, lambda: store.get("good")):
            with pytest.raises(StoreCorruptError, match=str(index)):
                await call()


async def test_a_graph_root_is_refused_as_an_additional_store(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "graph" / "overlay-images").mkdir(parents=True)
    with pytest.raises(GraphRootError, match="overlay-images"):
        async with ImageStore(stack.own, additional_stores=[tmp_path / "graph"]):
            pass


async def test_an_additional_store_that_goes_away_raises_an_error(stack: Stack) -> None:
    async with stack.open() as store:
        assert len(await store.images()) == 3
        stack.second.rename(stack.second.with_name("moved"))
        with pytest.raises(StoreLostError, match=str(stack.second)):
            await store.images()
        stack.second.with_name("moved").rename(stack.second)
        assert len(await store.images()) == 3


@pytest.mark.parametrize("given", ["a path", b"a path", 7, None])
async def test_additional_stores_are_a_sequence_of_locations(given: Any) -> None:
    with pytest.raises(TypeError, match="additional_stores"):
        ImageStore("store", additional_stores=given)
    with pytest.raises(TypeError, match="location"):
        ImageStore("store", additional_stores=[7])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="address"):
        ImageStore("store", additional_stores=["postgresql://host/database"])


async def test_nothing_is_written_to_an_additional_store(stack: Stack) -> None:
    lock = stack.first / "images.lock"
    token = lock.read_bytes()
    lock.unlink()
    for path in (stack.first, *stack.first.rglob("*")):
        path.chmod(0o500 if path.is_dir() else 0o400)
    before = _times(stack.first)
    async with stack.open() as store:
        await store.set_metadata("aa1", "new")
        await store.big_data("aa1", "large")
        async with store.watch(), store.transaction() as tx:
            await tx.set_names("both", ["n"])
        await store.collect_garbage()
        await store.touch()
    assert _times(stack.first) == before
    for path in (stack.first, *stack.first.rglob("*")):
        path.chmod(0o700)
    lock.write_bytes(token)


def _times(path: Path) -> dict[str, tuple[int, ...]]:
    found = [path, *path.rglob("*")]
    statuses = {str(each): each.lstat() for each in found}
    return {n: (s.st_ino, s.st_mode, s.st_mtime_ns, s.st_ctime_ns) for n, s in statuses.items()}


# Freshness, watches, and other programs


@pytest.fixture
async def moving(tmp_path: Path) -> Stack:
    """A store and two additional ones, all without images, for tests that change all of them."""
    stack = Stack(tmp_path)
    for path in (stack.first, stack.second):
        async with ImageStore(path):
            pass
    return stack


async def test_a_change_of_an_additional_store_is_seen_by_the_next_call(moving: Stack) -> None:
    async with moving.open() as store, ImageStore(moving.first) as first:
        assert await store.images() == []
        for number in range(20):
            await first.create(f"id{number}", names=["latest"] if not number else [])
            assert await store.exists(f"id{number}")
            assert len(await store.snapshot()) == number + 1
            await first.add_names(f"id{number}", ["latest"])
            assert await store.lookup("latest") == f"id{number}"
        assert not await store.modified()
        await first.wipe()
        assert await store.modified()
        assert await store.refresh()
        assert not await store.refresh()
        assert await store.images() == []


async def test_a_watch_yields_changes_of_visible_images_only(
    moving: Stack,
) -> None:
    async with (
        moving.open() as store,
        ImageStore(moving.first) as first,
        ImageStore(moving.second) as second,
        store.watch() as watch,
    ):
        steps: list[tuple[Callable[[], Awaitable[object]], list[tuple[str, str]]]] = [
            (lambda: second.create("i", metadata="second"), [("created", "i")]),
            (lambda: first.create("i", metadata="first"), [("changed", "i")]),
            (lambda: second.set_metadata("i", "hidden"), []),
            (lambda: store.set_metadata("i", "own"), [("changed", "i")]),
            (lambda: first.set_metadata("i", "hidden"), []),
            (lambda: first.delete("i"), []),
            (lambda: store.create("j"), [("created", "j")]),
            (lambda: store.delete("i"), [("changed", "i")]),
            (lambda: second.delete("i"), [("deleted", "i")]),
            (lambda: store.delete("j"), [("deleted", "j")]),
            (lambda: first.create("k"), [("created", "k")]),
        ]
        images: dict[str, Image] = {}
        for change, expected in steps:
            await change()
            await second.touch()
            events = await take(watch, len(expected))
            assert kinds(events) == expected
            replay(images, events)
            assert images == {image.id: image for image in await store.images()}
        assert [image.read_only for image in images.values()] == [True]


async def test_a_watch_polls_as_often_as_the_store_that_needs_it_most(moving: Stack) -> None:
    async with moving.open() as store, store.watch() as watch:
        feed: Any = watch._feed
        for number, each in enumerate(feed._feeds):
            each.interval = 3 - number
        assert feed.interval == 4 - len(feed._feeds) < 3


async def test_a_watch_merges_changes_of_several_stores_between_two_polls(
    moving: Stack,
) -> None:
    async with (
        moving.open() as store,
        ImageStore(moving.first) as first,
        ImageStore(moving.second) as second,
    ):
        for each in (first, second):
            await each.create("i", metadata=each._core.location.name)
        await second.create("moves down")
        images = {image.id: image for image in await store.images()}
        async with store.watch() as watch:
            await store.set_metadata("i", "own")
            await store.set_metadata("i", "own again")
            await first.delete("i")
            await second.set_metadata("i", "new")
            await store.delete("i")
            await first.create("moves down", metadata="of the first")
            await second.delete("moves down")
            await first.create("new")
            await second.create("new")
            await second.create("end")
            while "end" not in images:
                replay(images, await take(watch, 1))
            await first.create("last")
            while "last" not in images:
                replay(images, await take(watch, 1))
        assert images == {image.id: image for image in await store.images()}
        assert images["i"].metadata == "new"


async def test_an_image_that_moves_between_stores_is_always_seen(
    moving: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ImageStore(moving.first) as first:
        await first.create("i")
    async with ImageStore(moving.own):
        pass
    record = (moving.first / "images.json").read_text()

    def move() -> None:
        (moving.own / "images.json").write_text(record)
        (moving.first / "images.json").write_text("[]")

    async with moving.open() as store, ImageStore(moving.own) as own:
        await own.create("new")  # so that the store loads its index again
        reader = core_of(store).engine._engines[1].reader  # type: ignore[attr-defined]
        real = reader.snapshot

        def snapshot() -> object:
            monkeypatch.undo()
            move()  # the store has been read by now, the additional one has not
            return real()

        monkeypatch.setattr(reader, "snapshot", snapshot)
        assert await store.exists("i")
        assert len(await store.images()) == 1


async def test_a_read_waits_for_a_change_of_another_program_in_an_additional_store(
    moving: Stack,
) -> None:
    half = {"id": "i", "created": "2024-01-01T00:00:00Z"}
    whole = {**half, "metadata": "whole"}
    changes: dict[str, Callable[[ImageStore], Awaitable[Image]]] = {
        "get": lambda store: store.get("i"),
        "set_flag": lambda store: store.set_flag("i", "f", 1),
        "transaction": _flagged_in_transaction,
    }
    for name, call in changes.items():
        shutil.rmtree(moving.own, ignore_errors=True)
        async with moving.open() as store, moving.open(lock_timeout=0.2) as hasty:
            with foreign_writer(moving.first) as writer:
                writer.save(half)
                with pytest.raises(LockTimeoutError, match=str(moving.first)):
                    await call(hasty)
                found: list[Image] = []

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(append_to, found, call(store))
                    await anyio.sleep(0.1)
                    assert not found, name
                    assert not is_locked(moving.own) or name == "transaction"
                    writer.save(whole)
                    await anyio.to_thread.run_sync(writer.release)
                assert found[0].metadata == "whole", name


@pytest.mark.parametrize("is_measured", [False, True], ids=["read", "measured"])
async def test_a_transaction_waits_for_a_change_of_an_item_in_an_additional_store(
    moving: Stack, is_measured: bool
) -> None:
    async with ImageStore(moving.first) as first:
        await first.create("i", big_data={"k": OLD})
    edit_index(moving.first, remove_measures)

    async def content(store: ImageStore) -> str:
        async with store.transaction() as tx:
            if is_measured:
                return await tx.big_data_digest("i", "k")
            return digest_of(await tx.big_data("i", "k"))

    async with moving.open() as store, moving.open(lock_timeout=0.2) as hasty:
        await store.get("i")
        await hasty.get("i")
        with foreign_writer(moving.first) as writer:
            writer.place("i", "k", NEW)
            with pytest.raises(LockTimeoutError, match=str(moving.first)):
                await content(hasty)
            found: list[str] = []
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(append_to, found, content(store))
                await anyio.sleep(0.1)
                assert not found
                await anyio.to_thread.run_sync(writer.release)
        assert found == [digest_of(NEW)]


async def test_an_iteration_continues_after_a_change_in_a_later_store(
    moving: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_local(fd: int) -> bool:
        return os.readlink(f"/proc/self/fd/{fd}") != str(moving.own)

    # A store on a network file system keeps no catalog, and is read one page at a time.
    monkeypatch.setattr(engine, "is_local", is_local)
    async with ImageStore(moving.first) as first:
        await first.create("i")
    async with moving.open() as store:
        await store.create("one")
        await store.create("two")
        pages = store.iter_images(page_size=1)
        seen = [await anext(pages)]
        with foreign_writer(moving.first) as writer:
            record = {"id": "i", "created": "2024-01-01T00:00:00Z"}
            writer.save(record)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(append_to, seen, anext(pages))
                await anyio.sleep(0.1)
                assert len(seen) == 1
                await anyio.to_thread.run_sync(writer.release)
        seen += [image async for image in pages]
        assert [image.id for image in seen] == ["one", "two", "i"]


async def append_to(found: list[Any], call: Awaitable[Any]) -> None:
    """Append the result of a call."""
    found.append(await call)


async def _flagged_in_transaction(store: ImageStore) -> Image:
    async with store.transaction() as tx:
        return await tx.set_flag("i", "f", 1)


# Copying an image into the store


async def test_the_lock_is_free_while_items_are_copied(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ItemCopies.steps
    locked: list[bool] = []

    def watched(self: ItemCopies) -> Iterator[tuple[int, int]]:
        for figures in steps(self):
            locked.append(is_locked(stack.own))
            yield figures

    monkeypatch.setattr(ItemCopies, "steps", watched)
    async with stack.open() as store:
        await store.set_metadata("aa1", "new")
        assert locked
        assert not any(locked)


OLD, NEW = b"old content", b"new content"


def interrupt_copies(monkeypatch: pytest.MonkeyPatch, *changes: Callable[[], object]) -> list[int]:
    """Make the next of these changes at the end of each copy; return a list that grows with each.

    The changes are made in the thread that copies.
    """
    steps = ItemCopies.steps
    pending = list(changes)
    copies: list[int] = []

    def changing(self: ItemCopies) -> Iterator[tuple[int, int]]:
        copies.append(len(copies))
        yield from steps(self)
        if pending:
            pending.pop(0)()

    monkeypatch.setattr(ItemCopies, "steps", changing)
    return copies


def replace_item(path: Path, data: bytes, *, is_recorded: bool = True) -> None:
    """Replace an item of the image ``i``, as another program would."""
    (path / "i" / ".tmp-k").write_bytes(data)
    (path / "i" / ".tmp-k").rename(path / "i" / "k")

    def change(records: list[Any]) -> None:
        if is_recorded:
            records[0]["big-data-sizes"] = {"k": len(data)}
            records[0]["big-data-digests"] = {"k": digest_of(data)}

    edit_index(path, change)


async def test_a_transaction_copies_the_version_that_it_finds(moving: Stack) -> None:
    async with ImageStore(moving.first) as first:
        await first.create("i", big_data={"k": OLD})
    async with moving.open() as store:
        async with store.transaction() as tx:
            await tx.get("i")
            replace_item(moving.first, NEW)
            await tx.set_metadata("i", "copied")
        assert (await store.get("i")).big_data_digests == {"k": digest_of(NEW)}
        assert await store.big_data("i", "k") == NEW
    assert (await check(moving.own, verify=True)).findings == ()


@pytest.mark.parametrize("is_in_transaction", [False, True])
@pytest.mark.parametrize("is_recorded", [True, False])
async def test_a_version_that_is_replaced_during_the_copy_is_copied_anew(
    moving: Stack, monkeypatch: pytest.MonkeyPatch, is_in_transaction: bool, is_recorded: bool
) -> None:
    async with ImageStore(moving.first) as first:
        await first.create("i", big_data={"k": OLD})
    if not is_recorded:  # so that the record stays the same
        edit_index(moving.first, remove_measures)

    def replace() -> None:
        replace_item(moving.first, NEW, is_recorded=is_recorded)

    copies = interrupt_copies(monkeypatch, replace)
    async with moving.open() as store:
        if is_in_transaction:
            async with store.transaction() as tx:
                await tx.set_metadata("i", "copied")
        else:
            await store.set_metadata("i", "copied")
        assert len(copies) == 2
        image = await store.get("i")
        assert image.metadata == "copied"
        assert await store.big_data("i", "k") == NEW
        assert (image.big_data_digests == {"k": digest_of(NEW)}) == is_recorded
    assert (await check(moving.own, verify=True)).findings == ()


async def test_content_that_is_replaced_and_restored_during_the_copy_is_copied_anew(
    moving: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ImageStore(moving.first) as first:
        await first.create("i", big_data={"k": OLD})

    def replace_and_restore() -> None:
        replace_item(moving.first, NEW)
        replace_item(moving.first, OLD)

    copies = interrupt_copies(monkeypatch, replace_and_restore)
    async with moving.open() as store:
        await store.set_metadata("i", "copied")
        assert len(copies) == 2
        assert await store.big_data("i", "k") == OLD


async def test_a_change_of_an_image_that_is_deleted_during_its_copy_raises_an_error(
    moving: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ImageStore(moving.first) as first:
        await first.create("i", big_data={"k": OLD})

    def delete() -> None:
        shutil.rmtree(moving.first / "i")
        edit_index(moving.first, lambda records: records.clear())

    interrupt_copies(monkeypatch, delete)
    async with moving.open() as store:
        with pytest.raises(ImageUnknownError):
            await store.set_metadata("i", "copied")
    assert [name for name in os.listdir(moving.own) if name.startswith(".")] == []


async def test_a_copy_that_another_store_made_meanwhile_is_changed_in_its_place(
    moving: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ImageStore(moving.first) as first:
        await first.create("i", big_data={"k": OLD})
    async with moving.open() as store, moving.open() as other:
        real = store._core._copy

        async def copy(copying: Any) -> None:
            await real(copying)
            monkeypatch.undo()
            await other.set_big_data("i", "k", NEW)

        monkeypatch.setattr(store._core, "_copy", copy)
        image = await store.set_metadata("i", "copied")
        assert image.metadata == "copied"
        assert await store.big_data("i", "k") == NEW


async def test_changes_at_once_of_one_image_make_one_copy(moving: Stack) -> None:
    async with ImageStore(moving.first) as first:
        await first.create("i", big_data={"k": LARGE, "l": OLD})
    async with moving.open() as store:
        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(store.set_flag, "i", f"flag{number}", number)
        assert len((await store.get("i")).flags) == 10
        assert await store.big_data("i", "k") == LARGE
        assert len(await store.images()) == 1
    assert (await check(moving.own, verify=True)).findings == ()


async def test_a_damaged_or_missing_item_is_not_copied(moving: Stack) -> None:
    async with ImageStore(moving.first) as first:
        await first.create("i", big_data={"k": OLD, "manifest": MANIFEST})
    before = tree(moving.first)
    async with moving.open() as store:
        (moving.first / "i" / "k").write_bytes(b"altered....")
        with pytest.raises(DigestMismatchError):
            await store.set_metadata("i", "copied")
        async with store.transaction() as tx:
            with pytest.raises(DigestMismatchError):
                await tx.set_metadata("i", "copied")
        (moving.first / "i" / "k").unlink()
        with pytest.raises(BigDataMissingError):
            await store.set_metadata("i", "copied")
        assert [name for name in os.listdir(moving.own) if name.startswith(".")] == []
        assert await shown(store) == [("i", True)]
        image = await store.set_big_data("i", "k", NEW)  # the item that is replaced is not copied
        assert image.big_data_names == ("k", "manifest")
    (moving.first / "i" / "k").write_bytes(OLD)
    assert tree(moving.first) == before


async def test_a_refused_deletion_fails_alone_in_a_batch_that_copies_images(
    stack: Stack,
) -> None:
    async with stack.open() as store:
        await store.create("own")
        results: list[Image] = []

        async def fail(ref: str) -> None:
            with pytest.raises(StoreReadOnlyError):
                await store.delete(ref)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(append_to, results, store.set_flag("own", "f", 1))
            tasks.start_soon(append_to, results, store.set_flag("aa1", "f", 1))
            tasks.start_soon(fail, "both")
            tasks.start_soon(append_to, results, store.set_flag("aa2", "f", 1))
            tasks.start_soon(append_to, results, store.create("new"))
        assert len(results) == 4
        assert [i for i, read_only in await shown(store) if read_only] == ["both"]


async def test_the_id_of_a_damaged_record_of_the_store_cannot_be_copied_over(stack: Stack) -> None:
    stack.own.mkdir()
    (stack.own / "images.json").write_text('[{"id":"aa1","names":7}]')
    async with stack.open() as store:
        assert (await store.get("aa1")).read_only
        with pytest.raises(StoreCorruptError, match="damaged"):
            await store.set_metadata("aa1", "new")
        with pytest.raises(StoreCorruptError, match="damaged"):
            await store.create("aa1")
    shutil.rmtree(stack.own)
