"""A change that cannot be placed fails alone: the other changes of its batch commit."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from aimagestore import ImageStore, StoreCorruptError
from aimagestore._async.store import core_of
from aimagestore._directory.index_file import IndexFile
from aimagestore._format.block_catalog import BlockCatalog

from .support.faults import Faults
from .support.stores import locked, tree, until

Break = Callable[[Path, Faults], AbstractContextManager[object]]


@contextmanager
def _directory(path: Path, _: Faults) -> Iterator[None]:
    (path / "one" / "bad" / "below").mkdir(parents=True)
    yield
    assert (path / "one" / "bad" / "below").is_dir()


@contextmanager
def _file_in_place_of_directory(path: Path, _: Faults) -> Iterator[None]:
    (path / "new").write_bytes(b"a file")
    yield
    assert (path / "new").read_bytes() == b"a file"
    (path / "new").unlink()


def _link(name: str, code: int) -> Break:
    def fails(_: int, __: object, target: object, **___: object) -> bool:
        return str(target).startswith(name)

    return lambda _, faults: faults.fail_call("link", code, fails)


def _mkdir(code: int) -> Break:
    return lambda _, faults: faults.fail_call("mkdir", code, lambda _, name, *a, **k: name == "new")


@contextmanager
def _stale(path: Path, faults: Faults) -> Iterator[None]:
    (path / "new").mkdir()
    with faults.fail_call("rmdir", errno.EBUSY, lambda _, name, **__: name == "new"):
        yield
    (path / "new").rmdir()


Call = Callable[[ImageStore], Awaitable[object]]


def add(store: ImageStore) -> Awaitable[object]:
    """Add an item to an image."""
    return store.set_big_data("one", "bad", b"data")


def replace(store: ImageStore) -> Awaitable[object]:
    """Replace an item of an image."""
    return store.set_big_data("one", "there", b"other")


def create(store: ImageStore) -> Awaitable[object]:
    """Create an image with an item."""
    return store.create("new", big_data={"bad": b"data"})


CASES: dict[str, tuple[Call, Break, int | None]] = {
    "a directory in the item's place": (add, _directory, None),
    "a file in the directory's place": (create, _file_in_place_of_directory, None),
    "an I/O error at the item's name": (add, _link("bad", errno.EIO), errno.EIO),
    "a quota at the item's name": (add, _link("bad", errno.EDQUOT), errno.EDQUOT),
    "too many links": (add, _link("bad", errno.EMLINK), errno.EMLINK),
    "an I/O error at new content": (replace, _link(".new-", errno.EIO), errno.EIO),
    "a quota at new content": (replace, _link(".new-", errno.EDQUOT), errno.EDQUOT),
    "a new image's item": (create, _link("bad", errno.ENOSPC), errno.ENOSPC),
    "a new image's directory": (create, _mkdir(errno.EDQUOT), errno.EDQUOT),
    "a stale directory that stays": (create, _stale, errno.EBUSY),
}


def pending(store: ImageStore) -> int:
    """Return how many changes wait for the next commit."""
    batch = core_of(store)._committer._open_batch
    return 0 if batch is None else len(batch.pending)


async def test_a_batch_that_opens_too_many_files_is_committed_in_few_parts(
    path: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    switches: list[object] = []
    real_switch = IndexFile.switch

    def switch(self: IndexFile, name: str, fd: int, catalog: BlockCatalog) -> None:
        switches.append(name)
        real_switch(self, name, fd, catalog)

    monkeypatch.setattr(IndexFile, "switch", switch)
    async with ImageStore(path) as store:
        await store.create("first")
        switches.clear()
        present = len(os.listdir("/proc/self/fd"))

        def is_too_many(*_: object, **__: object) -> bool:
            return len(os.listdir("/proc/self/fd")) > present + 30

        with faults.fail_call("open", errno.EMFILE, is_too_many):
            async with anyio.create_task_group() as tasks:
                for number in range(64):
                    data = {"a": b"a%d" % number, "b": b"b%d" % number}
                    tasks.start_soon(partial(store.create, f"image{number}", big_data=data))
        assert len(await store.images()) == 65
        assert len(switches) <= 8
        for number in range(64):
            assert await store.big_data(f"image{number}", "b") == b"b%d" % number


async def test_little_content_is_synced_after_the_disk_has_begun_to_write_it(
    path: Path, faults: Faults
) -> None:
    begun: set[int] = set()

    def note(_: int, fd: int, *__: object) -> bool:
        begun.add(os.fstat(fd).st_ino)
        return True  # it is only a hint, and may fail

    def fails_if_begun(_: int, fd: int) -> bool:
        return os.fstat(fd).st_ino in begun

    async with ImageStore(path) as store:
        await store.create("first")
        with faults.fail_call("posix_fadvise", errno.EINVAL, note):
            await store.create("one", big_data={"a": b"first", "b": b"second"})
            assert {os.stat(path / "one" / key).st_ino for key in "ab"} == begun
            with (
                faults.fail_call("fsync", errno.EIO, fails_if_begun),
                pytest.raises(OSError, match="Input/output error"),
            ):
                await store.create("two", big_data={"a": b"third"})
        assert [image.id for image in await store.images()] == ["first", "one"]


async def test_a_transaction_creates_more_items_than_the_process_may_open_files(
    path: Path,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with ImageStore(path) as store:
        await store.create("first")
        present = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (present + 300, hard))
        try:
            async with store.transaction() as tx:
                for number in range(400):
                    data = {"own": b"%d" % number, "shared": b"same", "same": b"%d" % number}
                    await tx.create(f"image{number}", big_data=data)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(os.listdir("/proc/self/fd")) == present
        for number in range(400):
            assert await store.big_data(f"image{number}", "own") == b"%d" % number
            assert await store.big_data(f"image{number}", "same") == b"%d" % number
    files = {name: os.stat(path / name / "shared") for name in ("image0", "image399")}
    assert os.path.samestat(*files.values())
    assert files["image0"].st_nlink == 400
    assert (path / "image7" / "own").stat().st_nlink == 2


@pytest.mark.parametrize("at", [0, 1, 200, 399])
async def test_a_transaction_that_fails_while_its_items_are_placed_leaves_nothing(
    path: Path, faults: Faults, at: int
) -> None:
    async with ImageStore(path) as store:
        await store.create("first", big_data={"k": b"before"})
        before = tree(path)
        present = len(os.listdir("/proc/self/fd"))

        def is_bad(_: int, __: object, target: object, **___: object) -> bool:
            return target == f"key{at}"

        with faults.fail_call("link", errno.EIO, is_bad), pytest.raises(OSError):
            async with store.transaction() as tx:
                await tx.set_big_data("first", "k", b"after")
                for number in range(400):
                    await tx.create(f"image{number}", big_data={f"key{number}": b"%d" % number})
        assert len(os.listdir("/proc/self/fd")) == present
        assert tree(path) == before
        assert await store.big_data("first", "k") == b"before"
        await store.create("image0", big_data={"key0": b"works"})


@pytest.mark.parametrize("reason", ["a full disk", "a limit of the size of files"])
async def test_a_change_that_makes_the_index_too_large_fails_alone(
    path: Path, faults: Faults, reason: str
) -> None:
    errors: list[int | None] = []
    async with ImageStore(path) as store:
        await store.create("one", metadata="before")

        async def bad() -> None:
            with pytest.raises(OSError) as caught:
                await store.set_metadata("one", "x" * 8_000_000)
            errors.append(caught.value.errno)

        with ExitStack() as limited:
            if reason == "a full disk":
                failing = faults.fail_call(
                    "writev", errno.ENOSPC, lambda _, __, pieces: sum(map(len, pieces)) > 4_000_000
                )
                limited.enter_context(failing)
            else:
                soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, hard))
                limited.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
            async with anyio.create_task_group() as tasks:
                with locked(path):
                    tasks.start_soon(bad)
                    for number in range(20):
                        tasks.start_soon(store.set_flag, "one", f"flag{number}", number)
                        if number == 10:
                            tasks.start_soon(bad)
                    await until(lambda: pending(store) == 22)
        assert errors == [errno.ENOSPC if reason == "a full disk" else errno.EFBIG] * 2
        image = await store.get("one")
        assert image.metadata == "before"
        assert len(image.flags) == 20


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("position", ["first", "last"])
@pytest.mark.damage
async def test_a_change_that_cannot_be_placed_fails_alone(
    path: Path, faults: Faults, case: str, position: str
) -> None:
    call, breaks, code = CASES[case]
    errors: list[BaseException] = []
    async with ImageStore(path) as store:
        await store.create("one", big_data={"there": b"data"})

        async def bad() -> None:
            with pytest.raises((OSError, StoreCorruptError)) as caught:
                await call(store)
            errors.append(caught.value)

        async def good(number: int) -> None:
            await store.set_flag("one", f"flag{number}", number)
            await store.create(f"good{number}", big_data={"k": b"%d" % number})

        with breaks(path, faults):
            async with anyio.create_task_group() as tasks:
                with locked(path):
                    if position == "first":
                        tasks.start_soon(bad)
                        await until(lambda: pending(store) == 1)
                    for number in range(10):
                        tasks.start_soon(good, number)
                    await until(lambda: pending(store) == 10 + (position == "first"))
                    if position == "last":
                        tasks.start_soon(bad)
                        await until(lambda: pending(store) == 11)
        (error,) = errors
        assert isinstance(error, OSError if code else StoreCorruptError)
        assert str(path) in str(error)
        if isinstance(error, OSError):
            assert error.errno == code
        image = await store.get("one")
        assert image.flags == {f"flag{number}": number for number in range(10)}
        assert image.big_data_names == ("there",)
        assert await store.big_data("one", "there") == b"data"
        for number in range(10):
            assert await store.big_data(f"good{number}", "k") == b"%d" % number
        assert not await store.exists("new")
    if case == "a directory in the item's place":
        await anyio.to_thread.run_sync((path / "one" / "bad" / "below").rmdir)
        (path / "one" / "bad").rmdir()
    async with ImageStore(path) as again:
        assert (await again.collect_garbage()).findings == ()
        await call(again)
    assert not [name for name in os.listdir(path) if name.startswith(".")]
