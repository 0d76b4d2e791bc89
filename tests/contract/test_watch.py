"""What watching tells: each change once, in order, whoever makes it."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import TypeVar

import anyio
import anyio.lowlevel
import pytest

from aimagestore import ChangeEvent, Changes, Image, ImageStore, StoreClosedError

from ..homes import Home

T = TypeVar("T")


@pytest.fixture(params=["told", "looking"])
def how(request: pytest.FixtureRequest, home: Home, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether somebody tells of changes."""
    if request.param == "looking":
        home.stop_telling(monkeypatch)
    return str(request.param)


def told(changes: Iterable[ChangeEvent]) -> list[tuple[str, str]]:
    return [(change.kind, change.id) for change in changes]


async def take(changes: Changes, number: int) -> list[ChangeEvent]:
    """The next so many changes."""
    with anyio.fail_after(20):
        return [await anext(changes) for _ in range(number)]


async def until_idle(changes: Changes) -> None:
    """Return when a task waits for the next change."""
    with anyio.fail_after(20):
        while changes._waiting is None:
            await anyio.lowlevel.checkpoint()


async def meanwhile(changes: Changes, call: Awaitable[T]) -> tuple[T, ChangeEvent]:
    """What a call returns, and the change that comes to a task that was waiting for one before."""
    seen: list[ChangeEvent] = []

    async def take_one() -> None:
        seen.extend(await take(changes, 1))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take_one)
        await until_idle(changes)
        result = await call
    return result, seen[0]


async def change_everything(store: ImageStore) -> list[tuple[str, str]]:
    """Change the store in every way, and say what is to be told of it."""
    await store.create("one", names=["a"])
    await store.create("two")
    await store.set_big_data("one", "manifest", b"content")
    await store.add_names("two", ["a", "b"])
    await store.set_metadata("one", "text")
    await store.set_metadata("one", "text")  # which changes nothing
    await store.set_flag("two", "flag", 1)
    async with store.transaction() as tx:
        tx.create("three")
        tx.set_metadata("three", "text")
        tx.delete("two")
        tx.create("four")
        tx.delete("four")
    await store.wipe()
    return [
        ("created", "one"),
        ("created", "two"),
        ("changed", "one"),
        ("changed", "one"),
        ("changed", "two"),
        ("changed", "one"),
        ("changed", "two"),
        ("deleted", "two"),
        ("created", "three"),
        ("deleted", "one"),
        ("deleted", "three"),
    ]


@pytest.mark.usefixtures("how")
async def test_each_of_this_stores_changes_comes_once_and_in_order(store: ImageStore) -> None:
    await store.create("zero")
    await store.delete("zero")
    async with store.watch() as changes:
        expected = await change_everything(store)
        assert told(await take(changes, len(expected))) == expected
        with anyio.move_on_after(0.05) as scope:
            await anext(changes)
        assert scope.cancelled_caught


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("read_only", [False, True])
async def test_what_another_store_does_is_told_to_who_waits(
    store: ImageStore, home: Home, read_only: bool
) -> None:
    await store.touch()
    async with ImageStore(home(), read_only=read_only) as reader, reader.watch() as changes:
        made, seen = await meanwhile(changes, store.create("one", names=["a"]))
        assert seen == ChangeEvent("created", "one", made)
        made, seen = await meanwhile(changes, store.set_metadata("one", "text"))
        assert seen == ChangeEvent("changed", "one", made)
        _, seen = await meanwhile(changes, store.delete("one"))
        assert seen == ChangeEvent("deleted", "one")


async def test_several_watch_one_store(store: ImageStore) -> None:
    async with store.watch() as first:
        await store.create("one")
        async with store.watch() as second:
            await store.create("two")
            assert told(await take(second, 1)) == [("created", "two")]
        await store.create("three")
        assert told(await take(first, 3)) == [("created", i) for i in ("one", "two", "three")]


async def test_several_tasks_take_the_changes_of_one_watch(store: ImageStore) -> None:
    seen: list[ChangeEvent] = []

    async def take_one() -> None:
        seen.append(await anext(changes))

    async with store.watch() as changes, anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(take_one)
        await until_idle(changes)
        for image_id in ("one", "two", "three"):
            await store.create(image_id)
    assert told(seen) == [("created", i) for i in ("one", "two", "three")]


async def test_cancelled_the_next_change_is_still_the_next(store: ImageStore) -> None:
    async with store.watch() as changes:
        for number in range(20):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(anext, changes)
                    await until_idle(changes)
                    scope.cancel()
            await store.create(f"image{number}")
            assert told(await take(changes, 1)) == [("created", f"image{number}")]


def replay(images: dict[str, Image], changes: Iterable[ChangeEvent]) -> None:
    """Do to the images what the changes say, which has to be possible."""
    for change in changes:
        if change.kind == "deleted":
            assert change.image is None
            del images[change.id]
        else:
            assert (change.id in images) == (change.kind == "changed")
            assert change.image is not None
            images[change.id] = change.image


async def test_closing_ends_who_waits(home: Home) -> None:
    store = ImageStore(home())
    errors: list[Exception] = []

    async def watch() -> None:
        async with store.watch() as changes:
            try:
                async for _ in changes:
                    raise AssertionError("nothing has changed")
            except StoreClosedError as error:
                errors.append(error)
            with pytest.raises(StoreClosedError):
                await anext(changes)

    async with store, anyio.create_task_group() as tasks, store.watch() as idle:
        tasks.start_soon(watch)
        while len(store._watches) < 2:
            await anyio.lowlevel.checkpoint()
        await store.aclose()
        with pytest.raises(StoreClosedError):
            await anext(idle)
    assert len(errors) == 1
    with pytest.raises(StoreClosedError):
        async with store.watch():
            pass


async def test_who_is_slow_finds_the_last_state(
    store: ImageStore, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.keep_few_changes(monkeypatch)
    await store.create("there")
    images = {image.id: image for image in await store.images()}
    async with store.watch() as changes:
        for number in range(30):
            await store.create(f"image{number}")
            await store.set_metadata("there", str(number))
            if number % 3:
                await store.delete(f"image{number}")
        # Ten of image 0, 3, 6…, and one of the one that was there.
        found = await take(changes, 11)
        replay(images, found)
        assert images == {image.id: image for image in await store.images()}
        await store.delete("there")
        assert told(await take(changes, 1)) == [("deleted", "there")]
