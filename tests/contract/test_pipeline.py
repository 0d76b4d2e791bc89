"""The commit pipeline: many tasks, one commit; transactions; the lock; closing."""

from __future__ import annotations

import copy
import os

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

from ..homes import Home


async def test_each_gets_its_own_result_or_error(store: ImageStore) -> None:
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


async def test_a_changes_result_is_the_image_as_that_change_left_it(store: ImageStore) -> None:
    await store.create("one")
    results = []

    async def change(text: str) -> None:
        results.append((text, (await store.set_metadata("one", text)).metadata))

    async with anyio.create_task_group() as tasks:
        for i in range(20):
            tasks.start_soon(change, str(i))
    assert len(results) == 20
    assert all(text == metadata for text, metadata in results)


async def test_an_error_caught_inside_changes_nothing(store: ImageStore) -> None:
    async with store.transaction() as tx:
        tx.create("one", names=["a"])
        with pytest.raises(DuplicateIDError):
            tx.create("one")
        with pytest.raises(ImageUnknownError):
            tx.set_names("nobody", ["a"])
        with pytest.raises(TypeError):
            tx.set_big_data("one", "key", "text")
    assert (await store.get("a")).id == "one"


async def test_changes_inside_a_transaction_do_not_deadlock(store: ImageStore) -> None:
    async def child() -> None:
        with pytest.raises(RuntimeError, match="transaction"):
            await store.create()

    async with store.transaction():
        with pytest.raises(RuntimeError, match="transaction"):
            await store.wipe()
        with pytest.raises(RuntimeError, match="transaction"):
            async with store.transaction():
                pass
        with pytest.raises(RuntimeError, match="transaction"):
            await store.aclose()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)
    await store.create()


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
            tx.create("parent")
        over.set()
    assert [image.id for image in await store.images()] == ["parent", "child"]


async def test_a_transaction_takes_staged_data(store: ImageStore) -> None:
    async with store.stage(b"data") as staged:
        with pytest.raises(ZeroDivisionError):
            async with store.transaction() as tx:
                tx.create("one", big_data={"key": staged})
                raise ZeroDivisionError
        async with store.transaction() as tx:
            tx.create("two", big_data={"key": staged})
    assert await store.big_data("two", "key") == b"data"
    assert not await store.exists("one")


async def test_transactions_and_changes_of_many_tasks(store: ImageStore) -> None:
    await store.create("one", flags={"n": 0})

    async def count(tx: Transaction) -> None:
        tx.set_flag("one", "n", tx.get("one").flags["n"] + 1)

    async def add() -> None:
        for _ in range(5):
            async with store.transaction() as tx:
                await count(tx)

    async with anyio.create_task_group() as tasks:
        for i in range(5):
            tasks.start_soon(add)
            tasks.start_soon(store.set_flag, "one", f"other{i}", i)
    assert (await store.get("one")).flags == {"n": 25} | {f"other{i}": i for i in range(5)}


async def test_a_wait_that_is_cancelled_leaves_nothing_held(store: ImageStore, home: Home) -> None:
    with home.locked():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.create, "one")
            await home.until_waiting()
            tasks.cancel_scope.cancel()
    await home.until_nobody_waits()
    # Somebody else's server may have given it away before it heard that nobody wants it.
    await home.until(lambda: not home.is_locked())
    assert not await store.exists("one")
    await store.create("two")


async def test_a_leader_that_gives_up_hands_over(store: ImageStore, home: Home) -> None:
    scopes: dict[str, anyio.CancelScope] = {}
    done: list[str] = []

    async def create(image_id: str) -> None:
        with anyio.CancelScope() as scope:
            scopes[image_id] = scope
            await store.create(image_id)
            done.append(image_id)

    async with anyio.create_task_group() as tasks:
        with home.locked():
            for i in range(5):
                tasks.start_soon(create, f"id{i}")
            await home.until_waiting()
            for image_id in ("id0", "id1", "id3"):
                scopes[image_id].cancel()
            await anyio.lowlevel.checkpoint()
    assert sorted(done) == ["id2", "id4"]
    assert sorted(image.id for image in await store.images()) == ["id2", "id4"]


async def test_each_waiters_time_is_its_own(home: Home) -> None:
    async with ImageStore(home()) as patient, ImageStore(home(), lock_timeout=0.05) as hasty:
        timeouts = []

        async def change(i: int) -> None:
            try:
                await hasty.create(f"hasty{i}")
            except LockTimeoutError as error:
                timeouts.append(error)

        async with anyio.create_task_group() as tasks:
            with home.locked():
                tasks.start_soon(patient.create, "patient")
                async with anyio.create_task_group() as hurried:
                    for i in range(3):
                        hurried.start_soon(change, i)
        await home.until_nobody_waits()
        assert len(timeouts) == 3
        assert [image.id for image in await patient.images()] == ["patient"]


async def test_waiting_writers_leave_the_applications_threads_alone(
    store: ImageStore, home: Home
) -> None:
    async with anyio.create_task_group() as tasks:
        with home.locked():
            for i in range(100):
                tasks.start_soon(store.create, f"id{i}")
            await home.until_waiting()
            with anyio.fail_after(5):
                async with anyio.create_task_group() as others:
                    for _ in range(40):
                        others.start_soon(anyio.to_thread.run_sync, os.getpid)
            assert len(await store.images()) == 0
    assert len(await store.images()) == 100


async def test_closing_turns_away_who_waits(home: Home) -> None:
    refused = []

    async def create(store: ImageStore) -> None:
        try:
            await store.create()
        except StoreClosedError as error:
            refused.append(error)

    store = ImageStore(home())
    async with store:
        with home.locked():
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(create, store)
                await home.until_waiting()
                await store.aclose()
    assert len(refused) == 5
    await home.until_nobody_waits()
    assert not home.is_locked()


async def test_closing_finishes_what_is_under_way(home: Home) -> None:
    store = ImageStore(home())
    async with store, anyio.create_task_group() as tasks:
        in_transaction = anyio.Event()
        go_on = anyio.Event()

        async def transact() -> None:
            async with store.transaction() as tx:
                tx.create("one")
                in_transaction.set()
                await go_on.wait()

        tasks.start_soon(transact)
        await in_transaction.wait()
        tasks.start_soon(store.aclose)
        await anyio.wait_all_tasks_blocked()
        go_on.set()
    async with ImageStore(home()) as again:
        assert await again.exists("one")


async def test_a_reader_outlives_its_store(home: Home) -> None:
    store = ImageStore(home())
    async with store:
        await store.create("one", big_data={"key": b"data"})
        async with store.open_big_data("one", "key") as reader:
            await store.aclose()
            assert await reader.read() == b"data"


def test_another_event_loop_is_refused(home: Home) -> None:
    store = ImageStore(home())

    async def first() -> None:
        await store.__aenter__()
        await store.create("one")

    async def second() -> None:
        with pytest.raises(RuntimeError, match="event loop"):
            await store.set_metadata("one", "x")

    async def last() -> None:
        store._loop = anyio.lowlevel.current_token()
        await store.aclose()

    for function in (first, second, last):
        anyio.run(function)


async def test_a_forked_child_is_refused(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create("one")
    monkeypatch.setattr("aimagestore._async.store._process", 77)
    with pytest.raises(StoreClosedError, match="fork"):
        await store.get("one")
    await copy.copy(store).aclose()
    monkeypatch.undo()
    assert await store.exists("one")


# What a transaction leaves


async def test_a_transaction_is_saved_once_and_whole(store: ImageStore, home: Home) -> None:
    await store.create("old", names=["a", "b"])
    before = home.contents()
    async with store.transaction() as tx:
        tx.create("new", names=["c"], big_data={"manifest": b"{}"})
        tx.set_names("new", ["a"])
        tx.add_names("new", ["d"])
        tx.remove_names("old", ["b"])
        tx.set_metadata("new", "text")
        tx.set_flag("new", "one", 1)
        tx.set_flag("new", "two", 2)
        tx.clear_flag("new", "one")
        tx.set_big_data("old", "key", b"data")
        assert tx.lookup("d") == tx.get("a").id == "new"
        assert tx.exists("new")
        assert [image.id for image in tx.images()] == ["old", "new"]
        assert [image.id for image in tx.by_digest(tx.get("new").digest)] == ["new"]
        assert await store.exists("b")
        assert not await store.exists("new")
        assert home.contents() == before
    image = await store.get("new")
    assert (image.names, image.metadata, image.flags) == (("d", "a"), "text", {"two": 2})
    assert (await store.get("old")).names == ()
    assert await store.big_data("old", "key") == b"data"
    assert await store.big_data("new", "manifest") == b"{}"
    with pytest.raises(StoreClosedError):
        tx.get("new")


async def test_an_exception_undoes_a_transaction(store: ImageStore, home: Home) -> None:
    await store.create("old")
    before = home.contents()
    with pytest.raises(ZeroDivisionError):
        async with store.transaction() as tx:
            tx.delete("old")
            tx.create("new", big_data={"key": b"data"})
            raise ZeroDivisionError
    assert home.contents() == before
    assert not home.is_locked()
    await store.set_metadata("old", "x")


async def test_delete_and_create_again_at_once(store: ImageStore) -> None:
    await store.create("one", names=["a"], big_data={"old": b"old", "both": b"old"})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.delete, "one")
        tasks.start_soon(lambda: store.create("one", big_data={"new": b"new", "both": b"new"}))
    assert await store.big_data("one", "new") == await store.big_data("one", "both") == b"new"
    assert await store.big_data_names("one") == ["new", "both"]


async def test_two_stores_of_one_process_exclude_each_other(store: ImageStore, home: Home) -> None:
    async with ImageStore(home(), lock_timeout=0.05) as other:
        async with store.transaction():
            with pytest.raises(LockTimeoutError) as info:
                await other.create()
            assert home.is_locked()
        assert info.value.path is not None
        assert isinstance(info.value, TimeoutError)
        await other.create()
    assert not home.is_locked()
