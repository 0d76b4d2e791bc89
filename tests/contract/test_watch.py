"""A watch yields each change once and in order, whichever store makes it."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from aimagestore import (
    ChangeEvent,
    ImageStore,
    StoreClosedError,
    WatchExpiredError,
)

from ..support.stores import StoreUnderTest
from ..support.watching import change_everything, kinds, meanwhile, take, until_idle


@pytest.fixture(params=["notified", "polling"])
def how(
    request: pytest.FixtureRequest, where: StoreUnderTest, monkeypatch: pytest.MonkeyPatch
) -> str:
    """How the store learns of changes."""
    if request.param == "polling":
        where.disable_notifications(monkeypatch)
    return str(request.param)


@pytest.mark.usefixtures("how")
async def test_each_change_of_this_store_comes_once_and_in_order(store: ImageStore) -> None:
    await store.create("zero")
    await store.delete("zero")
    async with store.watch() as watch:
        expected = await change_everything(store)
        assert kinds(await take(watch, len(expected))) == expected
        await store.create("last")  # nothing comes twice
        assert kinds(await take(watch, 1)) == [("created", "last")]


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("read_only", [False, True])
async def test_a_change_of_another_store_wakes_a_waiting_task(
    store: ImageStore, where: StoreUnderTest, read_only: bool
) -> None:
    await store.touch()
    async with ImageStore(where.location, read_only=read_only) as reader, reader.watch() as watch:
        made, seen = await meanwhile(watch, store.create("one", names=["a"]))
        assert seen == ChangeEvent("created", "one", made)
        made, seen = await meanwhile(watch, store.set_metadata("one", "text"))
        assert seen == ChangeEvent("changed", "one", made)
        _, seen = await meanwhile(watch, store.delete("one"))
        assert seen == ChangeEvent("deleted", "one")


async def test_one_store_has_several_watches(store: ImageStore) -> None:
    async with store.watch() as first:
        await store.create("one")
        async with store.watch() as second:
            await store.create("two")
            assert kinds(await take(second, 1)) == [("created", "two")]
        await store.create("three")
        assert kinds(await take(first, 3)) == [("created", i) for i in ("one", "two", "three")]


async def test_several_tasks_share_the_changes_of_one_watch(store: ImageStore) -> None:
    seen: list[ChangeEvent] = []

    async def take_one() -> None:
        seen.append(await anext(watch))

    async with store.watch() as watch, anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(take_one)
        await until_idle(watch)
        for image_id in ("one", "two", "three"):
            await store.create(image_id)
    assert kinds(seen) == [("created", i) for i in ("one", "two", "three")]


async def test_cancelling_a_wait_loses_no_change(store: ImageStore) -> None:
    async with store.watch() as watch:
        for number in range(20):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(anext, watch)
                    await until_idle(watch)
                    scope.cancel()
            await store.create(f"image{number}")
            assert kinds(await take(watch, 1)) == [("created", f"image{number}")]


async def test_closing_the_store_ends_its_watches(where: StoreUnderTest) -> None:
    store = ImageStore(where.location)
    errors: list[Exception] = []
    idle = anyio.Event()

    async def watch_one() -> None:
        async with store.watch() as watch, anyio.create_task_group() as tasks:

            async def wait() -> None:
                with pytest.raises(StoreClosedError) as caught:
                    await anext(watch)
                errors.append(caught.value)

            tasks.start_soon(wait)
            await until_idle(watch)
            idle.set()
        with pytest.raises(StoreClosedError):
            await anext(watch)

    async with store, anyio.create_task_group() as tasks, store.watch() as unused:
        tasks.start_soon(watch_one)
        await idle.wait()
        await store.aclose()
        with pytest.raises(StoreClosedError):
            await anext(unused)
    assert len(errors) == 1
    with pytest.raises(StoreClosedError):
        async with store.watch():
            pass


async def test_a_watch_whose_changes_are_not_taken_expires(
    store: ImageStore, where: StoreUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    where.limit_pending_changes(monkeypatch)
    await store.create("image")
    async with store.watch() as watch:
        for number in range(10):
            await store.set_metadata("image", str(number))
        assert len(await take(watch, 10)) == 10
        for number in range(11):
            await store.set_flag("image", "number", number)
        for _ in range(2):
            with pytest.raises(WatchExpiredError, match="start another watch"):
                await take(watch, 1)
    async with store.watch() as watch:
        await store.delete("image")
        assert kinds(await take(watch, 1)) == [("deleted", "image")]
