"""While the servers are silent, each call ends by its deadline, or at once if it is cancelled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from aimagestore import ImageStore, StoreUnavailableError, copy_images
from aimagestore.cluster import ClusterLocation
from aimagestore.oci import export_layout, import_layout

from ..support.layouts import hello
from ..support.loops import sample
from ..support.stores import library_threads, until

if TYPE_CHECKING:
    from .proxy import Proxy
    from .servers import Place, Servers

SHORT = 1.0
"""Seconds; the deadline of a call that is left to it."""

DEADLINE = 9.0
AT_ONCE = DEADLINE / 3
"""Seconds in which a cancelled call ends: much more than it takes, and far from the deadline."""

BEFORE = 0.2
"""Seconds; how long a call waits for the servers before it is cancelled."""

MIB = 1024 * 1024
DATA = bytes(16 * MIB)


class Silence:
    """The silence of both servers, which begins when this is called.

    :ivar location: the location of the store, by way of the proxies that fall silent
    :ivar directory: a directory for the files of a call
    :ivar has_begun: set when the silence has begun
    :ivar began: the time of its beginning, by the event loop's clock
    """

    def __init__(self, location: ClusterLocation, directory: Path, *proxies: Proxy) -> None:
        self.location = location
        self.directory = directory
        self.has_begun = anyio.Event()
        self.began = 0.0
        self._proxies = proxies
        self._stack = ExitStack()

    def __call__(self) -> None:
        """Begin the silence."""
        for proxy in self._proxies:
            self._stack.enter_context(proxy.silent())
        self.began = anyio.current_time()
        self.has_begun.set()

    def end(self) -> None:
        """Let the servers answer again."""
        self._stack.close()


@pytest.fixture
async def silence(
    servers: Servers, place: Place, to_postgres: Proxy, to_objects: Proxy, tmp_path: Path
) -> AsyncIterator[Silence]:
    """The silence of the servers, which has not begun."""
    there = servers.by_way_of(place, to_postgres.port)
    silence = Silence(there.location(deadline=DEADLINE), tmp_path, to_postgres, to_objects)
    yield silence
    silence.end()
    # Threads still remove objects after a store was closed, and need the proxies until then.
    await until(lambda: not library_threads())


Call = Callable[[ImageStore, Silence], Awaitable[object]]


def quietly(call: Callable[[ImageStore], Awaitable[object]]) -> Call:
    """Return the call with the silence beginning right before it."""

    async def run(store: ImageStore, silence: Silence) -> None:
        silence()
        await call(store)

    return run


async def iterate(store: ImageStore) -> None:
    async for _ in store.iter_images():
        pass


async def next_change(store: ImageStore, silence: Silence) -> None:
    async with store.watch() as changes:
        silence()
        await anext(changes)


async def begin_transaction(store: ImageStore) -> None:
    async with store.transaction():
        pass


def in_transaction(call: Callable[[Any], Awaitable[object]]) -> Call:
    async def run(store: ImageStore, silence: Silence) -> None:
        async with store.transaction() as tx:
            await tx.create("before")
            silence()
            await call(tx)

    return run


async def after_an_abandoned_change(store: ImageStore, silence: Silence) -> None:
    async with store.transaction() as tx:
        silence()
        with anyio.move_on_after(BEFORE / 4):
            await tx.create("first")
        await tx.create("second")


async def read_big_data(store: ImageStore, silence: Silence) -> None:
    async with store.open_big_data("one", "layer") as reader:
        await reader.read(10)
        silence()
        while await reader.read(MIB):
            pass


async def leave_a_reader(store: ImageStore, silence: Silence) -> None:
    async with store.open_big_data("one", "layer") as reader:
        silence()
        with anyio.move_on_after(BEFORE / 4):
            await reader.read()
    await anyio.sleep_forever()  # The reader was left at once, so the test cancels this.


async def write_staged(store: ImageStore, silence: Silence) -> None:
    async with store.stage() as staged:
        silence()
        for _ in range(64):
            await staged.write(DATA)


async def use_staged(store: ImageStore, silence: Silence) -> None:
    async with store.stage() as staged:
        await staged.write(b"data")
        silence()
        await store.set_big_data("one", "new", staged)


async def open_another(store: ImageStore, silence: Silence) -> None:
    silence()
    async with ImageStore(silence.location):
        pass


async def import_one(store: ImageStore, silence: Silence) -> None:
    layout = hello().write(silence.directory / "layout")
    silence()
    await import_layout(store, layout)


async def export_one(store: ImageStore, silence: Silence) -> None:
    silence()
    await export_layout(store, "imported", silence.directory / "exported")


async def copy_in(store: ImageStore, silence: Silence) -> None:
    async with ImageStore(silence.directory / "store") as other:
        await other.create("other", big_data={"layer": DATA})
        silence()
        await copy_images(other, store)


async def copy_out(store: ImageStore, silence: Silence) -> None:
    async with ImageStore(silence.directory / "store") as other:
        silence()
        await copy_images(store, other)


CALLS: dict[str, Call] = {
    "get": quietly(lambda s: s.get("one")),
    "images": quietly(lambda s: s.images()),
    "iter_images": quietly(iterate),
    "snapshot": quietly(lambda s: s.snapshot()),
    "refresh": quietly(lambda s: s.refresh()),
    "modified": quietly(lambda s: s.modified()),
    "touch": quietly(lambda s: s.touch()),
    "create": quietly(lambda s: s.create("two")),
    "create with bytes": quietly(lambda s: s.create("two", big_data={"key": b"1"})),
    "create with many bytes": quietly(lambda s: s.create("two", big_data={"key": DATA})),
    "delete": quietly(lambda s: s.delete("one")),
    "set_metadata": quietly(lambda s: s.set_metadata("one", "new")),
    "big_data": quietly(lambda s: s.big_data("one", "layer")),
    "collect_garbage": quietly(lambda s: s.collect_garbage()),
    "watch": quietly(lambda s: s.watch().__aenter__()),
    "next change": next_change,
    "read": read_big_data,
    "write": write_staged,
    "use staged": use_staged,
    "begin": quietly(begin_transaction),
    "get inside": in_transaction(lambda tx: tx.get("one")),
    "create inside": in_transaction(lambda tx: tx.create("two")),
    "large create inside": in_transaction(lambda tx: tx.create("two", big_data={"key": DATA})),
    "delete inside": in_transaction(lambda tx: tx.delete("one")),
    "big_data inside": in_transaction(lambda tx: tx.big_data("one", "layer")),
    "two inside": after_an_abandoned_change,
    "open": open_another,
    "import": import_one,
    "export": export_one,
    "copy in": copy_in,
    "copy out": copy_out,
    # It has no deadline.
    "leave a reader": leave_a_reader,
}


async def fill(store: ImageStore, silence: Silence, name: str) -> None:
    layout = hello().write(silence.directory / "imported")
    # More than the network has taken when a reader begins.
    layer = DATA if name in {"read", "leave a reader"} else b"layer"
    await store.create("one", big_data={"layer": layer})
    await import_layout(store, layout, names=["imported"])


@pytest.mark.parametrize(
    "name", sample((name for name in CALLS if name != "leave a reader"), every=2)
)
async def test_a_call_ends_by_its_deadline(silence: Silence, name: str) -> None:
    """A usual run tries every second call, and cancels the others."""
    async with ImageStore(silence.location) as store:
        await fill(store, silence, name)
    silence.location = replace(silence.location, deadline=SHORT)
    async with ImageStore(silence.location) as store:
        with pytest.raises(StoreUnavailableError):
            await CALLS[name](store, silence)
        # Measured: 0.9 to 1.2 deadlines.
        assert anyio.current_time() - silence.began < 3 * SHORT
        silence.end()
        with anyio.fail_after(DEADLINE):
            assert await store.exists("one")
            await store.create("after")


@pytest.mark.parametrize("name", sample(CALLS, every=2, first=1))
async def test_a_cancelled_call_ends_at_once(
    silence: Silence, name: str, anyio_backend_name: str
) -> None:
    """A usual run tries every second call, and has the others end by their deadline."""
    async with ImageStore(silence.location) as store:
        await fill(store, silence, name)
        if anyio_backend_name == "asyncio":
            ended = await cancelled_by_asyncio(CALLS[name](store, silence), silence)
        else:
            ended = await cancelled_by_anyio(lambda: CALLS[name](store, silence), silence)
        assert ended < AT_ONCE
        silence.end()
        with anyio.fail_after(DEADLINE):
            await store.create("after")
            assert await store.exists("one") or name in {"delete", "delete inside"}


async def cancelled_by_asyncio(call: Any, silence: Silence) -> float:
    """Cancel the call's task as asyncio does, and return how long it took to end, in seconds."""
    task = asyncio.create_task(call)
    await silence.has_begun.wait()
    await asyncio.sleep(BEFORE)
    began = anyio.current_time()
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    return anyio.current_time() - began


async def cancelled_by_anyio(call: Callable[[], Any], silence: Silence) -> float:
    """Cancel a scope; return how long its task took to end, in seconds."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await silence.has_begun.wait()
        await anyio.sleep(BEFORE)
        began = anyio.current_time()
        tasks.cancel_scope.cancel()
    return anyio.current_time() - began


async def test_a_change_that_was_cancelled_is_not_made_later(silence: Silence) -> None:
    async with ImageStore(silence.location) as store:
        async with store.transaction() as tx:
            silence()
            with anyio.move_on_after(BEFORE) as scope:
                await tx.create("first")
            assert scope.cancelled_caught
            silence.end()
            await tx.create("second")
        assert [image.id for image in await store.images()] == ["second"]


async def test_a_cancelled_write_fails_no_write_of_another_task(silence: Silence) -> None:
    async with ImageStore(silence.location) as store, store.stage() as staged:
        silence()

        async def write_and_leave() -> None:
            with anyio.move_on_after(BEFORE):
                await staged.write(DATA)

        async with anyio.create_task_group() as tasks:
            # More than what is spooled while the part before it is sent.
            tasks.start_soon(staged.write, 2 * DATA)
            await anyio.sleep(BEFORE)
            tasks.start_soon(write_and_leave)
            await anyio.sleep(4 * BEFORE)
            silence.end()
        await staged.write(b"more")
        assert staged.size in {2 * len(DATA) + 4, 3 * len(DATA) + 4}


async def test_a_watch_has_one_deadline_for_its_session_and_its_statements(
    silence: Silence, to_postgres: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aimagestore.cluster._sessions import Session, Sessions

    async with ImageStore(silence.location) as store:
        connect = Sessions.connect
        with ExitStack() as stack:

            def connect_and_fall_silent(sessions: Sessions, until: float) -> Session:
                session = connect(sessions, until)
                stack.enter_context(to_postgres.silent())
                return session

            monkeypatch.setattr(Sessions, "connect", connect_and_fall_silent)
            # Most of the deadline has passed already.
            monkeypatch.setattr(Sessions, "end_of_call", lambda _: time.monotonic() + SHORT)
            with anyio.fail_after(AT_ONCE), pytest.raises(StoreUnavailableError):
                await store.watch().__aenter__()


async def test_discarding_many_items_waits_for_one_removal(silence: Silence) -> None:
    async with ImageStore(silence.location) as store:
        async with AsyncExitStack() as stack:
            for number in range(40):
                await stack.enter_async_context(store.stage(str(number).encode()))
            silence()
        assert anyio.current_time() - silence.began < AT_ONCE
        silence.end()
