"""An alternative that an asyncio user might build: diskcache, called in worker threads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from .images import image_store
from .peer import Peer, Reply, Stopwatch, new_metadata, seconds


class DiskCachePeer(Peer):
    """One cache, which is set to sync each commit; by default, diskcache does not."""

    _serial = 0

    async def do_setup(self, root: str) -> Reply:
        """Fill a cache with the store's records."""
        path = image_store(Path(root))
        cache = import_module("diskcache").Cache(
            str(path / "cache"), sqlite_synchronous=2, eviction_policy="none", size_limit=2**40
        )
        with cache.transact():
            for record in json.loads((path / "images.json").read_bytes()):
                cache[record["id"]] = record
                cache[record["names"][0]] = record["id"]
        self._cache = cache
        self._lock = asyncio.Lock()
        return {}

    def _change(self, ref: str, metadata: str) -> None:
        with self._cache.transact():
            self._cache[ref] = self._cache[ref] | {"metadata": metadata}

    async def _commit(self, ref: str) -> None:
        self._serial += 1
        async with self._lock:
            await asyncio.to_thread(self._change, ref, new_metadata(self._serial))

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

    def _get(self, ref: str) -> Any:
        return self._cache[self._cache[ref] if "/" in ref else ref]

    async def do_get(self, refs: Sequence[str], passes: int) -> Reply:
        """Look images up, one after another."""
        watch = Stopwatch()
        for _ in range(passes):
            for ref in refs:
                await asyncio.to_thread(self._get, ref)
        return seconds(watch.stop() / passes / len(refs))


def make(**_: Any) -> Peer:
    """Make the peer."""
    return DiskCachePeer()
