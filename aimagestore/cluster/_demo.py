"""Start PostgreSQL and SeaweedFS on this machine, and demonstrate a cluster's store."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress

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

# The signals that end the demo.
_ENDS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


@contextmanager
def _timed(step: str) -> Iterator[None]:
    print(f"{step} ...", end=" ", flush=True)
    start = time.perf_counter()
    yield
    print(f"{time.perf_counter() - start:.3f} s", flush=True)


async def demonstrate(local: LocalCluster, location: ClusterLocation) -> None:
    """Use one store from two sides, as two machines would."""
    async with ImageStore(location) as here, ImageStore(location) as there:
        with _timed("create an image with its manifest and config, in one commit"):
            image = await here.create(names=[_NAME], big_data={"manifest": b"{}", "config": b"{}"})
        with _timed("find it by its name, in the next call of another store"):
            assert (await there.get(_NAME)).id == image.id
        with _timed("find it by its digest there"):
            assert [found.id for found in await there.by_digest(image.digest)] == [image.id]
        with _timed(f"stream {_CHUNKS} MiB in, from an async iterator"):
            await here.set_big_data(image.id, "layer", _chunks())
        with _timed(f"stream {_CHUNKS} MiB out there, and verify the digest"):
            async with there.open_big_data(image.id, "layer", verify=True) as reader:
                size = sum([len(chunk) async for chunk in reader])
            assert size == _CHUNKS * len(_CHUNK)
        with _timed("create 200 images in 200 tasks, each durable when its call returns"):
            async with anyio.create_task_group() as tasks:
                for _ in range(200):
                    tasks.start_soon(here.create)
        with _timed("move a name to another image, in one commit"):
            moved = await there.create()
            await there.add_names(moved.id, [_NAME])
            assert (await here.get(_NAME)).id == moved.id
        with _timed("kill PostgreSQL and start it again"):
            await anyio.to_thread.run_sync(_crash, local)
        with _timed("read all images in both: nothing is lost"):
            assert len(await here.images()) == len(await there.images()) == 202
        with _timed("collect garbage"):
            await here.collect_garbage()


async def _chunks() -> AsyncIterator[bytes]:
    for _ in range(_CHUNKS):
        yield _CHUNK


def _crash(local: LocalCluster) -> None:
    local.postgres.kill()
    local.postgres.start()


class _Demo:
    """Everything that the demo does, in a thread of its own.

    The main thread only waits for the end of this or for a signal, and then removes everything. So
    a signal may come at any moment.

    :ivar is_kept: whether the demo is complete, and the servers are to be kept
    :ivar error: what the demo raised
    """

    def __init__(self, local: LocalCluster, backend: str, *, keep: bool) -> None:
        self._local = local
        self._backend = backend
        self._keep = keep
        self.is_kept = False
        self.error: BaseException | None = None

    def run(self, ended: Callable[[], object]) -> None:
        """Run the demo; call ``ended`` unless the servers are to be kept."""
        try:
            self._run()
        except BaseException as error:  # noqa: BLE001 (the main thread raises it)
            self.error = error
        if not self.is_kept:
            ended()

    def _run(self) -> None:
        local = self._local
        with _timed("start PostgreSQL and SeaweedFS on the loopback interface"):
            local.__enter__()
        os.environ.update(local.environment)
        local.postgres.create_database("store")
        records_url, blobs_url = local.postgres.url("store"), local.blobs_url("store")
        with _timed("create the tables"):
            migrate(records_url)
        location = ClusterLocation(records_url, blobs_url)
        anyio.run(demonstrate, local, location, backend=self._backend)
        if self._keep:
            _explain(local, records_url, blobs_url)
            self.is_kept = True


def main() -> None:
    """Run the demo; with ``--keep``, leave the servers running until interrupted."""
    # The number of each signal is written into a pipe at once, whichever thread it finds. A handler
    # in Python would not wake the main thread from a wait that it was about to begin.
    events, event = os.pipe()
    os.set_blocking(event, False)
    signal.set_wakeup_fd(event)
    for end in _ENDS:
        signal.signal(end, lambda *_: None)
    parser = argparse.ArgumentParser(prog="python -m aimagestore.cluster", description=__doc__)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--keep", action="store_true", help="keep the servers running until Ctrl-C")
    arguments = parser.parse_args()
    try:
        local = LocalCluster()
    except ServersMissingError as missing:
        parser.exit(1, f"{missing}\n")
    demo = _Demo(local, arguments.backend, keep=arguments.keep)
    try:
        threading.Thread(
            target=demo.run, args=[lambda: os.write(event, b"\0")], daemon=True
        ).start()
        number = os.read(events, 1)[0]
        is_complete = demo.is_kept or not number
        if number:
            # All errors from now on are due to the end of the servers.
            logging.disable()
    finally:
        local.close()
    if demo.error is not None and is_complete:
        raise demo.error
    # The terminal may be closed.
    with suppress(OSError):
        print("\n" * bool(number), end="")
        print("stopped the servers, and removed everything that they have written", flush=True)
    # The other thread may be at work, and hold a lock that an orderly exit would wait for.
    os._exit(0 if is_complete else 128 + number)


def _explain(local: LocalCluster, records_url: str, blobs_url: str) -> None:
    # The credentials go into a file that only this user can read, and not to the screen.
    script = local.root / "environment"
    script.touch(0o600)
    lines = [f"export {name}={shlex.quote(value)}" for name, value in local.environment.items()]
    script.write_text("\n".join(lines) + "\n")
    print("\nIn another terminal, with the same virtual environment:\n")
    print(f"    . {script}\n    python -m asyncio\n")
    print("    from aimagestore import ImageStore")
    print("    from aimagestore.cluster import ClusterLocation")
    print(f"    location = ClusterLocation({records_url!r}, {blobs_url!r})")
    print("    async with ImageStore(location) as store:")
    print("        print(len(await store.images()), 'images')")
    print(f"\nor, with the extra cli:\n\n    . {script}")
    print(f"    aimagestore --root '{records_url} {blobs_url}' images")
    print("\nCtrl-C stops the servers.", flush=True)
