"""Start PostgreSQL and SeaweedFS on this machine, and demonstrate a cluster's store."""

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

from .. import ImageStore
from ._local.cluster import LocalCluster
from ._local.server import ServersMissingError
from ._location import ClusterLocation
from ._schema import migrate

_CHUNK = bytes(1024 * 1024)
_CHUNKS = 64
_NAME = "registry.example.com/app:1"


@contextmanager
def _timed(step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"{time.perf_counter() - start:7.3f} s  {step}")


async def demonstrate(local: LocalCluster, location: ClusterLocation) -> None:
    """Use one store from two places, as two machines would."""
    async with ImageStore(location) as here, ImageStore(location) as there:
        with _timed("created an image with its manifest and config, in one commit"):
            image = await here.create(names=[_NAME], big_data={"manifest": b"{}", "config": b"{}"})
        with _timed("found it by its name, in the next call of another store"):
            assert (await there.get(_NAME)).id == image.id
        with _timed("found it by its digest there"):
            assert [found.id for found in await there.by_digest(image.digest)] == [image.id]
        with _timed(f"streamed {_CHUNKS} MiB in, from an async iterator"):
            await here.set_big_data(image.id, "layer", _chunks())
        with _timed(f"streamed {_CHUNKS} MiB out there, and verified the digest"):
            async with there.open_big_data(image.id, "layer", verify=True) as reader:
                size = sum([len(chunk) async for chunk in reader])
            assert size == _CHUNKS * len(_CHUNK)
        with _timed("created 200 images in 200 tasks, each durable when its call returned"):
            async with anyio.create_task_group() as tasks:
                for _ in range(200):
                    tasks.start_soon(here.create)
        with _timed("moved a name to another image, in one commit"):
            moved = await there.create()
            await there.add_names(moved.id, [_NAME])
            assert (await here.get(_NAME)).id == moved.id
        with _timed("killed PostgreSQL and started it again"):
            await anyio.to_thread.run_sync(_crash, local)
        with _timed("read all images in both: nothing is lost"):
            assert len(await here.images()) == len(await there.images()) == 202
        with _timed("collected garbage"):
            await here.collect_garbage()


async def _chunks() -> AsyncIterator[bytes]:
    for _ in range(_CHUNKS):
        yield _CHUNK


def _crash(local: LocalCluster) -> None:
    local.postgres.kill()
    local.postgres.start()


def main() -> None:
    """Run the demo; with ``--keep``, leave the servers running until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m aimagestore.cluster", description=__doc__)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--keep", action="store_true", help="keep the servers running until Ctrl-C")
    arguments = parser.parse_args()
    # SIGTERM leaves the blocks, which end the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ExitStack() as stack:
        with _timed("started PostgreSQL and SeaweedFS on the loopback interface"):
            try:
                local = stack.enter_context(LocalCluster())
            except ServersMissingError as missing:
                parser.exit(1, f"{missing}\n")
        os.environ.update(local.environment)
        local.postgres.create_database("store")
        records_url, blobs_url = local.postgres.url("store"), local.blobs_url("store")
        with _timed("created the tables"):
            migrate(records_url)
        location = ClusterLocation(records_url, blobs_url)
        anyio.run(demonstrate, local, location, backend=arguments.backend)
        if arguments.keep:
            _keep(local, records_url, blobs_url)
    print("stopped the servers, and removed everything that they have written")


def _keep(local: LocalCluster, records_url: str, blobs_url: str) -> None:
    # The credentials go into a file that only this user can read, and not to the screen.
    script = local.root / "environment"
    script.touch(0o600)
    lines = [f"export {name}={shlex.quote(value)}" for name, value in local.environment.items()]
    script.write_text("\n".join(lines) + "\n")
    print(f"\nIn another terminal:\n\n    . {script}\n    python\n")
    print(
        f"    ClusterLocation({records_url!r}, {blobs_url!r})\n\nCtrl-C stops the servers.",
        flush=True,
    )
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    signal.sigwait(ends)
    print()
