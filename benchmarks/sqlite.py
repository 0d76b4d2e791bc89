"""An alternative that an asyncio user might build: aiosqlite for records, files for big data."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import aiofiles

from .images import image_store
from .peer import Peer, Reply, Stopwatch, new_metadata, seconds

CHUNK = 1024 * 1024
_SCHEMA = """
CREATE TABLE images (id TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE names (name TEXT PRIMARY KEY, id TEXT NOT NULL);
"""
_BY_ID = "SELECT record FROM images WHERE id = ?"
_BY_NAME = "SELECT record FROM names JOIN images USING (id) WHERE name = ?"
_UPDATE = "UPDATE images SET record = json_set(record, '$.metadata', ?) WHERE id = ?"


class SqlitePeer(Peer):
    """One connection in WAL mode with synchronous=FULL, so that each commit is durable."""

    _serial = 0

    async def do_setup(self, root: str) -> Reply:
        """Fill a database with the store's records."""
        self._path = image_store(Path(root))
        self._database = str(self._path / "images.sqlite")
        records = json.loads((self._path / "images.json").read_bytes())
        self._connection = await self._connect(self._database)
        await self._connection.executescript(_SCHEMA)
        await self._connection.executemany(
            "INSERT INTO images VALUES (?, ?)", [(r["id"], json.dumps(r)) for r in records]
        )
        await self._connection.executemany(
            "INSERT INTO names VALUES (?, ?)", [(n, r["id"]) for r in records for n in r["names"]]
        )
        await self._connection.commit()
        self._lock = asyncio.Lock()
        return {}

    async def _connect(self, database: str) -> Any:
        connection = await import_module("aiosqlite").connect(database)
        await connection.execute("PRAGMA journal_mode=WAL")
        await connection.execute("PRAGMA synchronous=FULL")
        return connection

    async def _commit(self, ref: str) -> None:
        self._serial += 1
        async with self._lock:
            await self._connection.execute(_UPDATE, (new_metadata(self._serial), ref))
            await self._connection.commit()

    async def do_commit(self, refs: Sequence[str]) -> Reply:
        """Make one commit after another."""
        samples = []
        for ref in refs:
            watch = Stopwatch()
            await self._commit(ref)
            samples.append(watch.stop())
        return seconds(*samples)

    async def do_burst(self, refs: Sequence[str]) -> Reply:
        """Make all commits at once, each in a task."""
        watch = Stopwatch()
        await asyncio.gather(*(self._commit(ref) for ref in refs))
        return seconds(watch.stop())

    async def _get(self, query: str, ref: str) -> Any:
        async with self._connection.execute(query, (ref,)) as cursor:
            row = await cursor.fetchone()
        return json.loads(row[0])

    async def do_get(self, refs: Sequence[str], passes: int) -> Reply:
        """Look images up, one after another."""
        query = _BY_NAME if "/" in refs[0] else _BY_ID
        watch = Stopwatch()
        for _ in range(passes):
            for ref in refs:
                await self._get(query, ref)
        return seconds(watch.stop() / passes / len(refs))

    async def do_images(self) -> Reply:
        """List all images."""
        watch = Stopwatch()
        async with self._connection.execute("SELECT record FROM images") as cursor:
            [json.loads(row[0]) for row in await cursor.fetchall()]
        return seconds(watch.stop())

    async def do_ingest(self, images: int, tasks: int, root: str) -> Reply:
        """Create images with a manifest and a config in a new database."""
        os.makedirs(root)
        async with AsyncExitStack() as stack:
            self._connection = await self._connect(f"{root}/images.sqlite")
            stack.push_async_callback(self._connection.close)
            await self._connection.executescript(_SCHEMA)
            self._lock = asyncio.Lock()
            numbers = iter(range(images))

            async def worker() -> None:
                for number in numbers:
                    await self._create(root, number)

            watch = Stopwatch()
            await asyncio.gather(*(worker() for _ in range(tasks)))
            return seconds(watch.stop())

    async def _create(self, root: str, number: int) -> None:
        image_id = secrets.token_hex(32)
        directory = f"{root}/{image_id}"
        await asyncio.to_thread(os.mkdir, directory)
        digests = {}
        for key, size in ("manifest", 500), ("config", 300):
            data = os.urandom(size)
            digests[key] = hashlib.sha256(data).hexdigest()
            await _write(f"{directory}/{key}", data, 1)
        await asyncio.to_thread(_sync, directory)
        name = f"localhost/image-{number}:latest"
        record = {"id": image_id, "names": [name], "digests": digests}
        async with self._lock:
            await self._connection.execute(
                "INSERT INTO images VALUES (?, ?)", (image_id, json.dumps(record))
            )
            await self._connection.execute("INSERT INTO names VALUES (?, ?)", (name, image_id))
            await self._connection.commit()

    async def do_put(self, size: int) -> Reply:
        """Stream an item into a file."""
        chunk = os.urandom(min(size, CHUNK))
        path = f"{self._path}/blob"
        watch = Stopwatch()
        await _write(path, chunk, size // len(chunk))
        took = watch.stop()
        os.unlink(path)
        return seconds(took)

    async def do_make_item(self, size: int) -> Reply:
        """Write the file that is read later."""
        chunk = os.urandom(min(size, CHUNK))
        await _write(f"{self._path}/item", chunk, size // len(chunk))
        return {}

    async def do_read(self, *, verify: bool) -> Reply:
        """Stream the file out."""
        watch = Stopwatch()
        digest = hashlib.sha256()
        async with aiofiles.open(f"{self._path}/item", "rb") as file:
            while data := await file.read(CHUNK):
                if verify:
                    await asyncio.to_thread(digest.update, data)
        return seconds(watch.stop())


async def _write(path: str, chunk: bytes, times: int) -> None:
    digest = hashlib.sha256()
    async with aiofiles.open(f"{path}.new", "wb") as file:
        for _ in range(times):
            await asyncio.to_thread(digest.update, chunk)
            await file.write(chunk)
        await file.flush()
        await asyncio.to_thread(os.fsync, file.fileno())
    await asyncio.to_thread(os.rename, f"{path}.new", path)


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def make(**_: Any) -> Peer:
    """Make the peer."""
    return SqlitePeer()
