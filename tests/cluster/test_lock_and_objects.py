"""No call holds the lock while it waits for the object store."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from aimagestore import ImageStore, StoreUnavailableError, check, copy_images, repair
from aimagestore.oci import import_layout

from ..support.layouts import Maker
from ..support.stores import ClusterStore

if TYPE_CHECKING:
    from .gateway import Answer, Gateway
    from .proxy import Proxy
    from .servers import Place

LARGE = bytes(range(256)) * 4096 * 10
"""More than one part of an upload."""

DEADLINE = 3.0
"""Seconds."""


class Witness:
    """Tries to acquire the lock before each request to the object store is answered.

    :ivar requests: the methods of all requests
    :ivar held: the methods of those during which the lock was held
    """

    def __init__(self, place: Place) -> None:
        self.requests: list[str] = []
        self.held: list[str] = []
        self._other = ClusterStore(place)
        self._other._session.execute("SET statement_timeout = '2s'")
        self._mutex = threading.Lock()

    def __call__(self, method: str, path: str, query: str) -> Answer | None:
        import psycopg

        with self._mutex:
            self.requests.append(method)
            try:
                with self._other.locked():
                    pass
            except psycopg.errors.QueryCanceled:
                self.held.append(method)
        return None

    def close(self) -> None:
        self._other.close()


@pytest.fixture
def witness(place: Place, gateway: Gateway) -> Iterator[Witness]:
    witness = Witness(place)
    yield witness
    witness.close()


async def stream() -> AsyncIterator[bytes]:
    yield LARGE


async def create(store: ImageStore, place: Place, path: Path) -> None:
    await store.create("one", big_data={"bytes": b"small", "large": LARGE, "stream": stream()})


async def replace(store: ImageStore, place: Place, path: Path) -> None:
    await store.set_big_data("old", "key", b"new")
    await store.set_big_data("old", "key", LARGE)


async def create_staged(store: ImageStore, place: Place, path: Path) -> None:
    async with store.stage(b"whole") as whole, store.stage() as pieces:
        await pieces.write(LARGE)
        await pieces.write(b"rest")
        await store.create("one", big_data={"whole": whole, "pieces": pieces})


async def transact_staged(store: ImageStore, place: Place, path: Path) -> None:
    async with (
        store.stage(b"small") as small,
        store.stage(stream()) as large,
        store.transaction() as tx,
    ):
        await tx.create("one", big_data={"small": small})
        await tx.set_big_data("old", "key", large)


async def import_images(store: ImageStore, place: Place, path: Path) -> None:
    maker = Maker()
    maker.enter(maker.image(b"small layer", LARGE), "a:1")
    maker.enter(maker.image(b"another small layer"), "b:1")
    await import_layout(store, maker.write(path / "layout.tar"))


async def copy(store: ImageStore, place: Place, path: Path) -> None:
    async with ImageStore(path / "source") as source:
        await source.create("one", big_data={"small": b"small", "large": LARGE})
        await copy_images(source, store)


async def delete_and_collect(store: ImageStore, place: Place, path: Path) -> None:
    await store.delete("old")
    found = 0
    # The object store tells the time in seconds.
    with anyio.fail_after(10):
        while not found:
            found = len((await store.collect_garbage()).findings)


async def check_and_repair(store: ImageStore, place: Place, path: Path) -> None:
    report = await check(place.location(), verify=True)
    await repair(place.location(), report, drop=True)


Call = Callable[[ImageStore, "Place", Path], Awaitable[None]]


@pytest.mark.parametrize(
    "call",
    [
        create,
        replace,
        create_staged,
        transact_staged,
        import_images,
        copy,
        delete_and_collect,
        check_and_repair,
    ],
)
async def test_no_call_holds_the_lock_during_a_request_to_the_object_store(
    place: Place,
    gateway: Gateway,
    witness: Witness,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Call,
) -> None:
    # As if everything had been staged long ago: the store then looks for each object before use.
    monkeypatch.setattr("aimagestore.cluster._staged._YOUNG", 0)
    async with ImageStore(place.location(grace_period=timedelta(microseconds=1))) as store:
        await store.create("old", big_data={"key": b"old"})
        gateway.rule = witness
        await call(store, place, tmp_path)
    assert witness.requests
    assert witness.held == []


async def test_bytes_that_a_transaction_is_given_are_uploaded_under_its_lock(
    place: Place, gateway: Gateway, witness: Witness
) -> None:
    """Its documentation says so. This also shows that the witness notices a held lock."""
    async with ImageStore(place.location()) as store:
        gateway.rule = witness
        async with store.transaction() as tx:
            await tx.create("one", big_data={"key": b"small"})
    assert witness.held == ["PUT"]


async def test_a_transaction_that_waits_for_the_object_store_releases_the_lock_at_its_deadline(
    place: Place, to_objects: Proxy
) -> None:
    async with (
        ImageStore(place.location(deadline=DEADLINE)) as store,
        ImageStore(place.location()) as other,
        anyio.create_task_group() as tasks,
    ):
        transaction = store.transaction()
        tx = await transaction.__aenter__()
        for number in range(40):
            await tx.create(f"image{number}", big_data={"key": str(number).encode()})
        tasks.start_soon(other.create, "other")
        with to_objects.silent(), anyio.fail_after(2 * DEADLINE):
            with pytest.raises(StoreUnavailableError):
                await transaction.__aexit__(None, None, None)
            while not await other.exists("other"):
                await anyio.sleep(0.01)
        assert [image.id for image in await store.images()] == ["other"]
