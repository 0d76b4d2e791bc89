"""Checking a directory and collecting its garbage: what is found, and what is removed."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

import anyio
import pytest

from aimagestore import (
    Finding,
    FindingKind as Kind,
    ImageStore,
    LockTimeoutError,
    StoreCorruptError,
    StoreReadOnlyError,
    check,
    repair,
)
from aimagestore._directory.contents import unlisted_files
from aimagestore._directory.files import Directory

from .support.buildah import FIXTURE, FIXTURE_ID
from .support.damage import DAMAGE, listing
from .support.faults import Faults
from .support.foreign import locked_by_another_process
from .support.stores import edit_index, locked, open_files, until, until_requested

pytestmark = pytest.mark.damage


@pytest.fixture
def image(path: Path) -> Path:
    """The directory of the image that buildah wrote, in a copy of its store."""
    shutil.copytree(FIXTURE, path)
    return path / FIXTURE_ID


async def test_an_undamaged_store_has_no_findings(path: Path, image: Path) -> None:
    steps: list[tuple[int, int | None]] = []
    before = listing(path)
    report = await check(path, progress=lambda done, total: steps.append((done, total)))
    assert report.ok
    assert (report.images, report.items, report.bytes) == (1, 4, 1409)
    assert steps[-1] == (1409, 1409)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert listing(path) == before


@pytest.mark.parametrize("kind", list(DAMAGE))
async def test_every_kind_of_damage_is_found_and_left(path: Path, image: Path, kind: Kind) -> None:
    damage, name = DAMAGE[kind]
    damage(image)
    before = listing(path)
    report = await check(str(path))
    assert not report.ok
    assert [(f.kind, f.path) for f in report.findings] == [(kind, str(path / name))]
    assert listing(path) == before


@pytest.mark.parametrize("kind", ["directory", "fifo", "link", "other name"])
async def test_a_lock_file_that_no_writer_takes_is_found(
    path: Path, image: Path, kind: str
) -> None:
    lock, other = path / "images.lock", path.parent / "other"
    other.touch()
    lock.unlink(missing_ok=True)
    match kind:
        case "directory":
            lock.mkdir()
        case "fifo":
            os.mkfifo(lock)
        case "link":
            lock.symlink_to(other)
        case "other name":
            lock.hardlink_to(other)
    (finding,) = (await check(path)).findings
    assert (finding.kind, finding.path) == (Kind.LOCK_DAMAGED, str(lock))
    with pytest.raises(StoreCorruptError, match=re.escape(str(lock))):
        async with ImageStore(path) as store:
            await store.set_names(FIXTURE_ID, [])
    if kind == "directory":
        lock.rmdir()
    else:
        lock.unlink()
    assert (await check(path)).ok
    async with ImageStore(path) as store:
        await store.set_names(FIXTURE_ID, [])


@pytest.mark.parametrize("damage", ["finding", "change under way"])
async def test_a_check_waits_for_the_lock_until_its_timeout(
    path: Path, image: Path, damage: str
) -> None:
    if damage == "finding":
        (image / "unlisted").touch()
    with locked_by_another_process(path) as process:
        if damage == "change under way":
            (path / "images.json").write_bytes(b"[")
        with pytest.raises(LockTimeoutError) as caught:
            await check(path, lock_timeout=0.05)
        assert caught.value.holder_pid == process.pid
    if damage == "finding":
        assert not (await check(path, lock_timeout=0)).ok


async def test_without_verify_only_sizes_are_compared(path: Path, image: Path) -> None:
    (image / "manifest").write_bytes(b"x" * 495)
    assert (await check(path, verify=False)).ok
    os.truncate(image / "manifest", 1)
    assert [f.kind for f in (await check(path, verify=False)).findings] == [Kind.ITEM_SHORT]


async def test_a_file_in_place_of_an_images_directory_is_found(path: Path, image: Path) -> None:
    shutil.rmtree(image)
    image.write_bytes(b"")
    assert [f.kind for f in (await check(path)).findings] == [Kind.ITEM_UNREADABLE]


@pytest.mark.parametrize("code", [errno.EIO, errno.EUCLEAN, errno.EBADMSG])
@pytest.mark.parametrize("call", ["open", "readv"])
async def test_an_item_that_a_damaged_disk_does_not_give_back_is_found(
    path: Path, image: Path, faults: Faults, call: str, code: int
) -> None:
    bad = (image / "manifest").stat().st_ino
    (image / "other").touch()

    def is_bad(_: int, file: str | int, *__: object, **___: object) -> bool:
        return file == "manifest" or (isinstance(file, int) and os.fstat(file).st_ino == bad)

    with faults.fail_call(call, code, is_bad):
        found = (await check(path)).findings
    assert [each.kind for each in found] == [Kind.ITEM_UNREADABLE, Kind.ITEM_UNLISTED]
    assert found[0].key == "manifest"
    assert os.strerror(code) in found[0].detail
    assert found[0].path == str(image / "manifest")


async def test_a_directory_that_a_damaged_disk_does_not_give_back_is_found_and_dropped(
    path: Path, image: Path, faults: Faults
) -> None:
    def is_bad(_: int, name: str, *__: object, **___: object) -> bool:
        return name == FIXTURE_ID

    with faults.fail_call("open", errno.EIO, is_bad):
        (found,) = (await check(path)).findings
        assert (found.kind, found.path, found.key) == (Kind.ITEM_UNREADABLE, str(image), "")
        assert not (await repair(path, await check(path))).findings
        await repair(path, await check(path), drop=True)
        assert (await check(path)).ok
    async with ImageStore(path) as store:
        assert (await store.get(FIXTURE_ID)).big_data_names == ()


async def test_an_index_that_a_damaged_disk_gives_back_in_part_is_rebuilt(
    path: Path, faults: Faults
) -> None:
    async with ImageStore(path) as store, store.transaction() as tx:
        for i in range(100):
            await tx.create(f"{i:064}", names=[f"name{i}"], big_data={"key": b"%d" % i})
    bad = (path / "images.json").stat().st_ino

    def is_all(_: int, fd: int, __: object) -> bool:
        return os.fstat(fd).st_ino == bad

    def is_second_page(_: int, fd: int, __: int, position: int) -> bool:
        return os.fstat(fd).st_ino == bad and position == 4096

    with (
        faults.fail_call("readv", errno.EIO, is_all),
        faults.fail_call("pread", errno.EIO, is_second_page),
    ):
        report = await check(path)
        assert [found.kind for found in report.findings] == [Kind.INDEX_DAMAGED]
        assert "Input/output error" in report.findings[0].detail
        await repair(path, report)
    async with ImageStore(path) as store:
        images = await store.images()
        assert len(images) == 100
        assert 50 < sum(bool(image.names) for image in images) < 100
        assert await store.big_data(f"{50:064}", "key") == b"50"


async def test_an_item_without_permission_ends_a_check(
    path: Path, image: Path, faults: Faults
) -> None:
    with (
        faults.fail_call("open", errno.EACCES, lambda _, name, *__, **___: name == "manifest"),
        pytest.raises(PermissionError, match="manifest"),
    ):
        await check(path)


async def test_a_link_in_place_of_the_index_is_found(
    path: Path, image: Path, tmp_path: Path
) -> None:
    (path / "images.json").rename(tmp_path / "elsewhere")
    (path / "images.json").symlink_to(tmp_path / "elsewhere")
    assert [f.kind for f in (await check(path)).findings] == [Kind.INDEX_DAMAGED]


async def test_an_empty_directory_is_no_damage_and_a_missing_one_raises_an_error(
    path: Path,
) -> None:
    with pytest.raises(FileNotFoundError):
        await check(path)
    path.mkdir()
    assert (await check(path)).ok


async def test_keys_that_name_no_file_are_missing_items(path: Path, image: Path) -> None:
    edit_index(path, lambda records: records[0].update({"big-data-names": [".."]}))
    found = (await check(path)).findings
    assert (Kind.ITEM_MISSING, "..") in [(f.kind, f.key) for f in found]


async def test_changes_during_a_check_are_not_taken_for_damage(path: Path) -> None:
    async with ImageStore(path) as store:
        await store.create("image", big_data={"key": b"0" * 5000})

        async def write() -> None:
            for i in range(60):
                await store.set_big_data("image", "key", b"%d" % i * 5000)
                await store.create(f"new{i}", big_data={"key": b"data"})
                await store.delete(f"new{i}")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            for _ in range(20):
                assert (await check(path)).findings == ()


async def test_a_directory_that_is_deleted_during_a_check_has_no_unlisted_files(
    path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ImageStore(path) as store:
        record = await store.get(FIXTURE_ID)
    shutil.rmtree(image)
    monkeypatch.setattr(Directory, "is_directory", lambda *_: True)

    def look() -> list[str]:
        with Directory.at(str(path)) as root:
            return list(unlisted_files(root, record))

    assert await anyio.to_thread.run_sync(look) == []


async def test_apparent_damage_is_checked_again_without_writers(path: Path, image: Path) -> None:
    content = (image / "manifest").read_bytes()
    (image / "manifest").write_bytes(b"half of a replacement")
    findings: list[tuple[Finding, ...]] = []

    async def look() -> None:
        findings.append((await check(path)).findings)

    async with anyio.create_task_group() as tasks:
        with locked(path):
            tasks.start_soon(look)
            await until_requested()
            assert findings == []
            (image / "manifest").write_bytes(content)
    assert findings == [()]


async def test_a_check_that_waits_for_the_lock_is_cancelled_at_once(
    path: Path, image: Path
) -> None:
    (image / "manifest").unlink()
    with locked(path):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(check, path)
            await until_requested()
            tasks.cancel_scope.cancel()
    await until(lambda: not open_files(str(path)))


async def test_a_check_is_cancelled_between_steps(path: Path, image: Path) -> None:
    with anyio.CancelScope() as scope:
        await check(path, progress=lambda done, total: scope.cancel())
    assert scope.cancelled_caught
    assert (await check(path)).ok


# Collecting


async def test_only_garbage_is_removed(path: Path, image: Path) -> None:
    orphan, empty = "a" * 64, "b" * 64
    (path / orphan / "deep").mkdir(parents=True)
    (path / orphan / "manifest").write_bytes(b"12345")
    (path / orphan / "deep" / "file").write_bytes(b"6")
    (path / empty).mkdir()
    (path / ".stage-dead").write_bytes(b"123")
    (path / ".tmp-images.json1").touch()
    (image / "unlisted").write_bytes(b"12")
    (image / ".tmp-manifest1").touch()
    for name in ("lost+found", "notes", ".hidden", "deep", "backup", "A" * 64, "a" * 63):
        (path / name).mkdir()
    (path / "notes" / "READ ME").write_bytes(b"mine")
    (path / "backup" / "images.json").write_bytes(b"my backup")
    (path / "deep" / "below").mkdir()
    (path / "file").write_bytes(b"mine")
    (image / "READ ME").write_bytes(b"mine")
    async with ImageStore(path) as store, store.stage(b"living") as staged:
        before = listing(path)
        planned = await store.collect_garbage(dry_run=True)
        assert listing(path) == before
        report = await store.collect_garbage()
        assert planned == report
        assert sorted((f.kind, os.path.basename(f.path)) for f in report.findings) == [
            (Kind.DIRECTORY_ORPHANED, orphan),
            (Kind.DIRECTORY_ORPHANED, empty),
            (Kind.ITEM_UNLISTED, ".tmp-manifest1"),
            (Kind.ITEM_UNLISTED, "unlisted"),
            (Kind.TEMPORARY_STALE, ".stage-dead"),
            (Kind.TEMPORARY_STALE, ".tmp-images.json1"),
        ]
        assert report.bytes == 5 + 1 + 3 + 2
        assert (await store.collect_garbage()).ok
        await store.create("new", big_data={"key": staged})
        assert await store.big_data("new", "key") == b"living"
    stays = {"lost+found", "notes", ".hidden", "deep", "backup", "A" * 64, "a" * 63, "file"}
    assert set(os.listdir(path)) == stays | {FIXTURE_ID, "new", "images.json", "images.lock"}
    assert (path / "backup" / "images.json").read_bytes() == b"my backup"
    assert (image / "READ ME").exists()


async def test_named_staged_files_of_running_writers_are_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimagestore._directory.files._TMPFILE", None)
    async with ImageStore(path) as store, store.stage(b"living") as staged:
        async with ImageStore(path) as other:
            assert (await other.collect_garbage()).ok
        assert (await check(path)).ok
        await store.create("new", big_data={"key": staged})
    assert (await check(path)).ok


async def test_the_directory_of_a_damaged_record_is_kept(path: Path, image: Path) -> None:
    edit_index(path, lambda records: records[0].update({"names": 5}))
    async with ImageStore(path) as store:
        assert (await store.collect_garbage()).ok
    assert (image / "manifest").exists()


@pytest.mark.parametrize("index", [None, b"", b"[{"])
async def test_nothing_is_collected_without_an_index(
    path: Path, image: Path, index: bytes | None
) -> None:
    async with ImageStore(path) as store:
        (path / "images.json").unlink()
        if index is not None:
            (path / "images.json").write_bytes(index)
        with pytest.raises(StoreCorruptError):
            await store.collect_garbage()
    assert (image / "manifest").exists()


async def test_collecting_needs_a_writable_store(path: Path, image: Path) -> None:
    async with ImageStore(path, read_only=True) as store:
        with pytest.raises(StoreReadOnlyError):
            await store.collect_garbage()


async def test_garbage_that_cannot_be_removed_is_reported(
    path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlisted = image / "unlisted"
    unlisted.touch()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    async with ImageStore(path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", refuse)
            (left,) = (await store.collect_garbage()).findings
        assert left.stays
        assert left.path == str(unlisted)
        assert left.detail == f"stays: [Errno 13] Permission denied: '{unlisted}'"
        (removed,) = (await store.collect_garbage()).findings
        assert not removed.stays


async def test_collecting_garbage_reports_progress(path: Path, image: Path) -> None:
    for number in range(3):
        (image / f"unlisted{number}").touch()
    reported: list[tuple[int, int | None]] = []
    async with ImageStore(path) as store:
        await store.collect_garbage(progress=lambda done, total: reported.append((done, total)))
    assert reported == [(1, 3), (2, 3), (3, 3)]
