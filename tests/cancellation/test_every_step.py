"""Every coroutine and context manager of a store, interrupted at every step, in every way."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import ImageStore, Report, check, copy_images, oci, repair
from aimagestore._directory import files

from ..support import interruptions
from ..support.interruptions import Interruption
from ..support.layouts import CONFIG, Maker, encode
from ..support.loops import ASYNCIO_LOOPS, OPTIONS
from ..support.stores import is_locked, library_threads, until

MANIFEST = b"m" * 1_200_000
MANIFEST_DIGEST = hashlib.sha256(MANIFEST).hexdigest()

Operation = Callable[[ImageStore, str], Awaitable[object]]


async def chunks() -> AsyncIterator[bytes]:
    for _ in range(2):
        await anyio.lowlevel.checkpoint()
        yield b"x" * 1_100_000


async def stage(store: ImageStore, _: str) -> None:
    async with store.stage() as staged:
        await staged.write(b"content")
        await store.create("new", big_data={"key": staged})


async def stage_data(store: ImageStore, _: str) -> None:
    async with store.stage(chunks()) as staged:
        await store.create("new", big_data={"key": staged})


async def transact(store: ImageStore, _: str) -> None:
    async with store.transaction() as tx:
        await tx.create("new", big_data={"key": b"content", "large": b"y" * 100_000})
        await anyio.lowlevel.checkpoint()
        await tx.big_data("new", "large")
        await tx.delete("two")


async def transact_in_generator(store: ImageStore, _: str) -> None:
    async def generate() -> AsyncGenerator[int, None]:
        async with store.transaction() as tx:
            await tx.set_flag("one", "flag", 1)
            yield 1
            yield 2

    async with aclosing(generate()) as numbers:
        async for _number in numbers:
            break


async def read(store: ImageStore, _: str) -> None:
    async with store.open_big_data("one", "manifest", verify=True) as reader:
        async for _chunk in reader:
            pass


async def read_part(store: ImageStore, _: str) -> None:
    async with store.open_big_data("one", "manifest", start=5, end=10) as reader:
        await reader.seek(6)
        await reader.receive()


async def watch(store: ImageStore, _: str) -> None:
    async with store.watch() as events:
        await store.set_flag("one", "flag", 1)
        await anext(events)


async def iterate(store: ImageStore, _: str) -> None:
    async for _image in store.iter_images(page_size=1):
        pass


async def reopen(_: ImageStore, path: str) -> None:
    async with ImageStore(path) as other:
        await other.get("one")


async def close(_: ImageStore, path: str) -> None:
    other = await ImageStore(path).__aenter__()
    try:
        await other.get("one")
    finally:
        await other.aclose()


async def copy(store: ImageStore, path: str) -> None:
    async with ImageStore(f"{path}-copy") as other:
        await copy_images(store, other)


OPERATIONS: dict[str, Operation] = {
    "get": lambda store, _: store.get("one"),
    "lookup": lambda store, _: store.lookup("a"),
    "exists": lambda store, _: store.exists("nobody"),
    "metadata": lambda store, _: store.metadata("one"),
    "images": lambda store, _: store.images(),
    "by_digest": lambda store, _: store.by_digest(f"sha256:{MANIFEST_DIGEST}"),
    "snapshot": lambda store, _: store.snapshot(),
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
    "big_data_size": lambda store, _: store.big_data_size("one", "unmeasured"),
    "big_data_digest": lambda store, _: store.big_data_digest("one", "unmeasured"),
    "set_big_data": lambda store, _: store.set_big_data("one", "manifest", b"new"),
    "set_big_data_from_chunks": lambda store, _: store.set_big_data("one", "manifest", chunks()),
    "set_big_data_from_iterable": lambda store, _: store.set_big_data("one", "k", [b"x"] * 10),
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
    "check": lambda _, path: check(path),
    "repair": lambda _, path: repair(path, Report()),
    "copy_images": copy,
    "import_layout": lambda store, path: oci.import_layout(store, f"{path}-layout", names=["b"]),
    "export_layout": lambda store, path: oci.export_layout(store, "exported", f"{path}-out"),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The store that each try begins with, and a layout to import."""
    root = tmp_path_factory.mktemp("template")

    async def make() -> None:
        async with ImageStore(root / "store") as store:
            await store.create("one", names=["a"], big_data={"unmeasured": b"content"})
            await store.create("two")
            await store.set_big_data("one", "manifest", MANIFEST)
            layout = Maker()
            layout.enter(layout.image(b"layer"))
            layout.write(root / "store-layout")
            config = layout.blob(b"{}", CONFIG)
            manifest = encode({"schemaVersion": 2, "config": config})
            big_data = {"manifest": manifest, config["digest"]: b"{}"}
            await store.create("exported", big_data=big_data)

    anyio.run(make)
    index = root / "store" / "images.json"
    records = json.loads(index.read_bytes())
    for record in records:
        for described in ("big-data-sizes", "big-data-digests"):
            record.get(described, {}).pop("unmeasured", None)
    index.write_text(json.dumps(records, separators=(",", ":")))
    yield root
    shutil.rmtree(root)


def open_files(part: str) -> Counter[str]:
    """Count the open files of this process whose path contains a part, and notifications."""
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # closed since
        if part in target or "inotify" in target:
            found[target] += 1
    return found


@asynccontextmanager
async def held_for_a_moment(path: str) -> AsyncIterator[None]:
    """Hold the store's lock from outside of the stores under test, for 10 ms."""
    async with ImageStore(path) as holder, anyio.create_task_group() as tasks:
        entered = anyio.Event()

        async def hold() -> None:
            async with holder.transaction():
                entered.set()
                await anyio.sleep(0.01)

        tasks.start_soon(hold)
        await entered.wait()
        yield


class Sweep:
    """One operation, interrupted at one step after another."""

    def __init__(self, template: Path, root: str, operation: str, *, is_held: bool = False) -> None:
        self._template = template
        self._root = root
        self._path = f"{root}/store"
        self._operation = operation
        self._is_held = is_held

    async def run(self, interrupt: Interruption) -> None:
        """Interrupt the operation at each of its steps."""
        for step in range(1, 300):
            if not await self.at(step, interrupt):
                return
        raise AssertionError("it never completed")

    async def at(self, step: int, interrupt: Interruption) -> bool:
        """Interrupt the operation at one step, and return whether it got that far."""
        for name in os.listdir(self._root):
            shutil.rmtree(f"{self._root}/{name}")
        for name in os.listdir(self._template):
            shutil.copytree(self._template / name, f"{self._root}/{name}")
        threads = len(library_threads())
        async with ImageStore(self._path) as store:
            await store.get("one")
            before = open_files(self._root)
            acknowledged: list[str] = []

            async def change_meanwhile() -> None:
                for number in range(3):
                    await store.set_metadata("one", f"number {number}")
                    acknowledged.append(f"number {number}")

            async def call() -> bool:
                operation = OPERATIONS[self._operation]
                return await interrupt(lambda: operation(store, self._path), step)

            with anyio.fail_after(30):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(change_meanwhile)
                    if self._is_held:
                        async with held_for_a_moment(self._path):
                            is_interrupted = await call()
                    else:
                        is_interrupted = await call()
            await until(lambda: open_files(self._root) <= before)
            await until(lambda: not is_locked(Path(self._path)))
            await self._check(store, acknowledged)
        await until(lambda: not open_files(self._root))
        await until(lambda: len(library_threads()) <= threads)
        return is_interrupted

    async def _check(self, store: ImageStore, acknowledged: list[str]) -> None:
        """Check that nothing is left over or lost, and that memory equals disk."""
        for name in os.listdir(self._root):
            entries = os.listdir(f"{self._root}/{name}")
            assert not [entry for entry in entries if entry.startswith(".")], name
        images = await store.images()
        async with ImageStore(self._path, read_only=True) as other:
            assert await other.images() == images
        assert (await store.get("one")).metadata == acknowledged[-1]
        for image in images:
            for key, digest in image.big_data_digests.items():
                data = await store.big_data(image.id, key)
                assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
        await store.create("after")


@pytest.fixture
def root() -> Iterator[str]:
    """A directory for the stores of a sweep, in memory where that is possible."""
    parent = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="aimagestore-", dir=parent) as directory:
        yield directory


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_cancelled_scope_leaves_nothing_behind(
    template: Path, root: str, operation: str
) -> None:
    await Sweep(template, root, operation).run(interruptions.by_scope)


NATIVE = {name: each for name, each in interruptions.ASYNCIO.items() if name != "scope"}


@pytest.mark.parametrize("anyio_backend", ASYNCIO_LOOPS)
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_an_interruption_by_asyncio_leaves_nothing_behind(
    template: Path, root: str, operation: str, anyio_backend: Any
) -> None:
    for way in NATIVE if anyio_backend == OPTIONS["asyncio"] else ["task_cancel"]:
        await Sweep(template, root, operation).run(NATIVE[way])


CHANGES = ["set_flag", "create", "transaction", "transaction_in_generator", "stage", "touch"]
CHANGES += ["set_big_data", "collect_garbage", "repair", "import_layout", "aclose"]


def ways_on(backend: object) -> list[str]:
    """Return some ways to interrupt: what differs between them is tried by the tests above."""
    if backend == OPTIONS["asyncio"]:
        return ["scope", "task_cancel", "two_cancels"]
    return ["task_cancel"] if backend == OPTIONS["uvloop"] else ["scope"]


@pytest.mark.parametrize("operation", CHANGES)
async def test_an_interruption_while_another_program_has_the_lock_leaves_nothing_behind(
    template: Path, root: str, operation: str, anyio_backend: Any
) -> None:
    for way in ways_on(anyio_backend):
        sweep = Sweep(template, root, operation, is_held=True)
        await sweep.run(interruptions.ASYNCIO[way])


@pytest.mark.parametrize("operation", CHANGES)
async def test_an_interruption_while_the_disk_is_slow_leaves_nothing_behind(
    template: Path,
    root: str,
    operation: str,
    anyio_backend: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = files.Directory.sync_file

    def sync_slowly(self: files.Directory, name: str, fd: int) -> None:
        _slow()
        real(self, name, fd)

    monkeypatch.setattr(files.Directory, "sync_file", sync_slowly)
    for way in ways_on(anyio_backend):
        await Sweep(template, root, operation).run(interruptions.ASYNCIO[way])


def _slow() -> None:
    import time

    time.sleep(0.005)  # the disk


@pytest.mark.parametrize("operation", OPERATIONS)
def test_ctrl_c_leaves_nothing_behind(template: Path, root: str, operation: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    sweep = Sweep(template, root, operation)
    # Each in a loop of its own: the second Ctrl-C in one would be a KeyboardInterrupt at once.
    for step in range(1, 300):
        if not asyncio.run(sweep.at(step, interruptions.by_ctrl_c)):
            break
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_interruption_of_eager_tasks_leaves_nothing_behind(
    template: Path, root: str, operation: str
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
        for way in ("scope", "task_cancel", "sibling"):
            await Sweep(template, root, operation).run(interruptions.ASYNCIO[way])

    asyncio.run(main())
