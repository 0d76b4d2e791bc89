"""Equal items of a directory are one file with several names."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import ImageStore, check
from aimagestore._core.record import read
from aimagestore._directory.files import Directory
from aimagestore._directory.stored import VerifiedFiles
from aimagestore._format import blocks
from aimagestore._format.block_catalog import EMPTY, build
from aimagestore._format.blocks import Block

from .support.layouts import digest_of
from .support.sources import CONTENT, DIGEST, chunks
from .support.stores import until


@pytest.fixture(autouse=True)
def verified(monkeypatch: pytest.MonkeyPatch) -> VerifiedFiles:
    """The files whose content was verified, none at the beginning of a test."""
    fresh = VerifiedFiles()
    for module in ("stored", "staged"):
        monkeypatch.setattr(f"aimagestore._directory.{module}.verified_files", fresh)
    return fresh


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inodes of the files that were read to be verified."""
    found: list[int] = []
    read_file = VerifiedFiles._read

    def noting(self: VerifiedFiles, directory: Any, fd: int, is_wanted: Any) -> str | None:
        found.append(os.fstat(fd).st_ino)
        return read_file(self, directory, fd, is_wanted)

    monkeypatch.setattr(VerifiedFiles, "_read", noting)
    return found


def unread() -> Iterator[bytes]:
    """Give data that must not be read."""
    raise AssertionError("the store has this content")
    yield b""


def links(path: Path, image: str, key: str = "key") -> int:
    """Return how many names the file of an item has."""
    return (path / image / key).stat().st_nlink


async def test_content_of_another_program_is_made_durable_before_it_gets_another_name(
    path: Path, store: ImageStore, verified: VerifiedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create("first", big_data={"key": CONTENT})
    verified.forget_all()  # as if another program had written it
    steps: list[str] = []
    inode = (path / "first" / "key").stat().st_ino
    sync_file, name_file = Directory.sync_file, Directory.name_file

    def sync(self: Directory, name: str, fd: int) -> None:
        sync_file(self, name, fd)
        if os.fstat(fd).st_ino == inode:
            steps.append("sync")

    def give_name(self: Directory, fd: int, name: str) -> None:
        steps.append("name")
        name_file(self, fd, name)

    monkeypatch.setattr(Directory, "sync_file", sync)
    monkeypatch.setattr(Directory, "name_file", give_name)
    await store.create("second", big_data={"key": CONTENT})
    assert links(path, "second") == 2
    assert steps == ["sync", "name"]


@pytest.mark.parametrize(
    "code", [errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOENT]
)
@pytest.mark.parametrize("content", [CONTENT, b"little"], ids=["large", "little"])
async def test_content_that_cannot_be_linked_is_copied(
    store: ImageStore, path: Path, monkeypatch: pytest.MonkeyPatch, code: int, content: bytes
) -> None:
    await store.create("first", big_data={"key": content})
    link = os.link

    def first_name_only(source: str, *args: Any, **kwargs: Any) -> None:
        if os.stat(source).st_nlink:
            raise OSError(code, os.strerror(code))
        link(source, *args, **kwargs)

    monkeypatch.setattr(os, "link", first_name_only)
    digest = digest_of(content)
    await store.create("known by its digest")
    await store.set_big_data("known by its digest", "key", unread(), expected_digest=digest)
    await store.create("found while it was hashed", big_data={"key": content, "other": content})
    await store.set_big_data("first", "key", content)
    for image in ["first", "known by its digest", "found while it was hashed"]:
        assert links(path, image) == 1
        assert await store.big_data(image, "key") == content


async def test_any_other_failure_of_a_link_fails_the_change(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create("first", big_data={"key": CONTENT})

    def no_room(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", no_room)
    with pytest.raises(OSError, match="No space"):
        await store.create("second", big_data={"key": CONTENT})
    assert not await store.exists("second")


@pytest.mark.parametrize(
    "change",
    [lambda p: p.chmod(0o644), lambda p: p.chmod(0o4600), lambda p: os.chown(p, 12345, -1)],
)
async def test_files_that_others_may_change_are_not_shared(
    store: ImageStore, path: Path, change: Callable[[Path], None]
) -> None:
    await store.create("first", big_data={"key": CONTENT})
    try:
        await anyio.to_thread.run_sync(change, path / "first" / "key")
    except PermissionError:
        pytest.skip("only root gives files away")
    await store.create("second", big_data={"key": CONTENT})
    assert links(path, "second") == 1


async def test_a_file_is_verified_once(
    path: Path, store: ImageStore, reads: list[int], verified: VerifiedFiles
) -> None:
    await store.create("first", big_data={"key": CONTENT})
    await store.create("second", big_data={"key": CONTENT})
    assert reads == [], "what this process has written is known"
    verified._known.clear()
    for number in range(3):
        await store.create(f"like{number}", big_data={"key": CONTENT})
        await store.delete("second" if number == 0 else f"like{number - 1}")
    assert len(reads) == 1
    assert links(path, "first") == 2


async def test_content_that_was_altered_is_not_shared(
    path: Path, store: ImageStore, reads: list[int]
) -> None:
    await store.create("first", big_data={"key": CONTENT})
    file = path / "first" / "key"
    file.write_bytes(bytes(len(CONTENT)))
    await store.create("second", big_data={"key": CONTENT})
    assert len(reads) == 1
    assert await store.big_data("second", "key") == CONTENT
    file.write_bytes(CONTENT)


async def test_alteration_is_noticed_even_if_the_modification_time_is_restored(
    path: Path, store: ImageStore
) -> None:
    await store.create("first", big_data={"key": CONTENT})
    file = path / "first" / "key"
    before = file.stat()
    file.write_bytes(bytes(len(CONTENT)))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    await store.create("second", big_data={"key": CONTENT})
    assert await store.big_data("second", "key") == CONTENT
    file.write_bytes(CONTENT)


async def test_content_that_is_altered_while_it_is_staged_fails_the_change(
    path: Path, store: ImageStore
) -> None:
    await store.create("first", big_data={"key": CONTENT})
    async with store.stage(unread(), expected_digest=DIGEST) as staged:
        (path / "first" / "key").write_bytes(bytes(len(CONTENT)))
        with pytest.raises(OSError, match="altered"):
            await store.create("second", big_data={"key": staged})
    assert not await store.exists("second")
    (path / "first" / "key").write_bytes(CONTENT)


async def test_tasks_that_need_one_file_read_it_once(
    path: Path, store: ImageStore, reads: list[int], verified: VerifiedFiles
) -> None:
    await store.create("first", big_data={"key": CONTENT})
    verified._known.clear()

    async def create(number: int) -> None:
        await store.create(f"image{number}", big_data={"key": CONTENT})

    async with anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(create, number)
    assert len(reads) == 1
    assert links(path, "first") == 7


async def test_a_long_verification_ends_when_its_task_is_cancelled(
    store: ImageStore, verified: VerifiedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create("first", big_data={"key": CONTENT})
    await store.create("second")
    verified._known.clear()
    for digest in (DIGEST, None):
        begun, is_late = threading.Event(), threading.Event()

        def endless(
            *_: object, begun: threading.Event = begun, is_late: threading.Event = is_late
        ) -> bytes:
            begun.set()
            return b"" if is_late.is_set() else b"x"

        with monkeypatch.context() as patch:
            patch.setattr(Directory, "read_at", endless)
            timer = threading.Timer(20, is_late.set)
            timer.start()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(set_item, store, digest)
                await until(begun.is_set)
                tasks.cancel_scope.cancel()
            timer.cancel()
            assert not is_late.is_set()
    assert await store.big_data_names("second") == []


async def set_item(store: ImageStore, digest: str | None) -> None:
    await store.set_big_data("second", "key", chunks(), expected_digest=digest)


async def test_staging_a_file_of_the_store_leaves_nothing_open(
    path: Path, store: ImageStore
) -> None:
    await store.create("first", big_data={"key": CONTENT})

    def open_items() -> int:
        targets = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
        names = (os.readlink(target) for target in targets if os.path.lexists(target))
        return sum(name.startswith(str(path / "first")) for name in names)

    async with store.stage(unread(), expected_digest=DIGEST):
        assert await anyio.to_thread.run_sync(open_items) == 1
    assert await anyio.to_thread.run_sync(open_items) == 0
    await store.create("second", big_data={"key": CONTENT})
    assert await anyio.to_thread.run_sync(open_items) == 0


async def test_garbage_counts_a_file_only_with_its_last_name(store: ImageStore, path: Path) -> None:
    await store.create("1" * 64, big_data={"key": CONTENT, "own": b"own"})
    await store.create("2" * 64, big_data={"key": CONTENT})
    await store.create("3" * 64, big_data={"key": CONTENT})
    (path / "images.json").write_bytes(
        (path / "images.json").read_bytes().partition(b',{"id":"2')[0] + b"]"
    )
    forecast = await store.collect_garbage(dry_run=True)
    assert forecast == await store.collect_garbage()
    assert forecast.bytes == 0, "the first image has the file still"
    (path / "images.json").write_bytes(b"[]")
    await store.create("4" * 64, big_data={"key": b"another"})
    forecast = await store.collect_garbage(dry_run=True)
    assert forecast == await store.collect_garbage()
    assert forecast.bytes == len(CONTENT) + 3


async def test_garbage_with_all_names_of_a_file_frees_it(store: ImageStore, path: Path) -> None:
    for number in "123":
        await store.create(number * 64, big_data={"key": CONTENT})
    (path / "images.json").write_bytes(b"[]")
    forecast = await store.collect_garbage(dry_run=True)
    assert forecast.bytes == len(CONTENT)
    assert forecast == await store.collect_garbage()


async def test_a_check_reads_a_file_with_many_names_once(store: ImageStore, path: Path) -> None:
    for number in range(5):
        await store.create(f"image{number}", big_data={"key": CONTENT, "own": b"%d" % number})
    reported: list[tuple[int, int | None]] = []
    report = await check(path, verify=True, progress=lambda *pair: reported.append(pair))
    assert report.ok
    assert (report.items, report.bytes) == (10, len(CONTENT) + 5)
    assert reported[-1] == (5 * len(CONTENT) + 5, 5 * len(CONTENT) + 5)


@pytest.mark.damage
async def test_a_check_reports_damage_of_a_file_for_each_of_its_items(
    store: ImageStore, path: Path
) -> None:
    for number in range(3):
        await store.create(f"image{number}", big_data={"key": CONTENT})
    with (path / "image1" / "key").open("r+b") as file:
        file.write(b"altered")
    report = await check(path, verify=True)
    assert {finding.id for finding in report.findings} == {"image0", "image1", "image2"}


def test_items_are_found_by_their_digest_with_and_without_an_index_of_the_block() -> None:
    records = []
    for number in range(200):
        digests = f'"k":"{digest_of(b"%d" % (number % 50))}","m":"sha512:x","n":""'
        raw = f'{{"id":"{number}","big-data-names":["k"],"big-data-sizes":{{"k":{number}}},'
        record = read(f'{raw}"big-data-digests":{{{digests}}}}}'.encode(), 1 + number // 100)
        assert record is not None
        records.append(record)
    catalog = build({1: Block.of(records[:100]), 2: Block.of(records[100:])}, ())
    for _ in range(2 * blocks._SEARCHES_MAX):
        found = catalog.items_with_digest(digest_of(b"7"), None)
        assert [(r.id, k) for r, k in found] == [(i, "k") for i in ("157", "107", "57", "7")]
        assert [r.id for r, _ in catalog.items_with_digest(digest_of(b"7"), 57)] == ["57"]
        assert list(catalog.items_with_digest(digest_of(b"none"), None)) == []
    assert all(block._heads is not None for block in catalog.blocks.values())
    assert list(EMPTY.items_with_digest(digest_of(b"7"), None)) == []


def test_a_new_block_has_no_index_of_digests() -> None:
    assert Block(b"[]", ())._heads is None


# The process forks while a thread reads a file; the child has no such thread.
FORK = """
import os, signal, sys, threading
from aimagestore._directory.files import Directory
from aimagestore._directory.stored import verified_files

directory = Directory.at(sys.argv[1])
fd = directory.open_file("file")
reading, forked = threading.Event(), threading.Event()

def check():
    reading.set()
    forked.wait()

thread = threading.Thread(target=verified_files.digest, args=(directory, fd, check))
thread.start()
reading.wait()
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(verified_files.digest(directory, fd, lambda: None) is None)
forked.set()
thread.join()
sys.exit(os.waitpid(child, 0)[1] != 0)
"""


async def test_a_forked_child_does_not_wait_for_a_read_in_its_parent(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(tmp_path)]
    assert (await anyio.run_process(command, check=False)).returncode == 0
