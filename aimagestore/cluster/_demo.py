"""Brings PostgreSQL and SeaweedFS up on this machine, and shows a cluster's store at work."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager

import anyio
import anyio.to_thread

from .._async.store import ImageStore
from ..cluster import ClusterEngine, migrate
from .cluster import LocalCluster
from .server import ServersMissingError

_CHUNK = bytes(1024 * 1024)
_CHUNKS = 64
_NAME = "registry.example.com/app:1"


@contextmanager
def _timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"{time.perf_counter() - start:7.3f} s  {what}")


async def tour(local: LocalCluster, records_url: str, blobs_url: str) -> None:
    """Two stores on one cluster, as two machines would have them."""
    async with (
        ImageStore(ClusterEngine(records_url, blobs_url)) as here,
        ImageStore(ClusterEngine(records_url, blobs_url)) as there,
    ):
        with _timed("created an image with its manifest and config, in one step"):
            image = await here.create(names=[_NAME], big_data={"manifest": b"{}", "config": b"{}"})
        with _timed("found by its name, by another store's next call"):
            assert (await there.get(_NAME)).id == image.id
        with _timed("found by its digest there"):
            assert [found.id for found in await there.by_digest(image.digest)] == [image.id]
        with _timed(f"streamed {_CHUNKS} MiB in, from an async iterator"):
            await here.set_big_data(image.id, "layer", _chunks())
        with _timed(f"streamed {_CHUNKS} MiB out there, and compared the digest"):
            async with there.open_big_data(image.id, "layer", verify=True) as reader:
                size = sum([len(chunk) async for chunk in reader])
            assert size == _CHUNKS * len(_CHUNK)
        with _timed("made 200 images by 200 tasks, each call durable when it returned"):
            async with anyio.create_task_group() as tasks:
                for _ in range(200):
                    tasks.start_soon(here.create)
        with _timed("moved a name to another image, which no reader sees half-done"):
            moved = await there.create()
            await there.add_names(moved.id, [_NAME])
            assert (await here.get(_NAME)).id == moved.id
        with _timed("killed PostgreSQL and started it again"):
            await anyio.to_thread.run_sync(_crash, local)
        with _timed("went on, both of them, and nothing is lost"):
            assert len(await here.images()) == len(await there.images()) == 202
        with _timed("removed what belongs to no image"):
            await here.collect_garbage()


async def _chunks() -> AsyncIterator[bytes]:
    for _ in range(_CHUNKS):
        yield _CHUNK


def _crash(local: LocalCluster) -> None:
    local.postgres.kill()
    local.postgres.start()


def main() -> None:
    """Run the tour; with ``--keep``, leave the servers running until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m aimagestore.cluster", description=__doc__)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--keep", action="store_true", help="until Ctrl-C, to be tried by hand")
    arguments = parser.parse_args()
    # What ends this ends the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ExitStack() as stack:
        with _timed("started PostgreSQL and SeaweedFS, for this machine only"):
            try:
                local = stack.enter_context(LocalCluster())
            except ServersMissingError as missing:
                parser.exit(1, f"{missing}\n")
        os.environ.update(local.environment)
        local.postgres.create_database("store")
        records_url, blobs_url = local.postgres.url("store"), local.blobs_url("store")
        with _timed("made the schema"):
            migrate(records_url)
        anyio.run(tour, local, records_url, blobs_url, backend=arguments.backend)
        if arguments.keep:
            _keep(local, records_url, blobs_url)
    print("ended the servers, and removed all that they have written")


def _keep(local: LocalCluster, records_url: str, blobs_url: str) -> None:
    # The credentials go into a file that only this user can read, not onto the screen.
    script = local.root / "environment"
    script.touch(0o600)
    lines = [f"export {name}={shlex.quote(value)}" for name, value in local.environment.items()]
    script.write_text("\n".join(lines) + "\n")
    print(f"\nIn another terminal:\n\n    . {script}\n    python\n")
    print(f"    ClusterEngine({records_url!r}, {blobs_url!r})\n\nCtrl-C ends it.", flush=True)
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    signal.sigwait(ends)
    print()
