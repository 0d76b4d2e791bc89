"""The floors: for each cost, the simplest code that does the unavoidable work.

They run in the process and on the event loop of the library that is compared with them, in turns
with it. They have no locks, tokens, parsing or checks.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
from anyio import to_thread

from .heartbeat import heartbeat
from .images import image_store
from .peer import Peer, Reply, Stopwatch, seconds

CHUNK = 2 * 1024 * 1024
"""Bytes that the library reads at a time while few readers are open."""

VERIFIED_CHUNK = 1024 * 1024
"""The same where it also digests."""

SENT = 1024 * 1024
"""Bytes that the library is given at a time."""

_COMPUTES = 0.2
"""Seconds for which a worker thread computes."""


class Record(msgspec.Struct, rename="kebab"):
    """A record, as a program that only reads records would define it."""

    id: str
    digest: str = ""
    names: list[str] = []
    names_history: list[str] = []
    layer: str = ""
    mapped_layers: list[str] = []
    metadata: str = ""
    big_data_names: list[str] = []
    big_data_sizes: dict[str, int] = {}
    big_data_digests: dict[str, str] = {}
    created: str = ""
    flags: dict[str, Any] = {}


class Floors(Peer):
    """The floors of a directory's store, in a directory of their own."""

    def __init__(self, root: str) -> None:
        self._index = image_store(Path(root)) / "images.json"
        self._directory = Path(root) / "floor"
        self._directory.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self._directory, os.O_RDONLY)

    # Changes

    def _commit(self) -> None:
        _replace("images.json", self._text, self._fd)

    def _prepare_commits(self) -> None:
        self._text = self._index.read_bytes()

    async def do_commit(self, refs: Sequence[str]) -> Reply:
        """Write, sync, rename, sync the directory, in a worker thread."""
        self._prepare_commits()
        samples = []
        for _ in refs:
            watch = Stopwatch()
            await to_thread.run_sync(self._commit)
            samples.append(watch.stop())
        return seconds(*samples)

    async def do_burst(self, refs: Sequence[str]) -> Reply:
        """Let tasks wait for one event, which is set after one commit in a worker thread.

        The commit begins when every task has queued something: it can hold nothing else.
        """
        self._prepare_commits()
        start, done = anyio.Event(), anyio.Event()
        queue: list[str] = []

        async def wait(ref: str) -> None:
            await start.wait()
            queue.append(ref)
            await done.wait()

        async with anyio.create_task_group() as tasks:
            for ref in refs:
                tasks.start_soon(wait, ref)
            await anyio.wait_all_tasks_blocked()
            watch = Stopwatch()
            start.set()
            while len(queue) < len(refs):
                await anyio.lowlevel.checkpoint()
            await to_thread.run_sync(self._commit)
            done.set()
        return seconds(watch.stop())

    async def do_ingest(self, images: int, saves: int, text: str, root: str) -> Reply:
        """Write the same files, and save a growing index as often, one after another."""
        final = _content(Path(text))
        os.makedirs(root, exist_ok=True)
        fd = os.open(root, os.O_RDONLY)
        watch = Stopwatch()
        await to_thread.run_sync(_ingest, fd, images, saves, final)
        took = watch.stop()
        os.close(fd)
        return seconds(took)

    # Reads

    async def do_get(self, refs: Sequence[str], passes: int) -> Reply:
        """Await a function that makes a ``stat`` of the index, and looks into a dictionary.

        The ``stat`` is of the path: an ``fstat`` takes half the time, but does not notice that the
        directory was moved, or that something was mounted over it.
        """
        table = {ref: ref for ref in refs}
        path = str(self._index)

        async def get(ref: str) -> str:
            os.stat(path)
            return table[ref]

        watch = Stopwatch()
        for _ in range(passes):
            for ref in refs:
                await get(ref)
        return seconds(watch.stop() / passes / len(refs))

    async def do_snapshot_get(self, refs: Sequence[str], passes: int) -> Reply:
        """Call a function that looks into a dictionary."""
        table = {ref: ref for ref in refs}

        def get(ref: str) -> str:
            return table[ref]

        watch = Stopwatch()
        for _ in range(passes):
            for ref in refs:
                get(ref)
        return seconds(watch.stop() / passes / len(refs))

    async def do_images(self) -> Reply:
        """Copy a list of the same length in a worker thread."""
        images = [None] * self._index.read_bytes().count(b'"created":')
        watch = Stopwatch()
        await to_thread.run_sync(images.copy)
        return seconds(watch.stop())

    async def do_load_watched(self, root: str) -> Reply:
        """Decode the index, and measure the stall beside a worker thread that only computes."""
        reply = await self.do_open(root)
        async with heartbeat() as heart:
            await to_thread.run_sync(_compute)
        return {**reply, "stall": heart.largest_stall}

    async def do_open(self, root: str) -> Reply:
        """Decode the index into plain records, in a worker thread."""
        watch = Stopwatch()
        await to_thread.run_sync(_decode, image_store(Path(root)) / "images.json")
        return seconds(watch.stop())

    async def do_next_read(self, ref: str) -> Reply:
        """Read the index in a worker thread, and measure the stall beside one that computes."""
        watch = Stopwatch()
        await to_thread.run_sync(_read, str(self._index), lambda _: None)
        took = watch.stop()
        async with heartbeat() as heart:
            await to_thread.run_sync(_compute)
        return {"samples": [took], "stall": heart.largest_stall}

    # Streams

    async def do_put(self, size: int) -> Reply:
        """Digest, write and sync in one worker thread."""
        chunk = os.urandom(min(size, SENT))
        path = str(self._directory / "blob")
        watch = Stopwatch()
        await to_thread.run_sync(_write, path, chunk, size // len(chunk))
        took = watch.stop()
        os.unlink(path)
        return seconds(took)

    async def do_read(self, *, verify: bool) -> Reply:
        """Read a file in one worker thread, and digest it if ``verify``."""
        digest: Callable[[bytes], object] = hashlib.sha256().update if verify else lambda _: None
        chunk = VERIFIED_CHUNK if verify else CHUNK
        watch = Stopwatch()
        await to_thread.run_sync(_read, self._item, digest, chunk)
        return seconds(watch.stop())

    async def do_make_item(self, size: int) -> Reply:
        """Write the file that is read later."""
        self._item = str(self._directory / "item")
        chunk = os.urandom(min(size, SENT))
        await to_thread.run_sync(_write, self._item, chunk, size // len(chunk))
        return {}


def _content(path: Path) -> bytes:
    return path.read_bytes()


def _compute() -> None:
    watch = Stopwatch()
    while watch.stop() < _COMPUTES:
        pass


def _decode(path: Path) -> int:
    return len(msgspec.json.decode(path.read_bytes(), type=list[Record]))


def _read(path: str, use: Callable[[bytes], object], chunk: int = CHUNK) -> None:
    fd = os.open(path, os.O_RDONLY)
    while data := os.read(fd, chunk):
        use(data)
    os.close(fd)


def _write(path: str, chunk: bytes, times: int) -> None:
    digest = hashlib.sha256()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for _ in range(times):
        digest.update(chunk)
        os.write(fd, chunk)
    os.fsync(fd)
    os.close(fd)


def _ingest(directory: int, images: int, saves: int, final: bytes) -> None:
    saved = 0
    for number in range(images):
        _ingest_one(secrets.token_hex(32), directory)
        if (number + 1) * saves // images > saved:
            saved += 1
            _replace("images.json", final[: len(final) * saved // saves], directory)


def _ingest_one(image_id: str, directory: int) -> None:
    os.mkdir(image_id, 0o700, dir_fd=directory)
    fd = os.open(image_id, os.O_RDONLY, dir_fd=directory)
    for name, size in ("manifest", 500), ("config", 300):
        data = os.urandom(size)
        hashlib.sha256(data).hexdigest()
        _replace(name, data, fd, sync_directory=False)
    os.fsync(fd)
    os.close(fd)


def _replace(name: str, data: bytes, directory: int, *, sync_directory: bool = True) -> None:
    fd = os.open(".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=directory)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.fsync(fd)
    os.close(fd)
    os.rename(".new", name, src_dir_fd=directory, dst_dir_fd=directory)
    if sync_directory:
        os.fsync(directory)
