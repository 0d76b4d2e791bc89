"""Changes of many tasks, transactions, waiting for the lock, and closing a store."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import anyio
import anyio.to_thread
import pytest

from aimagestore import (
    DuplicateIDError,
    ImageStore,
    ImageUnknownError,
    LockTimeoutError,
    StoreClosedError,
    Transaction,
)

from ..support.buildah import SOME_DIGEST
from ..support.stores import StoreUnderTest, until


async def test_each_task_gets_its_own_result_or_error(store: ImageStore) -> None:
    await store.create("one")
    results: dict[int, object] = {}

    async def change(i: int) -> None:
        try:
            if i % 3 == 0:
                results[i] = await store.create("one")
            elif i % 3 == 1:
                results[i] = await store.set_metadata("nobody", "x")
            else:
                results[i] = await store.set_flag("one", f"flag{i}", i)
        except (DuplicateIDError, ImageUnknownError) as error:
            results[i] = error

    async with anyio.create_task_group() as tasks:
        for i in range(30):
            tasks.start_soon(change, i)
    assert [type(results[i]) for i in range(30)] == [
        DuplicateIDError,
        ImageUnknownError,
        type(await store.get("one")),
    ] * 10
    assert len({id(result) for result in results.values()}) == 30
    assert (await store.get("one")).flags == {f"flag{i}": i for i in range(2, 30, 3)}


async def test_the_result_of_a_change_is_the_image_after_that_change(store: ImageStore) -> None:
    await store.create("one")
    results = []

    async def change(text: str) -> None:
        results.append((text, (await store.set_metadata("one", text)).metadata))

    async with anyio.create_task_group() as tasks:
        for i in range(20):
            tasks.start_soon(change, str(i))
    assert len(results) == 20
    assert all(text == metadata for text, metadata in results)


async def test_an_error_that_is_caught_in_a_transaction_does_not_end_it(store: ImageStore) -> None:
    async with store.transaction() as tx:
        await tx.create("one", names=["a"])
        with pytest.raises(DuplicateIDError):
            await tx.create("one")
        with pytest.raises(ImageUnknownError):
            await tx.set_names("nobody", ["a"])
        with pytest.raises(TypeError):
            await tx.set_big_data("one", "key", "text")  # type: ignore[arg-type]
    assert (await store.get("a")).id == "one"


async def test_a_change_of_the_store_inside_its_transaction_raises_instead_of_deadlocking(
    store: ImageStore,
) -> None:
    async def child() -> None:
        with pytest.raises(RuntimeError, match="transaction"):
            await store.create()

    async with store.transaction():
        with pytest.raises(RuntimeError, match="transaction's own methods"):
            await store.wipe()
        for call in (store.touch, store.collect_garbage, store.stage().__aenter__):
            with pytest.raises(RuntimeError, match="any other call before it or after it"):
                await call()
        with pytest.raises(RuntimeError, match="transaction"):
            async with store.transaction():
                pass
        with pytest.raises(RuntimeError, match="transaction"):
            await store.aclose()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)
    await store.create()


async def test_a_transaction_that_is_entered_inside_another_one_raises_instead_of_deadlocking(
    store: ImageStore,
) -> None:
    outer, inner = store.transaction(), store.transaction()
    with anyio.fail_after(10):
        async with outer:
            with pytest.raises(RuntimeError, match="transaction around"):
                await inner.__aenter__()
        async with inner as transaction:
            await transaction.create()


async def test_a_child_that_outlives_the_transaction_may_change_the_store(
    store: ImageStore,
) -> None:
    over = anyio.Event()

    async def child() -> None:
        await over.wait()
        await store.create("child")

    async with anyio.create_task_group() as tasks:
        async with store.transaction() as tx:
            tasks.start_soon(child)
            await tx.create("parent")
        over.set()
    assert [image.id for image in await store.images()] == ["parent", "child"]


async def test_a_transaction_takes_staged_data(store: ImageStore) -> None:
    async with store.stage(b"data") as staged:
        with pytest.raises(ZeroDivisionError):
            async with store.transaction() as tx:
                await tx.create("one", big_data={"key": staged})
                raise ZeroDivisionError
        async with store.transaction() as tx:
            await tx.create("two", big_data={"key": staged})
    assert await store.big_data("two", "key") == b"data"
    assert not await store.exists("one")


async def test_transactions_and_changes_of_many_tasks_lose_no_update(store: ImageStore) -> None:
    await store.create("one", flags={"n": 0})

    async def count(tx: Transaction) -> None:
        await tx.set_flag("one", "n", (await tx.get("one")).flags["n"] + 1)

    async def add() -> None:
        for _ in range(5):
            async with store.transaction() as tx:
                await count(tx)

    async with anyio.create_task_group() as tasks:
        for i in range(5):
            tasks.start_soon(add)
            tasks.start_soon(store.set_flag, "one", f"other{i}", i)
    assert (await store.get("one")).flags == {"n": 25} | {f"other{i}": i for i in range(5)}


async def test_a_wait_that_is_cancelled_leaves_nothing_held(
    store: ImageStore, where: StoreUnderTest
) -> None:
    with where.locked():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.create, "one")
            await where.until_requested()
            tasks.cancel_scope.cancel()
    await where.until_free()
    assert not await store.exists("one")
    await store.create("two")


async def test_cancelling_the_task_that_waits_for_the_lock_lets_the_others_go_on(
    store: ImageStore, where: StoreUnderTest
) -> None:
    scopes: dict[str, anyio.CancelScope] = {}
    done: list[str] = []
    cancelled: list[str] = []

    async def create(image_id: str) -> None:
        with anyio.CancelScope() as scope:
            scopes[image_id] = scope
            await store.create(image_id)
            done.append(image_id)
        if scope.cancelled_caught:
            cancelled.append(image_id)

    async with anyio.create_task_group() as tasks:
        with where.locked():
            for i in range(5):
                tasks.start_soon(create, f"id{i}")
            await where.until_requested()
            for image_id in ("id0", "id1", "id3"):
                scopes[image_id].cancel()
            # A cancelled task takes its change out of the queue when it runs next.
            await until(lambda: len(cancelled) == 3)
    assert sorted(done) == ["id2", "id4"]
    assert sorted(image.id for image in await store.images()) == ["id2", "id4"]


async def test_the_timeout_of_one_store_does_not_end_the_waiting_of_another(
    where: StoreUnderTest,
) -> None:
    async with (
        ImageStore(where.location) as store,
        ImageStore(where.location, lock_timeout=0.05) as hasty,
    ):
        timeouts = []

        async def change(i: int) -> None:
            try:
                await hasty.create(f"hasty{i}")
            except LockTimeoutError as error:
                timeouts.append(error)

        async with anyio.create_task_group() as tasks:
            with where.locked():
                tasks.start_soon(store.create, "waiting")
                async with anyio.create_task_group() as hurried:
                    for i in range(3):
                        hurried.start_soon(change, i)
        await where.until_not_requested()
        assert len(timeouts) == 3
        assert [image.id for image in await store.images()] == ["waiting"]


async def test_waiting_writers_leave_the_applications_threads_alone(
    store: ImageStore, where: StoreUnderTest
) -> None:
    async with anyio.create_task_group() as tasks:
        with where.locked():
            for i in range(100):
                tasks.start_soon(store.create, f"id{i}")
            await where.until_requested()
            with anyio.fail_after(60):
                async with anyio.create_task_group() as others:
                    for _ in range(40):
                        others.start_soon(anyio.to_thread.run_sync, os.getpid)
            assert len(await store.images()) == 0
    assert len(await store.images()) == 100


async def test_closing_refuses_waiting_changes(where: StoreUnderTest) -> None:
    refused = []

    async def create(store: ImageStore) -> None:
        try:
            await store.create()
        except StoreClosedError as error:
            refused.append(error)

    store = ImageStore(where.location)
    async with store:
        with where.locked():
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(create, store)
                await where.until_requested()
                await store.aclose()
    assert len(refused) == 5
    await where.until_free()


async def test_closing_waits_for_an_open_transaction(where: StoreUnderTest) -> None:
    store = ImageStore(where.location)
    async with store, anyio.create_task_group() as tasks:
        in_transaction = anyio.Event()
        go_on = anyio.Event()

        async def transact() -> None:
            async with store.transaction() as tx:
                await tx.create("one")
                in_transaction.set()
                await go_on.wait()

        tasks.start_soon(transact)
        await in_transaction.wait()
        tasks.start_soon(store.aclose)
        await anyio.wait_all_tasks_blocked()
        go_on.set()
    async with ImageStore(where.location) as again:
        assert await again.exists("one")


ELSEWHERE: dict[str, Callable[[ImageStore], Awaitable[object]]] = {
    "get": lambda s: s.get("one"),
    "lookup": lambda s: s.lookup("one"),
    "exists": lambda s: s.exists("one"),
    "images": lambda s: s.images(),
    "by_digest": lambda s: s.by_digest(SOME_DIGEST),
    "metadata": lambda s: s.metadata("one"),
    "snapshot": lambda s: s.snapshot(),
    "iter_images": lambda s: anext(aiter(s.iter_images())),
    "big_data": lambda s: s.big_data("one", "key"),
    "big_data_names": lambda s: s.big_data_names("one"),
    "big_data_size": lambda s: s.big_data_size("one", "key"),
    "big_data_digest": lambda s: s.big_data_digest("one", "key"),
    "open_big_data": lambda s: s.open_big_data("one", "key").__aenter__(),
    "refresh": lambda s: s.refresh(),
    "modified": lambda s: s.modified(),
    "touched_since": lambda s: s.touched_since(datetime.now(UTC)),
    "watch": lambda s: s.watch().__aenter__(),
    "create": lambda s: s.create("two"),
    "set_metadata": lambda s: s.set_metadata("one", "x"),
    "set_names": lambda s: s.set_names("one", []),
    "add_names": lambda s: s.add_names("one", []),
    "remove_names": lambda s: s.remove_names("one", []),
    "delete": lambda s: s.delete("one"),
    "wipe": lambda s: s.wipe(),
    "set_flag": lambda s: s.set_flag("one", "f", 1),
    "clear_flag": lambda s: s.clear_flag("one", "f"),
    "set_big_data": lambda s: s.set_big_data("one", "key", b""),
    "stage": lambda s: s.stage(b"").__aenter__(),
    "transaction": lambda s: s.transaction().__aenter__(),
    "touch": lambda s: s.touch(),
    "collect_garbage": lambda s: s.collect_garbage(),
    "aclose": lambda s: s.aclose(),
}


def test_every_call_in_another_event_loop_raises_the_same_error(where: StoreUnderTest) -> None:
    """The other loop runs in a thread, so that the store's own can go on and close it."""
    errors: dict[str, str] = {}

    async def elsewhere(store: ImageStore) -> None:
        for name, call in ELSEWHERE.items():
            with pytest.raises(RuntimeError) as caught:
                await call(store)
            assert not isinstance(caught.value, StoreClosedError)
            errors[name] = str(caught.value)

    async def main() -> None:
        async with ImageStore(where.location) as store:
            await store.create("one", big_data={"key": b"data"})
            await anyio.to_thread.run_sync(anyio.run, elsewhere, store)

    anyio.run(main)
    assert errors.keys() == ELSEWHERE.keys()
    (message,) = set(errors.values())
    assert message.endswith("was opened in another event loop: open it again in this one")


async def test_a_forked_child_is_refused(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create("one")
    monkeypatch.setattr("aimagestore._async.core._process", 77)
    for call in (store.get("one"), store.create("two"), store.snapshot()):
        with pytest.raises(StoreClosedError, match="fork"):
            await call
    await store.aclose()  # which does nothing in a child
    monkeypatch.undo()
    assert await store.exists("one")


# Results of a transaction


async def test_a_transaction_is_saved_once_and_whole(
    store: ImageStore, where: StoreUnderTest
) -> None:
    await store.create("old", names=["a", "b"])
    before = where.contents()
    async with store.transaction() as tx:
        await tx.create("new", names=["c"], big_data={"manifest": b"{}"})
        await tx.set_names("new", ["a"])
        await tx.add_names("new", ["d"])
        await tx.remove_names("old", ["b"])
        await tx.set_metadata("new", "text")
        await tx.set_flag("new", "one", 1)
        await tx.set_flag("new", "two", 2)
        await tx.clear_flag("new", "one")
        await tx.set_big_data("old", "key", b"data")
        assert await tx.lookup("d") == (await tx.get("a")).id == "new"
        assert await tx.exists("new")
        assert [image.id for image in await tx.images()] == ["old", "new"]
        assert [image.id for image in await tx.by_digest((await tx.get("new")).digest)] == ["new"]
        assert await store.exists("b")
        assert not await store.exists("new")
        assert where.contents() == before
    image = await store.get("new")
    assert (image.names, image.metadata, image.flags) == (("d", "a"), "text", {"two": 2})
    assert (await store.get("old")).names == ()
    assert await store.big_data("old", "key") == b"data"
    assert await store.big_data("new", "manifest") == b"{}"
    with pytest.raises(StoreClosedError):
        await tx.get("new")


async def test_an_exception_undoes_a_transaction(store: ImageStore, where: StoreUnderTest) -> None:
    await store.create("old")
    before = where.contents()
    with pytest.raises(ZeroDivisionError):
        async with store.transaction() as tx:
            await tx.delete("old")
            await tx.create("new", big_data={"key": b"data"})
            raise ZeroDivisionError
    assert where.contents() == before
    await where.until_free()
    await store.set_metadata("old", "x")


async def test_an_image_that_is_deleted_and_created_again_at_once_has_only_its_new_items(
    store: ImageStore,
) -> None:
    await store.create("one", names=["a"], big_data={"old": b"old", "both": b"old"})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.delete, "one")
        await anyio.wait_all_tasks_blocked()  # trio starts tasks in any order
        tasks.start_soon(lambda: store.create("one", big_data={"new": b"new", "both": b"new"}))
    assert await store.big_data("one", "new") == await store.big_data("one", "both") == b"new"
    assert await store.big_data_names("one") == ["new", "both"]


async def test_two_stores_of_one_process_exclude_each_other(
    store: ImageStore, where: StoreUnderTest
) -> None:
    async with ImageStore(where.location, lock_timeout=0.05) as other:
        async with store.transaction():
            with pytest.raises(LockTimeoutError) as info:
                await other.create()
            assert where.is_locked()
        assert info.value.path is not None
        assert isinstance(info.value, TimeoutError)
        async with ImageStore(where.location) as third:
            await third.create()
    await where.until_free()
