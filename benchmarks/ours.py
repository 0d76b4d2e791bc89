"""The library under test."""

from __future__ import annotations

import gc
import os
import secrets
import struct
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anyio

from aimagestore import ImageStore

from . import memory
from .heartbeat import heartbeat
from .images import image_store
from .peer import Peer, Reply, Stopwatch, new_metadata, seconds
from .place import Place

CHUNK = 1024 * 1024


class OurPeer(Peer):
    """One open store, in the event loop that the worker was started with."""

    _store: ImageStore
    _root = ""
    _floors: Peer | None = None
    _serial = 0

    async def do_setup(self, root: str) -> Reply:
        """Open a store."""
        self._root = root
        self._store = await new_store(root).__aenter__()
        return {}

    async def do_floor(self, of: str, **arguments: Any) -> Reply:
        """Run the floor of a task."""
        if self._floors is None:
            self._floors = new_floors(self._root or arguments["root"])
        return await self._floors.do(of, **arguments)

    # Changes

    async def _commit(self, ref: str) -> None:
        self._serial += 1
        await self._store.set_metadata(ref, new_metadata(self._serial))

    async def do_commit(self, refs: Sequence[str]) -> Reply:
        """Make one commit after another."""
        samples = []
        for ref in refs:
            watch = Stopwatch()
            await self._commit(ref)
            samples.append(watch.stop())
        return seconds(*samples)

    async def do_burst(self, refs: Sequence[str]) -> Reply:
        """Make each commit in a task of its own. The tasks exist when the clock starts."""
        start = anyio.Event()

        async def commit(ref: str) -> None:
            await start.wait()
            await self._commit(ref)

        async with anyio.create_task_group() as tasks:
            for ref in refs:
                tasks.start_soon(commit, ref)
            await anyio.wait_all_tasks_blocked()
            watch = Stopwatch()
            start.set()
        return seconds(watch.stop())

    async def do_commit_for(self, duration: float, refs: Sequence[str]) -> Reply:
        """Make one commit after another for some seconds."""
        watch = Stopwatch()
        commits = 0
        while watch.stop() < duration:
            await self._commit(refs[commits % len(refs)])
            commits += 1
        return {"commits": commits, "seconds": watch.stop()}

    async def do_create(self, images: int, tasks: int) -> Reply:
        """Create images without items from several tasks; the reply has seconds for each image."""
        numbers = iter(range(images))

        async def create() -> None:
            for number in numbers:
                name = f"localhost/{secrets.token_hex(32)}"
                await self._store.create(names=[name], metadata=new_metadata(number))

        watch = Stopwatch()
        async with anyio.create_task_group() as group:
            for _ in range(tasks):
                group.start_soon(create)
        return seconds(watch.stop() / images)

    async def do_ingest(self, images: int, tasks: int, root: str) -> Reply:
        """Create images with a manifest and a config in a new store."""
        path = image_store(Path(root))
        async with ImageStore(path) as store:
            numbers = iter(range(images))

            async def worker() -> None:
                for number in numbers:
                    await store.create(
                        names=[f"localhost/image-{number}:latest"],
                        big_data={"manifest": os.urandom(500), "config": os.urandom(300)},
                    )

            await store.touch()  # the counter is this process's: it has counted other stores' saves
            before = _saves(path)
            watch = Stopwatch()
            async with anyio.create_task_group() as group:
                for _ in range(tasks):
                    group.start_soon(worker)
            return {"samples": [watch.stop()], "saves": _saves(path) - before}

    # Reads

    async def do_get(self, refs: Sequence[str], passes: int) -> Reply:
        """Look images up, one after another."""
        get = self._store.get
        for ref in refs:
            await get(ref)
        watch = Stopwatch()
        for _ in range(passes):
            for ref in refs:
                await get(ref)
        return seconds(watch.stop() / passes / len(refs))

    async def do_by_digest(self, digests: Sequence[str]) -> Reply:
        """Look images up by digest, one after another."""
        watch = Stopwatch()
        for digest in digests:
            await self._store.by_digest(digest)
        return seconds(watch.stop() / len(digests))

    async def do_snapshot_get(self, refs: Sequence[str], passes: int) -> Reply:
        """Look images up in one snapshot."""
        get = (await self._store.snapshot()).get
        for ref in refs:
            get(ref)
        watch = Stopwatch()
        for _ in range(passes):
            for ref in refs:
                get(ref)
        return seconds(watch.stop() / passes / len(refs))

    async def do_images(self) -> Reply:
        """List all images in a second call."""
        await self._store.images()
        watch = Stopwatch()
        await self._store.images()
        return seconds(watch.stop())

    async def do_open(self, root: str) -> Reply:
        """Open another store."""
        store = new_store(root)
        watch = Stopwatch()
        async with store:
            opened = watch.stop()
        return seconds(opened)

    async def do_load_watched(self, root: str) -> Reply:
        """Open another store and index it, and watch the event loop meanwhile."""
        store = new_store(root)
        async with heartbeat() as heart:
            watch = Stopwatch()
            async with store:
                await store.snapshot()
                loaded = watch.stop()
        return {"samples": [loaded], "stall": heart.largest_stall}

    async def do_next_read(self, ref: str) -> Reply:
        """Read an image that another program has just changed."""
        async with heartbeat() as heart:
            watch = Stopwatch()
            await self._store.get(ref)
            took = watch.stop()
        return {"samples": [took], "stall": heart.largest_stall}

    # Memory

    async def do_memory(self, root: str) -> Reply:
        """Reply with the memory of an open store, then with an index, then with all images read."""
        gc.collect()
        start = memory.proportional()
        await self.do_setup(root)
        opened = memory.proportional() - start
        await self._store.snapshot()
        indexed = memory.proportional() - start
        await self._store.images()
        looked = memory.proportional() - start
        return {"opened": opened, "indexed": indexed, "looked": looked, "start": start}

    async def do_lookup_memory(self, root: str, refs: Sequence[str]) -> Reply:
        """Reply with the memory of an open store, and how much the peak grows during lookups."""
        gc.collect()
        start = memory.resident()
        await self.do_setup(root)
        opened = memory.resident()
        memory.reset_peak()
        for ref in refs:
            await self._store.get(ref)
        return {"opened": opened - start, "looked": memory.peak() - opened}

    async def do_memory_peaks_start(self, root: str) -> Reply:
        """Reply with the peaks of memory of opening a store and of one commit."""
        gc.collect()
        self._start = memory.resident()
        memory.reset_peak()
        await self.do_setup(root)
        opening = memory.peak() - self._start
        memory.reset_peak()
        ref = next(iter(await self._store.snapshot())).id
        await self._commit(ref)
        return {"opening": opening, "commit": memory.peak() - self._start, "ref": ref}

    async def do_memory_peaks_reload(self, ref: str) -> Reply:
        """Reply with the peak of memory of loading another program's change."""
        memory.reset_peak()
        await self._store.get(ref)
        return {"reload": memory.peak() - self._start}

    # Streams

    async def _put(self, ref: str, key: str, size: int) -> None:
        await self._store.set_big_data(ref, key, _chunks(size))

    async def _read(self, ref: str, key: str, *, verify: bool = False) -> None:
        async with self._store.open_big_data(ref, key, verify=verify) as reader:
            async for _ in reader:
                pass

    async def do_put(self, size: int) -> Reply:
        """Stream an item into the store."""
        image = await self._store.create()
        watch = Stopwatch()
        await self._put(image.id, "blob", size)
        took = watch.stop()
        await self._store.delete(image.id)
        return seconds(took)

    async def do_make_item(self, size: int) -> Reply:
        """Store the item that is read later."""
        self._item = (await self._store.create()).id
        await self._put(self._item, "blob", size)
        return {}

    async def do_read(self, *, verify: bool) -> Reply:
        """Stream the item out."""
        watch = Stopwatch()
        await self._read(self._item, "blob", verify=verify)
        return seconds(watch.stop())

    async def do_stream_memory(self, size: int, streams: int) -> Reply:
        """Reply with how much the peak of memory grows by streams in, and then by streams out."""
        image = await self._store.create()
        await self._put(image.id, "first", CHUNK)
        gc.collect()
        start = memory.resident()
        peaks = []
        for stream in (self._put_one, self._read_one):
            memory.reset_peak()
            async with anyio.create_task_group() as tasks:
                for number in range(streams):
                    tasks.start_soon(stream, image.id, f"item.{number}", size)
            peaks.append(memory.peak() - start)
        await self._store.delete(image.id)
        return {"in": peaks[0], "out": peaks[1]}

    async def _put_one(self, ref: str, key: str, size: int) -> None:
        await self._put(ref, key, size)

    async def _read_one(self, ref: str, key: str, _: int) -> None:
        await self._read(ref, key, verify=True)


def new_store(root: str) -> ImageStore:
    """Return a store of either kind, which is not open yet."""
    if not root.startswith("postgresql:"):
        return ImageStore(image_store(Path(root)))
    from aimagestore.cluster import ClusterLocation

    place = Place.parse(root)
    return ImageStore(ClusterLocation(place.records_url, place.blobs_url))


def new_floors(root: str) -> Peer:
    """Return the floors of a store of either kind."""
    if root.startswith("postgresql:"):
        from .bare import ClusterFloors

        return ClusterFloors(root)
    from .floors import Floors

    return Floors(root)


async def _chunks(size: int) -> AsyncIterator[bytes]:
    chunk = os.urandom(min(size, CHUNK))
    for _ in range(size // len(chunk)):
        yield chunk


def _saves(path: Path) -> int:
    """Return how often this process has saved the index, as the last-write token counts."""
    token = (path / "images.lock").read_bytes()
    return int(struct.unpack_from("<Q", token, 8)[0]) if len(token) >= 16 else 0


def make(**_: Any) -> Peer:
    """Make the peer."""
    return OurPeer()
