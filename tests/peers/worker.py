"""A process that changes a store, and then reports what it should hold, as main.go does."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import asdict, dataclass, field

import anyio
import anyio.to_thread

from aimagestore import ImageStore

SHARED = "5" * 64
COUNTER = "6" * 64
KEEP = 4
TASKS = 3
PAUSE = 0.5
"""Seconds between changes, so that podman, which takes the lock for each image, can finish."""


@dataclass
class Report:
    """What the store has acknowledged to a worker.

    :ivar counts: when it had increased the common count, by a clock that all processes share, and
        the new count
    :ivar looks: when it began to read the common count, and what it read
    """

    worker: str
    operations: int = 0
    images: dict[str, dict[str, str]] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    shared_names: list[str] = field(default_factory=list)
    shared_item: str = ""
    counted: int = 0
    counts: list[tuple[float, int]] = field(default_factory=list)
    looks: list[tuple[float, int]] = field(default_factory=list)


def content(text: str) -> dict[str, bytes]:
    """Return the manifest and config of an image without layers, as podman needs them."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "author": text,
        "rootfs": {"type": "layers", "diff_ids": []},
        "config": {},
    }
    encoded = json.dumps(config).encode()
    digest = f"sha256:{hashlib.sha256(encoded).hexdigest()}"
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest,
            "size": len(encoded),
        },
        "layers": [],
    }
    return {"manifest": json.dumps(manifest).encode(), digest: encoded}


@dataclass
class Worker:
    """One task that changes images of its own, and two that all workers share."""

    store: ImageStore
    report: Report
    is_steady: bool
    mine: list[str] = field(default_factory=list)
    number: int = 0

    async def change(self, until: float) -> None:
        """Make at least one change, and more until the time has come."""
        while not self.number or time.monotonic() < until:
            await self._change_once()
            self.number += 1
            if self.is_steady:
                await anyio.sleep(PAUSE)

    async def _change_once(self) -> None:
        store, report = self.store, self.report
        when = time.monotonic()
        seen = json.loads(await store.metadata(COUNTER))["count"]
        report.looks.append((when, seen))
        text = f"{report.worker} {self.number}"
        name = f"localhost/{report.worker}:{self.number}"
        metadata = json.dumps({"note": f"{text} again"})
        image_id = await self._begin(name, text)
        await store.set_metadata(name, metadata)
        shared_name = f"localhost/shared-{report.worker}:{self.number}"
        await store.add_names(SHARED, [shared_name])
        key = f"{report.worker}.item"
        await store.set_big_data(SHARED, key, text.encode())
        await store.add_names(image_id, ["localhost/moving:1"])
        async with store.transaction() as transaction:
            count = json.loads((await transaction.get(COUNTER)).metadata)["count"]
            await transaction.set_metadata(COUNTER, json.dumps({"count": count + 1}))
        report.counts.append((time.monotonic(), count + 1))

        # The next call sees each change.
        assert (await store.get(image_id)).metadata == metadata
        assert await store.lookup(name) == image_id
        async with store.open_big_data(SHARED, key, verify=True) as reader:
            assert await reader.read() == text.encode()

        report.images[image_id] = {"name": name, "metadata": metadata, "data": text}
        report.shared_names.append(shared_name)
        report.shared_item = text
        report.counted += 1
        report.operations += 6
        self.mine.append(image_id)
        await self._remove_oldest()

    async def _begin(self, name: str, text: str) -> str:
        """Make an image, or take the oldest one."""
        if self.is_steady and len(self.mine) == KEEP:
            image_id = self.mine.pop(0)
            async with self.store.transaction() as transaction:
                await transaction.set_names(image_id, [name])
                await transaction.set_big_data(image_id, "text", text.encode())
            return image_id
        items = content(text) | {"text": text.encode()}
        metadata = json.dumps({"note": text})
        image = await self.store.create(names=[name], metadata=metadata, big_data=items)
        return image.id

    async def _remove_oldest(self) -> None:
        report = self.report
        if len(report.shared_names) > KEEP:
            await self.store.remove_names(SHARED, [report.shared_names.pop(0)])
            report.operations += 1
        if len(self.mine) > KEEP:
            oldest = self.mine.pop(0)
            await self.store.delete(oldest)
            del report.images[oldest]
            report.deleted.append(oldest)
            report.operations += 1


async def work(store: ImageStore, name: str, seconds: float, mode: str) -> None:
    """Change the store from several tasks, print the reports, and list the images on request."""
    async with store:
        print('"ready"', flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)
        until = time.monotonic() + seconds
        reports = [Report(f"{name}-{number}") for number in range(TASKS)]
        async with anyio.create_task_group() as tasks:
            for report in reports:
                tasks.start_soon(Worker(store, report, mode == "steady").change, until)
        print(json.dumps([asdict(report) for report in reports]), flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)
        print(json.dumps([image.id for image in await store.images()]), flush=True)


if __name__ == "__main__":
    _, backend, path, name, seconds, mode = sys.argv
    anyio.run(work, ImageStore(path), name, float(seconds), mode, backend=backend)
