"""The directory engine: recovery after a crash, failing system calls, unusual file systems."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from aimagestore import ImageStore, LockTimeoutError, copy_images
from aimagestore._async.store import core_of
from aimagestore._directory import files
from aimagestore._directory.mounts import is_local
from aimagestore._engine.items import discard_all, stage_all
from aimagestore._engine.protocol import StagedContent

from .support.faults import Faults, die, die_after_commit
from .support.stores import contents, edit_index, until


@pytest.fixture
async def one(store: ImageStore) -> ImageStore:
    """A store with one image, ``one``, that has an item ``manifest``."""
    await store.create("one", names=["a"], big_data={"manifest": b"old content"})
    return store


async def read_verified(store: ImageStore) -> bytes:
    async with store.open_big_data("one", "manifest", verify=True) as reader:
        return await reader.read()


async def test_a_read_only_store_sees_a_commit_that_is_not_finished(half_done: Path) -> None:
    before = contents(half_done)
    async with ImageStore(half_done, read_only=True) as store:
        assert await read_verified(store) == b"new content"
    assert contents(half_done) == before


async def test_opening_finishes_a_commit(half_done: Path) -> None:
    async with ImageStore(half_done) as store:
        assert (half_done / "one" / "manifest").read_bytes() == b"new content"
        assert await read_verified(store) == b"new content"
    assert sorted(os.listdir(half_done)) == ["images.json", "images.lock", "one"]


async def test_an_open_store_finishes_the_commit_of_another(path: Path) -> None:
    async with ImageStore(path) as store:
        await store.create("one", names=["a"], big_data={"manifest": b"old content"})
        await die_after_commit(path)
        assert await read_verified(store) == b"new content"
        assert (path / "one" / "manifest").read_bytes() == b"old content"
        await store.create("two")
        assert (path / "one" / "manifest").read_bytes() == b"new content"
    assert sorted(os.listdir(path)) == ["images.json", "images.lock", "one"]


async def test_an_open_store_finishes_a_commit_of_another_to_an_image_that_it_never_saw(
    store: ImageStore, path: Path
) -> None:
    async with ImageStore(path) as other:
        await other.create("one", big_data={"manifest": b"old content"})
    await die_after_commit(path)
    await store.create("two")
    assert (path / "one" / "manifest").read_bytes() == b"new content"


async def test_an_open_store_finishes_a_commit_that_replaced_an_item_without_a_digest(
    one: ImageStore, path: Path
) -> None:
    edit_index(path, lambda records: records[0].pop("big-data-digests"))
    async with ImageStore(path) as store:
        await die_after_commit(path)
        await store.create("two")
        assert (path / "one" / "manifest").read_bytes() == b"new content"


async def test_unneeded_pending_files_are_removed(store: ImageStore, path: Path) -> None:
    await store.create("one")
    await store.aclose()
    (path / f".new-{'0' * 32}-{'1' * 32}").write_bytes(b"x")
    (path / ".new-images.json").write_bytes(b"[")
    (path / ".new-notes").write_bytes(b"mine")
    (path / "lost+found").mkdir()
    async with ImageStore(path) as again:
        assert await again.exists("one")
    names = [".new-notes", "images.json", "images.lock", "lost+found"]
    assert sorted(os.listdir(path)) == names


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("name", ["fsync", "writev", "rename", "link"])
async def test_a_failure_before_the_commit_changes_nothing(
    one: ImageStore, path: Path, faults: Faults, name: str, code: int
) -> None:
    before = contents(path)
    with (
        faults.fail(name, code, lambda call: call == 1),
        pytest.raises(OSError, match=os.strerror(code)) as info,
    ):
        await one.set_big_data("one", "manifest", b"new content")
    assert info.value.errno == code
    assert str(info.value.filename).startswith(str(path))
    assert contents(path) == before
    assert await read_verified(one) == b"old content"
    assert await one.get("a") == await one.get("one")
    await one.set_big_data("one", "manifest", b"new content")
    assert await read_verified(one) == b"new content"


async def test_a_create_that_fails_late_leaves_no_directory(
    one: ImageStore, path: Path, faults: Faults
) -> None:
    before = contents(path)
    with (
        faults.fail("rename", errno.EIO, lambda call: True),
        pytest.raises(OSError, match="output"),
    ):
        await one.create("two", big_data={"key": b"data"})
    assert contents(path) == before
    assert not (path / "two").exists()
    assert not await one.exists("two")


async def test_a_store_shows_its_change_even_if_the_last_sync_fails(
    one: ImageStore, path: Path, faults: Faults
) -> None:
    def is_after_the_rename(_: int) -> bool:
        return b'"metadata":"text"' in (path / "images.json").read_bytes()

    with (
        faults.fail("fsync", errno.EIO, is_after_the_rename),
        pytest.raises(OSError, match="may have happened"),
    ):
        await one.set_metadata("one", "text")
    assert await one.metadata("one") == "text"
    async with ImageStore(path) as again:
        assert await again.metadata("one") == "text"


async def test_a_failure_after_the_commit_is_completed_by_the_next_commit(
    one: ImageStore, path: Path, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), faults.fail("rename", errno.EIO, lambda call: call == 2):
        await one.set_big_data("one", "manifest", b"new content")
    assert "the next commit completes" in caplog.text
    assert (path / "one" / "manifest").read_bytes() == b"old content"
    assert await read_verified(one) == b"new content"
    await one.set_metadata("one", "x")
    assert (path / "one" / "manifest").read_bytes() == b"new content"
    assert sorted(os.listdir(path)) == ["images.json", "images.lock", "one"]


async def test_content_that_is_pending_outlasts_a_change_that_fails(
    one: ImageStore, path: Path, faults: Faults
) -> None:
    def is_of_item(_: int, source: str, target: str, **__: int) -> bool:
        return target == "manifest"

    def is_new_index(_: int, name: str, *__: object, **___: object) -> bool:
        return name == ".new-images.json"

    with faults.fail_call("rename", errno.ENOSPC, is_of_item):
        await one.set_big_data("one", "manifest", b"new content")
        with faults.fail_call("open", errno.ENOSPC, is_new_index), pytest.raises(OSError):
            async with one.transaction() as tx:
                await tx.set_big_data("one", "manifest", b"new content")
                await tx.set_metadata("one", "text")
        assert await read_verified(one) == b"new content"
    assert await read_verified(one) == b"new content"
    async with ImageStore(path) as again:
        assert await read_verified(again) == b"new content"
        assert await again.metadata("one") == ""


_DIES_BEFORE_COMMIT = """
import os, sys, anyio
from aimagestore import ImageStore, copy_images
real = os.rename
def rename(source, target, **kwargs):
    if target == "images.json":
        os.kill(os.getpid(), 9)
    return real(source, target, **kwargs)
async def main():
    async with ImageStore(sys.argv[1]) as source, ImageStore(sys.argv[2]) as store:
        os.rename = rename
        await copy_images(source, store)
anyio.run(main)
"""


async def test_a_copy_of_items_without_digests_that_is_killed_has_not_happened(
    path: Path, tmp_path: Path
) -> None:
    for each in (path, tmp_path / "source"):
        async with ImageStore(each) as store:
            await store.create("one", metadata=each.name, big_data={"key": each.name.encode()})
        edit_index(each, lambda records: records[0].pop("big-data-digests"))
    await die(_DIES_BEFORE_COMMIT, tmp_path / "source", path)
    async with ImageStore(path) as store, ImageStore(tmp_path / "source") as source:
        assert await store.metadata("one") == path.name
        assert await store.big_data("one", "key") == path.name.encode()
        await copy_images(source, store)
        assert await store.metadata("one") == "source"
        assert await store.big_data("one", "key") == b"source"
    assert (path / "one" / "key").read_bytes() == b"source"


async def test_a_short_write_is_completed(
    one: ImageStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, pieces: real(fd, [pieces[0][:7]]))
    await one.set_big_data("one", "key", b"data" * 100)
    assert await one.big_data("one", "key") == b"data" * 100
    async with ImageStore(path) as again:
        assert await again.get("one") == await one.get("one")


async def test_staged_data_that_could_not_be_synced_is_not_used(
    one: ImageStore, faults: Faults
) -> None:
    # The kernel reports the error once: another sync would succeed.
    async with one.stage() as staged:
        await staged.write(b"data")
        with (
            faults.fail("fsync", errno.EIO, lambda call: call == 1),
            pytest.raises(OSError, match="Input/output error"),
        ):
            await one.create("two", big_data={"key": staged})
        with pytest.raises(ValueError, match="stage it again"):
            await one.create("two", big_data={"key": staged})
    assert not await one.exists("two")


async def test_staged_data_is_not_used_after_a_failed_write(
    one: ImageStore, faults: Faults
) -> None:
    async with one.stage() as staged:
        await staged.write(b"good")
        with faults.fail("writev", errno.ENOSPC, lambda call: True), pytest.raises(OSError):
            await staged.write(b"bad")
        with pytest.raises(ValueError, match="stage it again"):
            await one.create(big_data={"key": staged})


async def test_all_contents_are_discarded_even_if_one_fails(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"a": b"1", "b": b"2", "c": b"3"}
    staged = await to_thread.run_sync(stage_all, core_of(store).engine.items, data)
    kind = type(staged["b"])
    discard = kind.discard

    def fail_in_the_middle(content: StagedContent) -> None:
        discard(content)
        if content is staged["b"]:
            raise OSError(errno.EIO, "no more")

    monkeypatch.setattr(kind, "discard", fail_in_the_middle)
    with pytest.raises(OSError, match="no more"):
        await to_thread.run_sync(discard_all, staged)
    assert not any(content.is_open for content in staged.values())


async def test_data_is_staged_in_named_files_where_no_unnamed_ones_can_be_made(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_TMPFILE", None)
    async with ImageStore(path) as store:
        async with store.stage(b"data") as staged:
            assert len([n for n in os.listdir(path) if n.startswith(".stage-")]) == 1
            await store.create("one", big_data={"key": staged, "other": b"more"})
        assert await store.big_data("one", "key") == b"data"
        await store.set_big_data("one", "key", b"new")
        assert await store.big_data("one", "key") == b"new"
        with pytest.raises(ZeroDivisionError):
            async with store.stage(b"data"):
                raise ZeroDivisionError
    assert sorted(os.listdir(path)) == ["images.json", "images.lock", "one"]


async def test_a_first_create_that_is_killed_leaves_an_empty_store(path: Path) -> None:
    code = (
        "import os, sys, anyio; from aimagestore import ImageStore\n"
        "real = os.mkdir\n"
        "def mkdir(name, *a, **k):\n"
        "    real(name, *a, **k)\n"
        "    if name == 'one': os.kill(os.getpid(), 9)\n"
        "os.mkdir = mkdir\n"
        "async def main():\n"
        "    async with ImageStore(sys.argv[1]) as store:\n"
        "        await store.create('one', big_data={'key': b'data'})\n"
        "anyio.run(main)\n"
    )
    await die(code, path)
    assert (path / "one").exists()
    async with ImageStore(path) as store:
        assert await store.images() == []
        await store.create("one", big_data={"other": b"data"})
    assert os.listdir(path / "one") == ["other"]


async def test_an_index_that_is_edited_in_place_is_read_again(one: ImageStore, path: Path) -> None:
    text = (path / "images.json").read_bytes()
    (path / "images.json").write_bytes(text.replace(b'"names":["a"]', b'"names":["b"]'))
    assert await one.exists("b")
    (path / "images.json").rename(path / "images.old")
    (path / "images.json").write_bytes(text)
    assert await one.exists("a")
    os.link(path / "images.json", path / "images.copy")
    assert await one.exists("a")
    await one.create("two")
    assert (path / "images.copy").read_bytes() == text


async def test_a_store_on_a_file_system_that_is_not_local_sees_every_change(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimagestore._directory.engine.is_local", lambda fd: False)
    async with ImageStore(path) as store:
        await store.create("one")
        assert await store.exists("one")
        async with ImageStore(path) as other:
            await other.create("two")
        assert len(await store.snapshot()) == 2


@pytest.mark.parametrize(("directory", "expected"), [("/dev/shm", True), ("/proc", False)])
def test_a_file_system_in_memory_is_local_and_that_of_processes_is_not(
    directory: str, expected: bool
) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        assert is_local(fd) == expected
    finally:
        os.close(fd)
    assert not is_local(10_000), "no file has this descriptor"


async def test_a_file_cannot_be_opened_as_a_store(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(NotADirectoryError) as info:
        async with ImageStore(file):
            pass
    assert info.value.filename == str(file)


OPEN_AS_ANOTHER_USER = """
import os, sys
import anyio
from aimagestore import ImageStore

async def import_everything(path):
    async with ImageStore(path):
        pass

async def main(path):
    try:
        async with ImageStore(path):
            pass
    except PermissionError as error:
        print(error.filename)
    async with ImageStore(path, read_only=True) as store:
        print(await store.images())

# The other user may not be able to read the library.
anyio.run(import_everything, sys.argv[1] + "-other")
os.setuid(65534)
anyio.run(main, sys.argv[1])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its user, so it needs root")
def test_a_directory_that_cannot_be_written_can_be_opened_read_only() -> None:
    # pytest makes its own directory private again whenever another run of it begins.
    with tempfile.TemporaryDirectory(prefix="aimagestore-") as parent:
        Path(parent).chmod(0o755)
        path = Path(parent) / "store"
        path.mkdir(mode=0o555)
        command = [sys.executable, "-c", OPEN_AS_ANOTHER_USER, str(path)]
        output = subprocess.check_output(command, text=True)
    assert output == f"{path / 'images.lock'}\n[]\n"


async def test_a_directory_that_cannot_be_removed_does_not_stop_the_removal_of_others(
    store: ImageStore, path: Path, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    for image_id in ("one", "two", "three"):
        await store.create(image_id, big_data={"key": b"data"})
    with (
        caplog.at_level(logging.WARNING),
        faults.fail_call("rmdir", errno.EBUSY, lambda _, name, **__: name == "one"),
    ):
        await store.wipe()
    assert sorted(os.listdir(path)) == ["images.json", "images.lock", "one"]
    assert "deleted image one" in caplog.text


async def test_without_record_locks_filelock_is_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimagestore._directory.lock.RECORD_LOCKS", False)
    async with ImageStore(path) as store, ImageStore(path, lock_timeout=0.05) as other:
        async with store.transaction() as tx:
            await tx.create("one")
            with pytest.raises(LockTimeoutError) as info:
                await other.create("two")
            assert info.value.holder_pid is None
            # The two stores wait in one line; this descriptor does not.
            with (path / "images.lock").open("rb") as lock_file, pytest.raises(BlockingIOError):
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        async with (
            ImageStore(path) as waiting,
            anyio.create_task_group() as tasks,
            store.transaction() as tx,
        ):
            tasks.start_soon(waiting.create, "two")
            await until(lambda: bool(core_of(waiting).engine.lock._line))
            await tx.create("three")
        assert [image.id for image in await store.images()] == ["one", "three", "two"]
