"""Every coroutine of a store, cancelled wherever it can be."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import ImageStore, oci

from ..homes import Home
from ..layouts import CONFIG, Maker, encode


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


async def reopen(home: Home) -> None:
    async with ImageStore(home()) as other:
        await other.get("one")


async def import_layout(store: ImageStore, home: Home) -> None:
    await oci.import_layout(store, f"{home.beside}-layout", names=["b"])


async def export_layout(store: ImageStore, home: Home) -> None:
    await oci.export_layout(store, "exported", f"{home.beside}-out")


async def close(home: Home) -> None:
    other = await ImageStore(home()).__aenter__()
    try:
        await other.get("one")
    finally:
        await other.aclose()


OPERATIONS: dict[str, Callable[[ImageStore, Home], Awaitable[object]]] = {
    "get": lambda store, _: store.get("one"),
    "lookup": lambda store, _: store.lookup("a"),
    "exists": lambda store, _: store.exists("nobody"),
    "metadata": lambda store, _: store.metadata("one"),
    "images": lambda store, _: store.images(),
    "snapshot": lambda store, _: store.snapshot(),
    "refresh": lambda store, _: store.refresh(),
    "modified": lambda store, _: store.modified(),
    "touched_since": lambda store, _: store.touched_since(datetime.now(UTC)),
    "touch": lambda store, _: store.touch(),
    "create": lambda store, _: store.create("new", names=["n"], big_data={"key": b"content"}),
    "set_names": lambda store, _: store.set_names("one", ["b"]),
    "add_names": lambda store, _: store.add_names("two", ["a"]),
    "remove_names": lambda store, _: store.remove_names("one", ["a"]),
    "set_metadata": lambda store, _: store.set_metadata("one", "text"),
    "set_flag": lambda store, _: store.set_flag("one", "flag", 1),
    "clear_flag": lambda store, _: store.clear_flag("one", "flag"),
    "delete": lambda store, _: store.delete("two"),
    "wipe": lambda store, _: store.wipe(),
    "big_data": lambda store, _: store.big_data("one", "manifest"),
    "big_data_names": lambda store, _: store.big_data_names("one"),
    "big_data_size": lambda store, _: store.big_data_size("one", "unmeasured"),
    "big_data_digest": lambda store, _: store.big_data_digest("one", "unmeasured"),
    "set_big_data of bytes": lambda store, _: store.set_big_data("one", "manifest", b"new"),
    "set_big_data of chunks": lambda store, _: store.set_big_data("one", "manifest", chunks()),
    "stage": lambda store, _: stage(store),
    "transaction": lambda store, _: transact(store),
    "open_big_data": lambda store, _: read(store),
    "watch": lambda store, _: watch(store),
    "reopen": lambda _, home: reopen(home),
    "collect_garbage": lambda store, _: store.collect_garbage(),
    "import_layout": import_layout,
    "export_layout": export_layout,
    "aclose": lambda _, home: close(home),
}


async def make(home: Home) -> ImageStore:
    """Put the store into the state that each try begins with."""
    home.clear()
    async with ImageStore(home()) as store:
        await store.create("one", names=["a"], big_data={"unmeasured": b"content"})
        await store.create("two")
    home.unmeasure("one")
    store = await ImageStore(home()).__aenter__()
    await store.set_big_data("one", "manifest", b"m" * 1_200_000)
    layout = Maker()
    layout.enter(layout.image(b"layer"))
    layout.write(Path(f"{home.beside}-layout"))
    config = layout.blob(b"{}", CONFIG)
    manifest = encode({"schemaVersion": 2, "config": config})
    await store.create("exported", big_data={"manifest": manifest, config["digest"]: b"{}"})
    return store


async def check_whole(store: ImageStore, home: Home) -> None:
    """Check that nothing is left over, and that records and content agree."""
    assert home.leftovers() == []
    assert not home.is_locked()
    for image in await store.images():
        for key, digest in image.big_data_digests.items():
            data = await store.big_data(image.id, key)
            assert digest == "sha256:" + hashlib.sha256(data).hexdigest()
    async with ImageStore(home(), read_only=True) as other:
        assert await other.images() == await store.images()
    await store.create("after")


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_cancelled_at_every_step(home: Home, operation: str) -> None:
    for steps in range(1, 300):
        store = await make(home)
        before = home.in_use()
        with anyio.CancelScope() as scope:
            await Steps(OPERATIONS[operation](store, home), scope, steps)
        await home.until(partial(home.is_at_rest, before))
        await check_whole(store, home)
        await store.aclose()
        await home.until(lambda: not home.in_use())
        if not scope.cancel_called:
            return
    raise AssertionError("it never completed")


@pytest.mark.parametrize("operation", ["set_flag", "create", "transaction", "stage", "touch"])
async def test_cancelled_at_every_step_while_the_lock_is_taken(home: Home, operation: str) -> None:
    for steps in range(1, 100):
        store = await make(home)
        before = home.in_use()
        with home.locked(), anyio.move_on_after(0.02), anyio.CancelScope() as scope:
            await Steps(OPERATIONS[operation](store, home), scope, steps)
        await home.until_nobody_waits()
        await home.until(partial(home.is_at_rest, before))
        assert not await store.exists("new")
        await check_whole(store, home)
        await store.aclose()
        if not scope.cancel_called:
            return
    raise AssertionError("it never waited")
