"""Every coroutine and context manager of a store, and sweeps that interrupt them at every step."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from uuid import UUID

import anyio

from aimagestore import (
    Image,
    ImageStore,
    PrunePolicy,
    Report,
    check,
    copy_images,
    oci,
    podman,
    repair,
)
from aimagestore._async.store import core_of

from .interruptions import ASYNCIO, Interruption
from .layouts import CONFIG, Maker, encode
from .loops import OPTIONS
from .stores import ClusterStore, StoreUnderTest, library_threads, until

MANIFEST = b"m" * 1_200_000
MANIFEST_DIGEST = hashlib.sha256(MANIFEST).hexdigest()

_POLICY = PrunePolicy(filter=lambda image: image.id in {"two", "exported"})

Operation = Callable[[ImageStore, StoreUnderTest], Awaitable[object]]


async def chunks() -> AsyncIterator[bytes]:
    for _ in range(2):
        await anyio.lowlevel.checkpoint()
        yield b"x" * 1_100_000


async def stage(store: ImageStore, _: StoreUnderTest) -> None:
    async with store.stage() as staged:
        await staged.write(b"content")
        await store.create("new", big_data={"key": staged})


async def stage_data(store: ImageStore, _: StoreUnderTest) -> None:
    async with store.stage(chunks()) as staged:
        await store.create("new", big_data={"key": staged})


async def set_what_is_there(store: ImageStore, _: StoreUnderTest) -> None:
    digest = f"sha256:{MANIFEST_DIGEST}"
    await store.set_big_data("two", "key", [b"not read"], expected_digest=digest)


async def create_like_another(store: ImageStore, _: StoreUnderTest) -> None:
    await store.create("new", big_data={"large": MANIFEST, "small": b"content"})


async def transact(store: ImageStore, _: StoreUnderTest) -> None:
    async with store.transaction() as tx:
        await tx.create("new", big_data={"key": b"content", "large": b"y" * 100_000})
        await anyio.lowlevel.checkpoint()
        await tx.big_data("new", "large")
        await tx.delete("two")


async def transact_in_generator(store: ImageStore, _: StoreUnderTest) -> None:
    async def generate() -> AsyncGenerator[int, None]:
        async with store.transaction() as tx:
            await tx.set_flag("one", "flag", 1)
            yield 1
            yield 2

    async with aclosing(generate()) as numbers:
        async for _number in numbers:
            break


async def read(store: ImageStore, _: StoreUnderTest) -> None:
    async with store.open_big_data("one", "manifest", verify=True) as reader:
        async for _chunk in reader:
            pass


async def read_part(store: ImageStore, _: StoreUnderTest) -> None:
    async with store.open_big_data("one", "manifest", start=5, end=10) as reader:
        await reader.seek(6)
        await reader.receive()


async def watch(store: ImageStore, _: StoreUnderTest) -> None:
    async with store.watch() as events:
        await store.set_flag("one", "flag", 1)
        await anext(events)


async def iterate(store: ImageStore, _: StoreUnderTest) -> None:
    async for _image in store.iter_images(page_size=1):
        pass


async def reopen(_: ImageStore, where: StoreUnderTest) -> None:
    async with ImageStore(where.location) as other:
        await other.get("one")


async def close(_: ImageStore, where: StoreUnderTest) -> None:
    other = await ImageStore(where.location).__aenter__()
    try:
        await other.get("one")
    finally:
        await other.aclose()


async def copy(store: ImageStore, where: StoreUnderTest) -> None:
    async with ImageStore(files_of(where) / "copy") as other:
        await copy_images(store, other)


async def import_layout(store: ImageStore, where: StoreUnderTest) -> None:
    await oci.import_layout(store, where.root / "layout", names=["b"])


async def export_layout(store: ImageStore, where: StoreUnderTest) -> None:
    await oci.export_layout(store, "exported", files_of(where) / "out")


OPERATIONS: dict[str, Operation] = {
    "get": lambda store, _: store.get("one"),
    "lookup": lambda store, _: store.lookup("a"),
    "exists": lambda store, _: store.exists("nobody"),
    "metadata": lambda store, _: store.metadata("one"),
    "images": lambda store, _: store.images(),
    "by_digest": lambda store, _: store.by_digest(f"sha256:{MANIFEST_DIGEST}"),
    "snapshot": lambda store, _: store.snapshot(),
    "podman_snapshot": lambda store, _: podman.snapshot(store),
    "iter_images": iterate,
    "refresh": lambda store, _: store.refresh(),
    "modified": lambda store, _: store.modified(),
    "touched_since": lambda store, _: store.touched_since(datetime.now(UTC)),
    "touch": lambda store, _: store.touch(),
    "create": lambda store, _: store.create("new", names=["n"], big_data={"key": b"content"}),
    "create_from_chunks": lambda store, _: store.create("new", big_data={"key": chunks()}),
    "set_names": lambda store, _: store.set_names("one", ["b"]),
    "add_names": lambda store, _: store.add_names("two", ["a"]),
    "remove_names": lambda store, _: store.remove_names("one", ["a"]),
    "set_flag": lambda store, _: store.set_flag("one", "flag", 1),
    "clear_flag": lambda store, _: store.clear_flag("one", "flag"),
    "delete": lambda store, _: store.delete("two"),
    "big_data": lambda store, _: store.big_data("one", "manifest"),
    "big_data_names": lambda store, _: store.big_data_names("one"),
    "big_data_size": lambda store, _: store.big_data_size("unmeasured", "key"),
    "big_data_digest": lambda store, _: store.big_data_digest("unmeasured", "key"),
    "set_big_data": lambda store, _: store.set_big_data("one", "manifest", b"new"),
    "set_big_data_from_chunks": lambda store, _: store.set_big_data("one", "manifest", chunks()),
    "set_big_data_from_iterable": lambda store, _: store.set_big_data("one", "k", [b"x"] * 10),
    "set_big_data_that_is_there": set_what_is_there,
    "create_like_another": create_like_another,
    "stage": stage,
    "stage_data": stage_data,
    "transaction": transact,
    "transaction_in_generator": transact_in_generator,
    "open_big_data": read,
    "open_big_data_in_part": read_part,
    "watch": watch,
    "reopen": reopen,
    "aclose": close,
    "collect_garbage": lambda store, _: store.collect_garbage(),
    "usage": lambda store, _: store.usage(),
    "prune": lambda store, _: store.prune(_POLICY),
    "check": lambda _, where: check(where.location),
    "repair": lambda _, where: repair(where.location, Report()),
    "copy_images": copy,
    "import_layout": import_layout,
    "export_layout": export_layout,
}

CHANGES = ["set_flag", "create", "transaction", "transaction_in_generator", "stage", "touch"]
CHANGES += ["set_big_data", "collect_garbage", "prune", "repair", "import_layout", "aclose"]
"""Operations that acquire the store's lock, in each of the ways."""

READS = {"get", "lookup", "exists", "metadata", "images", "by_digest", "snapshot", "iter_images"}
READS |= {"refresh", "modified", "touched_since", "big_data", "big_data_names", "big_data_size"}
READS |= {"usage", "big_data_digest", "open_big_data_in_part", "podman_snapshot"}
"""Operations that change nothing."""


async def fill(where: StoreUnderTest) -> None:
    """Create the images that the operations use and a layout to import, and save the store."""
    async with ImageStore(where.location) as store:
        await store.create("one", names=["a"])
        await store.create("two")
        await store.create("unmeasured", big_data={"key": b"content"})
        await store.set_big_data("one", "manifest", MANIFEST)
        layout = Maker()
        config = layout.blob(b"{}", CONFIG)
        manifest = encode({"schemaVersion": 2, "config": config})
        big_data = {"manifest": manifest, config["digest"]: b"{}"}
        await store.create("exported", big_data=big_data)
    where.remove_measures("unmeasured")
    where.save()
    layout = Maker()
    layout.enter(layout.image(b"layer"))
    layout.write(where.root / "layout")


def files_of(where: StoreUnderTest) -> Path:
    """Return the directory of what operations write beside the store."""
    return where.root / "files"


@asynccontextmanager
async def held_for_a_moment(where: StoreUnderTest) -> AsyncIterator[None]:
    """Hold the store's lock as another program would, for 10 ms."""
    entered = anyio.Event()

    async def hold() -> None:
        with where.locked():
            entered.set()
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold)
        await entered.wait()
        yield


class Sweep:
    """One operation, interrupted at one step after another.

    :param where: a store that :func:`fill` has filled
    :param operation: its name in :data:`OPERATIONS`
    :param is_held: whether another program holds the lock at first
    :cvar changes: the number of changes that another task makes meanwhile
    """

    changes = 3

    def __init__(self, where: StoreUnderTest, operation: str, *, is_held: bool = False) -> None:
        self.where = where
        self._operation = OPERATIONS[operation]
        self._is_held = is_held

    async def run(self, *interruptions: Interruption, first: int = 1, every: int = 1) -> None:
        """Interrupt the operation at one step after another, until it ends before the next one.

        :param interruptions: the ways, which take turns
        :param first: the first step that is interrupted
        :param every: the distance between the steps that are interrupted
        """
        ways = cycle(interruptions)
        step = first
        while await self.at(step, next(ways)):
            step += every
            assert step < 300, "it never completed"

    async def run_ways(self, interruptions: Sequence[Interruption], *, whole: bool) -> None:
        """Interrupt the operation at each step: in all of these ways, or in one by turns."""
        if whole:
            for interrupt in interruptions:
                await self.run(interrupt)
        else:
            await self.run(*interruptions)

    async def run_on(self, backend: object, *, whole: bool) -> None:
        """Interrupt the operation at each step, in the ways that this backend of anyio has.

        On uvloop only every third step is interrupted, unless ``whole``.

        :param whole: whether each step is interrupted in each way, instead of one by turns
        """
        if backend == OPTIONS["asyncio"]:
            ways = [ASYNCIO[name] for name in ("scope", "task_cancel", "repeated_cancels")]
            await self.run_ways(ways, whole=whole)
        elif backend == OPTIONS["trio"]:
            await self.run(ASYNCIO["scope"])
        else:
            await self.run(ASYNCIO["task_cancel"], every=1 if whole else 3)

    async def at(self, step: int, interrupt: Interruption) -> bool:
        """Interrupt the operation at one step, and return whether it got that far."""
        self.where.restore()
        async with self.opened() as store:
            return await self.interrupted(store, step, interrupt)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[ImageStore]:
        """Open the store for a block, and check that nothing is open after it was closed."""
        threads = len(library_threads())
        async with ImageStore(self.where.location) as store:
            yield store
        await until(lambda: not self.where.in_use() and not self.where.open_handles())
        await until(lambda: len(library_threads()) <= threads)

    async def interrupted(self, store: ImageStore, step: int, interrupt: Interruption) -> bool:
        """Interrupt the operation on a store at one step, and check what it leaves."""
        shutil.rmtree(files_of(self.where), ignore_errors=True)
        files_of(self.where).mkdir()
        await store.get("one")
        before = self.where.in_use()
        acknowledged: list[str] = []

        async def change_meanwhile() -> None:
            for number in range(self.changes):
                await store.set_metadata("one", f"number {number}")
                acknowledged.append(f"number {number}")

        async def call() -> bool:
            return await interrupt(lambda: self._operation(store, self.where), step)

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(change_meanwhile)
                if self._is_held:
                    async with held_for_a_moment(self.where):
                        is_interrupted = await call()
                else:
                    is_interrupted = await call()
        await until(lambda: self.where.in_use() <= before)
        await self.where.until_free()
        await self._check(store, acknowledged)
        return is_interrupted

    async def _check(self, store: ImageStore, acknowledged: list[str]) -> None:
        """Check that no file or change is left behind or lost, and that memory equals storage."""
        for directory, directories, files in os.walk(self.where.root):
            assert not [n for n in (*directories, *files) if n.startswith(".")], directory
        images = await store.images()
        assert await self.stored_images() == images
        for image in (images[0], images[-1]):
            assert await store.get(image.id) == image
        assert (await store.get("one")).metadata == acknowledged[-1]
        await self.check_content(store, images)
        await store.create("after")

    async def stored_images(self) -> list[Image]:
        """Return the images that are stored."""
        async with ImageStore(self.where.location, read_only=True) as other:
            return await other.images()

    async def check_content(self, store: ImageStore, images: list[Image]) -> None:
        """Check that big data has the digests in the records."""
        for image in images:
            for key, digest in image.big_data_digests.items():
                data = await store.big_data(image.id, key)
                assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"


class ClusterSweep(Sweep):
    """A sweep on a cluster. All steps use one store, because opening one takes longer than a step.

    :ivar store: the store, while :meth:`opened`
    """

    where: ClusterStore
    store: ImageStore
    changes = 1

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[ImageStore]:
        """Open the store for a block, and check that only committed objects remain after it."""
        self._committed: set[UUID] = set()
        self.where.restore()
        async with super().opened() as self.store:
            yield self.store
            assert is_idle(self.store)
        assert self.where.objects() == self._committed
        self.where.restore()
        self.where.remove_garbage()

    async def at(self, step: int, interrupt: Interruption) -> bool:
        self.where.restore()
        return await self.interrupted(self.store, step, interrupt)

    async def stored_images(self) -> list[Image]:
        return self.where.images()

    async def check_content(self, store: ImageStore, images: list[Image]) -> None:
        # Objects never change. Their presence is checked once, at the end.
        self._committed |= self.where.named_objects()


def is_idle(store: ImageStore) -> bool:
    """Return whether no call uses a session of a cluster's store."""
    from aimagestore.cluster import _sessions
    from aimagestore.cluster._engine import ClusterEngine

    engine = core_of(store).engine
    assert isinstance(engine, ClusterEngine)
    sessions = engine._sessions
    return not sessions._acquired and sessions._slots._value == _sessions.SESSIONS
