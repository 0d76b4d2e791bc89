"""A process that may open few files: what it commits may be more than that."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from aimagestore import FindingKind, ImageStore, check

from .support.faults import Faults, die
from .support.gates import Gate
from .support.limits import few_files, files_open
from .support.stores import when_unchanged

MANY = 300
MORE = 80
"""The files that may be opened in addition: fewer than there are items."""


def _small(number: int) -> bytes:
    return b"%d" % number


def _large(number: int) -> bytes:
    return b"%d " % number * 40_000


async def _in_a_transaction(store: ImageStore) -> None:
    async with store.transaction() as tx:
        for number in range(MANY):
            await tx.create(f"image{number}", big_data={"layer": _large(number)})


async def _at_once(store: ImageStore) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(MANY):
            data = {"layer": _large(number)}
            tasks.start_soon(lambda n, d: store.create(n, big_data=d), f"image{number}", data)


async def _in_one_image(store: ImageStore) -> None:
    await store.create("image", big_data={f"layer{n}": _large(n) for n in range(MANY)})


async def _small_in_one_image(store: ImageStore) -> None:
    content = {f"layer{n}": _small(n) * 100 for n in range(MANY)}
    await store.create("image", big_data=content)


async def _staged_before(store: ImageStore) -> None:
    async with AsyncExitStack() as stack:
        items = [
            await stack.enter_async_context(store.stage(_large(number))) for number in range(MANY)
        ]
        async with store.transaction() as tx:
            for number, item in enumerate(items):
                await tx.create(f"image{number}", big_data={"layer": item})


@pytest.mark.parametrize(
    "act", [_in_a_transaction, _at_once, _in_one_image, _small_in_one_image, _staged_before]
)
async def test_more_items_are_staged_than_the_process_may_open_files(
    path: Path, act: Callable[[ImageStore], Awaitable[None]]
) -> None:
    before = files_open()
    async with ImageStore(path) as store:
        await store.create("first")
        with few_files(MORE):
            await act(store)
        images = await store.images()
        assert sum(len(image.big_data_names) for image in images) == MANY
    report = await check(path)
    assert report.ok
    assert not report.findings
    assert files_open() == before
    assert not list(path.glob(".stage-*"))


async def test_content_of_the_store_is_staged_again_with_few_files_open(path: Path) -> None:
    async with ImageStore(path) as store:
        await _in_a_transaction(store)
        with few_files(MORE):
            async with store.transaction() as tx:
                for number in range(MANY):
                    data = {"layer": _large(number), "same": _large(number)}
                    await tx.create(f"again{number}", big_data=data)
    for number in (0, MANY - 1):
        paths = (path / f"image{number}" / "layer", path / f"again{number}" / "same")
        assert os.path.samefile(*paths)
        assert paths[0].stat().st_nlink == 3


async def test_content_without_an_open_file_is_staged_again_if_the_commit_fails(
    path: Path, faults: Faults
) -> None:
    async with ImageStore(path) as store, AsyncExitStack() as stack:
        await store.create("first")
        with few_files(MORE):
            items = [
                await stack.enter_async_context(store.stage(_large(number)))
                for number in range(MANY)
            ]
            await items[-1].write(b"more")
            index = faults.fail_call("rename", errno.EIO, lambda *args, **_: "images.json" in args)
            with index, pytest.raises(OSError):
                async with store.transaction() as tx:
                    for number, item in enumerate(items):
                        await tx.create(f"image{number}", big_data={"layer": item})
            async with store.transaction() as tx:
                for number, item in enumerate(items):
                    await tx.create(f"image{number}", big_data={"layer": item})
        assert await store.big_data(f"image{MANY - 2}", "layer") == _large(MANY - 2)
        assert await store.big_data(f"image{MANY - 1}", "layer") == _large(MANY - 1) + b"more"
    assert (await check(path)).ok
    assert not list(path.glob(".stage-*"))


async def test_data_in_memory_waits_for_its_turn_without_an_open_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, sync = Gate(), os.fsync

    def sync_later(fd: int) -> None:
        gate()
        sync(fd)

    async def put(number: int) -> None:
        data = _large(number)
        await store.set_big_data("image", f"layer{number}", data, expected_size=len(data))

    async with ImageStore(path) as store:
        await store.create("image")
        before = files_open()
        async with anyio.create_task_group() as tasks:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", sync_later)
                for number in range(MANY):
                    tasks.start_soon(put, number)
                assert 0 < await when_unchanged(files_open) - before < 50
                gate.open()
        assert len(await store.big_data_names("image")) == MANY


async def test_an_error_of_too_many_open_files_says_what_to_do(path: Path) -> None:
    async with ImageStore(path) as store, AsyncExitStack() as stack:
        await store.create("one", big_data={"layer": b"content"})
        with (
            few_files(20),
            pytest.raises(OSError, match=r"may have \d+: raise the limit") as raised,
        ):
            for _ in range(40):
                await stack.enter_async_context(store.open_big_data("one", "layer"))
        assert raised.value.errno == errno.EMFILE
        await stack.aclose()
        assert await store.big_data("one", "layer") == b"content"


_DIES_WHILE_IT_STAGES = """
import os, resource, sys, anyio
from aimagestore import ImageStore
async def main():
    async with ImageStore(sys.argv[1]) as store:
        await store.create("first")
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        async with store.transaction() as tx:
            for number in range(40):
                await tx.create(big_data={"layer": b"%d " % number * 40_000})
            os.kill(os.getpid(), 9)
anyio.run(main)
"""


async def test_garbage_collection_removes_what_a_killed_process_had_staged(path: Path) -> None:
    await die(_DIES_WHILE_IT_STAGES, path)
    (left,) = path.glob(".stage-*")
    async with ImageStore(path) as store:
        findings = (await check(path)).findings
        assert [(f.kind, f.path) for f in findings] == [(FindingKind.TEMPORARY_STALE, str(left))]
        expected = (await store.collect_garbage(dry_run=True)).bytes
        report = await store.collect_garbage()
        assert report.bytes == expected > 20 * 80_000
    assert not left.exists()


async def test_garbage_collection_leaves_what_a_living_process_has_staged(path: Path) -> None:
    async with ImageStore(path) as store, AsyncExitStack() as stack:
        with few_files(MORE):
            items = [
                await stack.enter_async_context(store.stage(_large(number)))
                for number in range(MORE)
            ]
            assert list(path.glob(".stage-*/*"))
            assert not (await check(path)).findings
            async with ImageStore(path) as other:
                assert not (await other.collect_garbage()).findings
            for number, item in enumerate(items):
                await store.create(f"image{number}", big_data={"layer": item})
    assert (await check(path)).ok


async def test_many_watches_leave_files_for_commits(path: Path) -> None:
    async with ImageStore(path) as store, AsyncExitStack() as stack:
        await store.create("first")
        with few_files(40):
            watches = [await stack.enter_async_context(store.watch()) for _ in range(60)]
            await store.create("second", big_data={"layer": b"content"})
            for watch in watches:
                assert (await anext(watch)).id == "second"
