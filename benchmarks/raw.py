"""The raw limit: the same bytes brought to the disk by the barest loop."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import memory
from .images import image_store
from .peer import Peer, Reply, Stopwatch, seconds

CHUNK = 1024 * 1024


class RawPeer(Peer):
    """System calls in the only thread there is: no lock, no token, no parsing."""

    async def do_setup(self, root: str) -> Reply:
        """Have the bytes at hand that a commit writes."""
        self._path = image_store(Path(root))
        os.chdir(self._path)
        self._fd = os.open(".", os.O_RDONLY)
        self._text = _content("images.json")
        return {}

    def _commit(self) -> None:
        _replace("images.json", self._text, self._fd)

    async def do_commit(self, refs: Sequence[str]) -> Reply:
        """Write, sync, rename, sync the directory."""
        samples = []
        for _ in refs:
            watch = Stopwatch()
            self._commit()
            samples.append(watch.stop())
        return seconds(*samples)

    async def do_burst(self, refs: Sequence[str]) -> Reply:
        """What all of them together have to do at least once."""
        return await self.do_commit(refs[:1])

    async def do_commit_for(self, duration: float, refs: Sequence[str]) -> Reply:
        """One commit after another for some seconds."""
        watch = Stopwatch()
        commits = 0
        while watch.stop() < duration:
            self._commit()
            commits += 1
        return {"commits": commits, "seconds": watch.stop()}

    async def do_open(self, root: str) -> Reply:
        """Read the index, and parse it with the standard library."""
        watch = Stopwatch()
        json.loads((image_store(Path(root)) / "images.json").read_bytes())
        return seconds(watch.stop())

    async def do_memory(self, root: str) -> Reply:
        """What the standard library's parsed index takes."""
        gc.collect()
        start = memory.proportional()
        self._parsed = json.loads((image_store(Path(root)) / "images.json").read_bytes())
        return {"looked": memory.proportional() - start, "start": start}

    async def do_ingest(self, images: int, saves: int, text: str, root: str) -> Reply:
        """The same files, and as many saves of a growing index, one after another."""
        os.makedirs(root)
        os.chdir(root)
        final = _content(text)
        root_fd = os.open(".", os.O_RDONLY)
        watch = Stopwatch()
        saved = 0
        for number in range(images):
            self._ingest_one(secrets.token_hex(32))
            if (number + 1) * saves // images > saved:
                saved += 1
                _replace("images.json", final[: len(final) * saved // saves], root_fd)
        took = watch.stop()
        os.close(root_fd)
        return seconds(took)

    def _ingest_one(self, image_id: str) -> None:
        os.mkdir(image_id, 0o700)
        fd = os.open(image_id, os.O_RDONLY)
        for name, size in ("manifest", 500), ("config", 300):
            data = os.urandom(size)
            hashlib.sha256(data).hexdigest()
            _replace(name, data, fd, sync_directory=False)
        os.fsync(fd)
        os.close(fd)

    async def do_put(self, size: int) -> Reply:
        """Digest, write and sync in one thread."""
        chunk = os.urandom(min(size, CHUNK))
        watch = Stopwatch()
        digest = hashlib.sha256()
        fd = os.open("blob", os.O_WRONLY | os.O_CREAT, 0o600)
        for _ in range(size // len(chunk)):
            digest.update(chunk)
            os.write(fd, chunk)
        os.fsync(fd)
        os.close(fd)
        took = watch.stop()
        os.unlink("blob")
        return seconds(took)

    async def do_make_item(self, size: int) -> Reply:
        """Put a file there to be read."""
        chunk = os.urandom(min(size, CHUNK))
        fd = os.open("item", os.O_WRONLY | os.O_CREAT, 0o600)
        for _ in range(size // len(chunk)):
            os.write(fd, chunk)
        os.fsync(fd)
        os.close(fd)
        return {}

    async def do_read(self, *, verify: bool) -> Reply:
        """Read a file through, and digest it where that is asked for."""
        watch = Stopwatch()
        digest = hashlib.sha256()
        fd = os.open("item", os.O_RDONLY)
        while data := os.read(fd, CHUNK):
            if verify:
                digest.update(data)
        os.close(fd)
        return seconds(watch.stop())


def _content(path: str) -> bytes:
    return Path(path).read_bytes()


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


def make(**_: Any) -> Peer:
    """Make the peer."""
    return RawPeer()
