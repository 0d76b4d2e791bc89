"""Exports at the same time, exports that fail, and exports into pipes whose readers stall."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import ImageStore, InvalidLayoutError, oci
from aimagestore._directory.staged import STAGED_PREFIX, StagedFile, remove_dead
from aimagestore.oci._layout import LayoutDirectory
from aimagestore.oci._target import DirectoryTarget

from .support.layouts import Maker, encode, entries_of, files_of, hello
from .support.stores import until

SIZE = 300_000
"""More than a pipe holds."""


async def import_all(store: ImageStore, maker: Maker, path: Path) -> list[str]:
    """Import a layout, and return the IDs of its images."""
    return [each.image.id for each in await oci.import_layout(store, maker.write(path))]


def digests_in(layout: Path) -> set[str]:
    """Return the digests that a layout lists."""
    return {entry["digest"] for entry in entries_of(layout)}


def several(number: int) -> Maker:
    """A layout of images that share a layer, and have one of their own each."""
    maker = Maker()
    for n in range(number):
        maker.enter(maker.image(b"shared", b"%d" % n, config={"n": n}), f"image:{n}")
    return maker


# At the same time

_EXPORTER = """
import sys, anyio
from aimagestore import ImageStore, oci

async def main(root, out, *refs):
    async with ImageStore(root, read_only=True) as store:
        print(flush=True)
        sys.stdin.read()
        for ref in refs:
            await oci.export_layout(store, ref, out)

anyio.run(main, *sys.argv[1:])
"""


async def test_exports_of_several_processes_lose_nothing(
    store: ImageStore, path: Path, tmp_path: Path
) -> None:
    processes, each = 4, 5
    maker = several(processes * each)
    ids = await import_all(store, maker, tmp_path / "layout")
    out = tmp_path / "out"
    running = []
    for n in range(processes):
        part = ids[n * each : (n + 1) * each]
        command = [sys.executable, "-c", _EXPORTER, str(path), str(out), *part]
        running.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )

    def finish() -> None:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "\n"
        for process in running:  # all of them at once
            assert process.stdin is not None
            process.stdin.close()
        for process in running:
            assert process.wait(60) == 0
            assert process.stdout is not None
            process.stdout.close()

    await anyio.to_thread.run_sync(finish)
    assert digests_in(out) == {entry["digest"] for entry in maker.entries}
    exported = files_of(out)
    assert exported.keys() == files_of(tmp_path / "layout").keys()
    assert sorted(os.listdir(tmp_path)) == ["layout", "out", "store"]


async def test_a_staging_directory_that_another_export_removes_is_made_again(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image,) = await import_all(store, hello(), tmp_path / "layout")
    real = LayoutDirectory.make_directory
    removed: list[str] = []

    def make_directory(self: LayoutDirectory, name: str, mode: int) -> bool:
        made = real(self, name, mode)
        if name.startswith(STAGED_PREFIX) and not removed:
            remove_dead(self)
            removed.append(name)
        return made

    monkeypatch.setattr(LayoutDirectory, "make_directory", make_directory)
    await oci.export_layout(store, image, tmp_path / "out")
    assert removed
    assert files_of(tmp_path / "out").keys() == files_of(tmp_path / "layout").keys()


class Interleaving:
    """Lets another export happen at one point of an export's commit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self._monkeypatch = monkeypatch
        self._name = name
        self.other: Callable[[], object] = lambda: None

    def __enter__(self) -> None:
        real = getattr(DirectoryTarget, self._name)

        def call(target: Any, *args: Any) -> Any:
            other, self.other = self.other, lambda: None
            other()
            return real(target, *args)

        self._monkeypatch.setattr(DirectoryTarget, self._name, call)

    def __exit__(self, *_: object) -> None:
        self._monkeypatch.undo()


@pytest.mark.parametrize("point", ["commit", "_rename"])
@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
async def test_an_export_completes_or_leaves_a_directory_that_another_makes_meanwhile(
    store: ImageStore,
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    fails: bool,
) -> None:
    """An export that fails does not remove the directory or blobs of the other."""
    maker = several(2)
    first, second = await import_all(store, maker, tmp_path / "layout")
    out = tmp_path / "out"
    between = Interleaving(monkeypatch, point)
    write = DirectoryTarget._write

    def write_or_fail(target: Any, root: Any, name: str, data: bytes) -> None:
        if fails and name == "index.json" and out.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(target, root, name, data)

    def export_the_other() -> None:
        async def export() -> None:
            async with ImageStore(path, read_only=True) as again:
                await oci.export_layout(again, second, out)

        anyio.run(export)
        monkeypatch.setattr(DirectoryTarget, "_write", write_or_fail)

    between.other = export_the_other
    with between:
        if fails:
            with pytest.raises(OSError, match="No space"):
                await oci.export_layout(store, first, out)
        else:
            await oci.export_layout(store, first, out)
    digests = [entry["digest"] for entry in maker.entries]
    assert digests_in(out) == set(digests[1:] if fails else digests)
    async with ImageStore(tmp_path / "again") as again:
        assert len(await oci.import_layout(again, out)) == 2 - fails
    assert sorted(os.listdir(tmp_path)) == ["again", "layout", "out", "store"]


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
async def test_a_new_layout_appears_whole_or_not_at_all(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (image_id,) = await import_all(store, hello(), tmp_path / "layout")
    real = StagedFile.replace
    seen = []

    def fail(staged: StagedFile, directory: Any, file: str, *mode: int | None) -> None:
        seen.append((tmp_path / "out").exists())
        if file == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(staged, directory, file, *mode)

    monkeypatch.setattr(StagedFile, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        await oci.export_layout(store, image_id, tmp_path / "out")
    assert not any(seen)
    assert sorted(os.listdir(tmp_path)) == ["layout", "store"]


@pytest.mark.parametrize("given", ["", "missing/.."])
async def test_an_empty_path_and_one_through_a_missing_directory_are_refused(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """Both would be the current directory if they were resolved without reading the disk."""
    (image,) = await import_all(store, hello(), tmp_path / "layout")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "letter").write_bytes(b"dear")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises((FileNotFoundError, InvalidLayoutError)):
        await oci.export_layout(store, image, given)
    assert os.listdir() == ["letter"]


async def test_a_layout_with_a_large_index_gets_one_more_image(
    store: ImageStore, tmp_path: Path
) -> None:
    (image,) = await import_all(store, hello(), tmp_path / "layout")
    maker = hello()
    maker.files["index.json"] = encode(
        {"schemaVersion": 2, "manifests": maker.entries, "annotations": {"x": "y" * 5_000_000}}
    )
    other = maker.write(tmp_path / "other")
    await oci.export_layout(store, image, other, name="more:1")
    assert len(entries_of(other)) == 2


@pytest.mark.parametrize("mode", [0o600, 0o664])
async def test_the_index_of_a_layout_keeps_its_permissions(
    store: ImageStore, tmp_path: Path, mode: int
) -> None:
    (image_id,) = await import_all(store, hello(), tmp_path / "layout")
    index = tmp_path / "layout" / "index.json"
    index.chmod(mode)
    await oci.export_layout(store, image_id, tmp_path / "layout", name="other:1")
    assert index.stat().st_mode & 0o777 == mode


async def test_an_empty_directory_keeps_its_inode_and_mode(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image_id,) = await import_all(store, hello(), tmp_path / "layout")
    out = tmp_path / "out"
    out.mkdir(mode=0o750)
    before = out.stat()
    await oci.export_layout(store, image_id, out)
    assert os.path.samestat(out.stat(), before)
    assert stat.S_IMODE(out.stat().st_mode) == 0o750


# Readers that stall


@pytest.fixture
async def large(store: ImageStore, tmp_path: Path) -> str:
    """The ID of an image that is larger than any pipe."""
    maker = Maker()
    maker.enter(maker.image(os.urandom(SIZE)), "large:1")
    (image_id,) = await import_all(store, maker, tmp_path / "layout")
    return image_id


def is_full(reader: int) -> bool:
    """Return whether a pipe is almost full."""
    held = array.array("i", [0])
    fcntl.ioctl(reader, termios.FIONREAD, held)
    return held[0] >= 60_000


@pytest.mark.parametrize("kind", ["raw", "buffered", "fifo"])
async def test_a_reader_that_stalls_does_not_hold_a_cancelled_export(
    store: ImageStore, large: str, tmp_path: Path, kind: str
) -> None:
    target: Any
    if kind == "fifo":
        target = tmp_path / "fifo.tar"
        os.mkfifo(target)
        reader = os.open(target, os.O_RDONLY | os.O_NONBLOCK)
    else:
        reader, writer = os.pipe()
        target = open(writer, "wb", buffering=0 if kind == "raw" else -1)  # noqa: SIM115
    try:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(oci.export_layout, store, large, target)
                await until(lambda: is_full(reader))
                tasks.cancel_scope.cancel()
    finally:
        if kind != "fifo":
            target.close()  # nothing is left in its buffer that would wait
        os.close(reader)


async def test_a_reader_that_stalls_at_the_end_does_not_hold_a_cancelled_export(
    store: ImageStore, tmp_path: Path
) -> None:
    """The end of the archive is written in another call, which waits for the reader too."""
    (image_id,) = await import_all(store, hello(), tmp_path / "layout")
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with open(writer, "wb", buffering=0) as target, anyio.fail_after(30):
        await oci.export_layout(store, image_id, tmp_path / "whole.tar")
        size = (tmp_path / "whole.tar").stat().st_size
        got = 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(oci.export_layout, store, image_id, target)
            # Then all but a little of the rest fits into the pipe.
            while got < size - 5000:
                got += len(await anyio.to_thread.run_sync(os.read, reader, 512))
            tasks.cancel_scope.cancel()
    os.close(reader)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("buffering", [0, -1])
async def test_a_slow_reader_gets_everything(
    store: ImageStore, large: str, tmp_path: Path, kind: str, buffering: int
) -> None:
    await oci.export_layout(store, large, tmp_path / "whole.tar")
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        ends = socket.socketpair()
        reader, writer = (end.detach() for end in ends)
    got = bytearray()

    def read() -> None:
        while piece := os.read(reader, 1000):
            got.extend(piece)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, read)
        with open(writer, "wb", buffering=buffering) as file:
            await oci.export_layout(store, large, file)
    os.close(reader)
    assert bytes(got) == (tmp_path / "whole.tar").read_bytes()


async def test_a_reader_that_closes_its_end_breaks_the_export(
    store: ImageStore, large: str
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb", buffering=0) as file, pytest.raises(BrokenPipeError):
        await oci.export_layout(store, large, file)
