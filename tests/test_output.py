"""Writing files outside of stores: targets, permissions, failures and staged files."""

from __future__ import annotations

import io
import os
import pty
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import ImageStore, oci
from aimagestore._cli.files import writing
from aimagestore._directory import files
from aimagestore._directory.files import Directory
from aimagestore._directory.staged import STAGED_PREFIX, StagedFile, remove_dead, staged_name
from aimagestore._engine.workers import WorkerPool
from aimagestore.oci._target import DirectoryTarget

from .support.layouts import Maker, files_of, hello
from .support.stores import until

Writer = Callable[[Any], Coroutine[Any, Any, object]]


@pytest.fixture(params=["item", "archive"])
async def write(request: pytest.FixtureRequest, store: ImageStore, tmp_path: Path) -> Writer:
    """Write 300,000 bytes or more to a path, as the commands ``get`` and ``export`` do."""
    maker = Maker()
    maker.enter(maker.image(os.urandom(300_000)), "large:1")
    (imported,) = await oci.import_layout(store, maker.write(tmp_path / "layout.tar"))

    async def export(path: Any) -> object:
        return await oci.export_layout(store, imported.image.id, path, transport="oci-archive")

    async def get(path: Any) -> None:
        async with writing(str(path)) as sink:
            await sink.write(bytes(300_000))

    return get if request.param == "item" else export


def left_in(path: Path) -> list[str]:
    """Return the temporary files in a directory."""
    return [name for name in os.listdir(path) if name.startswith(".")]


async def test_a_file_that_is_replaced_keeps_its_permissions(write: Writer, tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"old")
    file.chmod(0o640)
    link.symlink_to("file")
    await write(link)
    assert link.is_symlink()
    assert file.stat().st_size >= 300_000
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert not left_in(tmp_path)


async def test_writing_to_a_dangling_link_creates_its_target(write: Writer, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    await write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").stat().st_size >= 300_000


async def test_a_directory_is_not_replaced(write: Writer, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        await write(tmp_path / "directory")
    assert not left_in(tmp_path)


async def test_a_pipe_waits_for_its_reader(write: Writer, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with anyio.move_on_after(0.2) as scope:
        await write(pipe)
    assert scope.cancelled_caught
    got: list[bytes] = []
    await anyio.sleep(0.1)  # it has noticed
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write, pipe)
        got.append(await anyio.to_thread.run_sync(pipe.read_bytes))
    assert len(got[0]) >= 300_000


async def test_a_wait_for_a_reader_ends_with_its_thread(write: Writer, tmp_path: Path) -> None:
    before = threading.active_count()
    os.mkfifo(tmp_path / "pipe")
    with anyio.move_on_after(0.2):
        await write(tmp_path / "pipe")
    await until(lambda: threading.active_count() <= before)


async def test_a_device_can_be_written_to(write: Writer) -> None:
    await write("/dev/null")
    with pytest.raises(OSError, match="No space"):
        await write("/dev/full")


async def test_a_terminal_that_is_stopped_does_not_hold_a_cancelled_write(write: Writer) -> None:
    leader, follower = pty.openpty()
    try:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write, os.ttyname(follower))
                await anyio.sleep(0.3)  # nobody reads: it is full soon
                tasks.cancel_scope.cancel()
    finally:
        os.close(follower)
        os.close(leader)  # ends the write that was left to its thread


@pytest.mark.parametrize("call", ["fsync", "rename", "link"])
async def test_a_write_that_fails_leaves_everything_as_it_was(
    write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="broken"):
            await write(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert not left_in(tmp_path)


async def test_files_are_written_where_no_unnamed_ones_can_be_made(
    write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_TMPFILE", None)
    await write(tmp_path / "file")
    assert (tmp_path / "file").stat().st_size >= 300_000
    assert not left_in(tmp_path)


# Objects that implement a part of the interface of files


class Slow(io.RawIOBase):
    """Takes a few bytes at a time, or returns the given answer."""

    def __init__(self, answer: Any = 0) -> None:
        self.got = bytearray()
        self._answer = answer

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> Any:
        if self._answer != 0:
            return self._answer
        self.got += data[:1000]
        return len(data[:1000])


async def test_an_object_may_write_less_than_it_is_given(store: ImageStore, tmp_path: Path) -> None:
    (imported,) = await oci.import_layout(store, hello().write(tmp_path / "layout"))
    slow: Any = Slow()
    await oci.export_layout(store, imported.image.id, slow)
    await oci.export_layout(store, imported.image.id, tmp_path / "whole.tar")
    assert bytes(slow.got) == (tmp_path / "whole.tar").read_bytes()


@pytest.mark.parametrize("answer", [None, "5", -1, 10**9])
async def test_an_object_that_returns_no_number_of_bytes_is_refused(
    store: ImageStore, tmp_path: Path, answer: Any
) -> None:
    (imported,) = await oci.import_layout(store, hello().write(tmp_path / "layout"))
    odd: Any = Slow(answer)
    with pytest.raises(TypeError, match="must return the number of bytes"):
        await oci.export_layout(store, imported.image.id, odd)


@pytest.mark.parametrize("stuck", ["write", "flush"])
async def test_an_object_that_never_answers_does_not_hold_a_cancelled_export(
    store: ImageStore, tmp_path: Path, stuck: str
) -> None:
    (imported,) = await oci.import_layout(store, hello().write(tmp_path / "layout"))
    asked, answer = threading.Event(), threading.Event()
    writes = 0

    class Stuck(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            nonlocal writes
            writes += 1
            if stuck == "write":
                self.wait()
            return len(data)

        def flush(self) -> None:
            if not self.closed and stuck == "flush":
                self.wait()

        def wait(self) -> None:
            asked.set()
            answer.wait(60)

    file: Any = Stuck()
    before = threading.active_count()
    try:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(oci.export_layout, store, imported.image.id, file)
                await until(asked.is_set)
                tasks.cancel_scope.cancel()
        assert not answer.is_set()
    finally:
        answer.set()
    await until(lambda: threading.active_count() <= before)
    assert writes == 1 or stuck == "flush"


# Staged files of killed writers

_KILLED = """
import os, signal, sys, anyio
from aimagestore import ImageStore, oci

real, name = getattr(os, sys.argv[1]), sys.argv[1]
def kill(*args, **kwargs):
    if ".stage-" in str(args[0]) + str(args[1]):
        if name != "rename":
            real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

async def main(root, ref, out):
    async with ImageStore(root, read_only=True) as store:
        setattr(os, name, kill)
        await oci.export_layout(store, ref, out)

anyio.run(main, *sys.argv[2:])
"""


@pytest.mark.parametrize("name", ["new", "new.tar", "old"])
@pytest.mark.parametrize("call", ["rename", "link"])
async def test_an_export_removes_the_staged_files_of_a_killed_one(
    store: ImageStore, path: Path, tmp_path: Path, name: str, call: str
) -> None:
    (imported,) = await oci.import_layout(store, hello().write(tmp_path / "layout"))
    place = tmp_path / "place"
    place.mkdir()
    if name == "old":
        Maker().write(place / "old")
    command = [sys.executable, "-c", _KILLED, call, str(path), imported.image.id, str(place / name)]
    result = await anyio.to_thread.run_sync(lambda: subprocess.run(command, check=False))
    assert result.returncode == -signal.SIGKILL
    here = place / name if name == "old" else place
    left = left_in(here)
    assert left
    assert all(each.startswith(STAGED_PREFIX) for each in left)
    await oci.export_layout(store, imported.image.id, place / name)
    assert os.listdir(place) == [name]
    assert not left_in(here)
    assert imported.image.digest.partition(":")[2] in str(list(files_of(place / name)))


async def test_the_staged_files_of_a_running_export_are_kept(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another export begins while a new layout is being written."""
    (imported,) = await oci.import_layout(store, hello().write(tmp_path / "layout"))
    real = DirectoryTarget._rename
    seen: list[str] = []

    def rename(target: DirectoryTarget) -> bool:
        with Directory.at(str(tmp_path)) as parent:
            remove_dead(parent)
        seen.extend(left_in(tmp_path))
        return real(target)

    monkeypatch.setattr(DirectoryTarget, "_rename", rename)
    await oci.export_layout(store, imported.image.id, tmp_path / "new")
    assert len(seen) == 1
    assert not left_in(tmp_path)


def test_only_files_named_like_staged_ones_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_TMPFILE", None)
    helpers = WorkerPool(1, "helper")
    (tmp_path / "outside").write_bytes(b"")
    kept = [f"{STAGED_PREFIX}mine", f"{staged_name()}x", ".other", staged_name(), staged_name()]
    for name in kept[:3]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / kept[3]).symlink_to("outside")
    os.mkfifo(tmp_path / kept[4])
    (tmp_path / staged_name()).write_bytes(b"")
    tree = tmp_path / staged_name()
    (tree / "blobs").mkdir(parents=True)
    (tree / "blobs" / "link").symlink_to(tmp_path / "outside")
    with Directory.at(str(tmp_path)) as directory:
        living = StagedFile(directory, helpers)
        remove_dead(directory)
        assert len(os.listdir(tmp_path)) == 7
        assert set(kept) < set(os.listdir(tmp_path))
        living.discard()
        assert set(os.listdir(tmp_path)) == {*kept, "outside"}
    helpers.shutdown()


def test_a_staged_file_that_another_export_removes_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another export removes it between its creation and its lock."""
    monkeypatch.setattr(files, "_TMPFILE", None)
    real = Directory.lock_file
    removed: list[str] = []

    def lock(directory: Directory, name: str, fd: int, *, wait: bool = True) -> bool:
        if not removed:
            removed.append(name)
            directory.unlink(name)
        return real(directory, name, fd, wait=wait)

    monkeypatch.setattr(Directory, "lock_file", lock)
    helpers = WorkerPool(1, "helper")
    with Directory.at(str(tmp_path)) as directory:
        staged = StagedFile(directory, helpers)
        staged.sink.write(b"data")
        staged.replace(directory, "file")
        staged.discard()
    helpers.shutdown()
    assert len(removed) == 1
    assert os.listdir(tmp_path) == ["file"]
