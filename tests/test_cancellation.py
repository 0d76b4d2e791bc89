"""Every public coroutine, cancelled wherever it can be."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import ImageStore, Report, check, repair

from .conftest import open_files
from .test_pipeline import is_locked, locked, until_no_thread_waits


class Steps:
    """Awaits something, and cancels a scope when it has been suspended so many times."""

    def __init__(self, call: Awaitable[object], scope: anyio.CancelScope, steps: int) -> None:
        self._call = call
        self._scope = scope
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, None]:
        inner = self._call.__await__()
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                request = inner.send(value) if error is None else _throw(inner, error)
            except StopIteration:
                return
            self._steps -= 1
            if self._steps == 0:
                self._scope.cancel()
            value = error = None
            try:
                value = yield request
            except BaseException as caught:
                error = caught


def _throw(inner: Any, error: BaseException) -> Any:
    return inner.throw(error)


async def chunks() -> AsyncIterator[bytes]:
    for _ in range(2):
        await anyio.lowlevel.checkpoint()
        yield b"x" * 1_100_000


async def stage(store: ImageStore) -> None:
    async with store.stage() as staged:
        await staged.write(b"content")
        await store.create("new", big_data={"key": staged})


async def transact(store: ImageStore) -> None:
    async with store.transaction() as tx:
        tx.create("new", big_data={"key": b"content"})
        await anyio.lowlevel.checkpoint()
        tx.delete("two")


async def read(store: ImageStore) -> None:
    async with store.open_big_data("one", "manifest", verify=True) as reader:
        async for _ in reader:
            pass


async def watch(store: ImageStore) -> None:
    async with store.watch() as changes:
        await store.set_flag("one", "flag", 1)
        await anext(changes)


async def reopen(store: ImageStore) -> None:
    async with ImageStore(store._engine.name) as other:
        await other.get("one")


async def close(store: ImageStore) -> None:
    other = await ImageStore(store._engine.name).__aenter__()
    try:
        await other.get("one")
    finally:
        await other.aclose()


OPERATIONS: dict[str, Callable[[ImageStore], Awaitable[object]]] = {
    "get": lambda store: store.get("one"),
    "lookup": lambda store: store.lookup("a"),
    "exists": lambda store: store.exists("nobody"),
    "metadata": lambda store: store.metadata("one"),
    "images": lambda store: store.images(),
    "snapshot": lambda store: store.snapshot(),
    "refresh": lambda store: store.refresh(),
    "modified": lambda store: store.modified(),
    "touched_since": lambda store: store.touched_since(datetime.now(UTC)),
    "touch": lambda store: store.touch(),
    "create": lambda store: store.create("new", names=["n"], big_data={"key": b"content"}),
    "set_names": lambda store: store.set_names("one", ["b"]),
    "add_names": lambda store: store.add_names("two", ["a"]),
    "remove_names": lambda store: store.remove_names("one", ["a"]),
    "set_metadata": lambda store: store.set_metadata("one", "text"),
    "set_flag": lambda store: store.set_flag("one", "flag", 1),
    "clear_flag": lambda store: store.clear_flag("one", "flag"),
    "delete": lambda store: store.delete("two"),
    "wipe": lambda store: store.wipe(),
    "big_data": lambda store: store.big_data("one", "manifest"),
    "big_data_names": lambda store: store.big_data_names("one"),
    "big_data_size": lambda store: store.big_data_size("one", "unmeasured"),
    "big_data_digest": lambda store: store.big_data_digest("one", "unmeasured"),
    "set_big_data of bytes": lambda store: store.set_big_data("one", "manifest", b"new"),
    "set_big_data of chunks": lambda store: store.set_big_data("one", "manifest", chunks()),
    "stage": stage,
    "transaction": transact,
    "open_big_data": read,
    "watch": watch,
    "reopen": reopen,
    "collect_garbage": lambda store: store.collect_garbage(),
    "check": lambda store: check(store._engine.name),
    "repair": lambda store: repair(store._engine.name, Report()),
    "aclose": close,
}

INDEX = (
    b'[{"id":"one","names":["a"],"big-data-names":["unmeasured"],'
    b'"created":"2020-01-01T00:00:00Z"},{"id":"two","created":"2020-01-01T00:00:00Z"}]'
)


async def make(path: Path) -> ImageStore:
    """Put the store into the state that each try begins with."""
    (path / "one").mkdir(parents=True)
    (path / "one" / "unmeasured").write_bytes(b"content")
    (path / "images.json").write_bytes(INDEX)
    store = await ImageStore(path).__aenter__()
    await store.set_big_data("one", "manifest", b"m" * 1_200_000)
    return store


async def until_open(path: Path, count: int) -> None:
    """Wait for a check's last step, which ends by itself, and for nothing else."""
    with anyio.fail_after(5):
        while len(open_files(f"{path}")) != count:
            await anyio.sleep(0.001)


async def check_whole(store: ImageStore, path: Path) -> None:
    """Check that nothing is left over, and that records and content agree."""
    assert {n for n in os.listdir(path) if n.startswith(".")} == set()
    assert not is_locked(path)
    for image in await store.images():
        for key, digest in image.big_data_digests.items():
            data = await store.big_data(image.id, key)
            assert digest == "sha256:" + hashlib.sha256(data).hexdigest()
    async with ImageStore(path, read_only=True) as other:
        assert await other.images() == await store.images()
    await store.create("after")


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_cancelled_at_every_step(tmp_path: Path, operation: str) -> None:
    for steps in range(1, 100):
        path = tmp_path / f"store{steps}"
        store = await make(path)
        before = len(open_files(f"{path}"))
        with anyio.CancelScope() as scope:
            await Steps(OPERATIONS[operation](store), scope, steps)
        await until_open(path, before)
        await check_whole(store, path)
        await store.aclose()
        await until_open(path, 0)
        if not scope.cancel_called:
            return
    raise AssertionError("it never completed")


@pytest.mark.parametrize("operation", ["set_flag", "create", "transaction", "stage", "touch"])
async def test_cancelled_at_every_step_while_the_lock_is_taken(
    tmp_path: Path, operation: str
) -> None:
    for steps in range(1, 100):
        path = tmp_path / f"store{steps}"
        store = await make(path)
        before = len(open_files(f"{path}"))
        with locked(path), anyio.move_on_after(0.02), anyio.CancelScope() as scope:
            await Steps(OPERATIONS[operation](store), scope, steps)
        await until_no_thread_waits()
        await until_open(path, before)
        assert not await store.exists("new")
        await check_whole(store, path)
        await store.aclose()
        if not scope.cancel_called:
            return
    raise AssertionError("it never waited")
