"""Many clients whose calls time out after milliseconds: no call hangs, and no change is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aimagestore import ImageStore, check

from ..peers.peer import Peer, build, image_store
from ..peers.tools import has_go
from ..support.disks import directory_in_memory
from ..support.stores import ClusterStore, is_locked, until

if TYPE_CHECKING:
    from ..cluster.servers import Servers

SECONDS = float(os.environ.get("AIMAGESTORE_STORM_SECONDS", "2"))
"""How long each storm lasts; in a longer run of CI, 30."""

TIME_LIMIT = 300 + 2 * SECONDS
"""Seconds for a whole test, with the start of the servers and the check at the end."""

CLIENTS = 16
BACKENDS = ["asyncio", "trio", "uvloop"]


@pytest.fixture
def anyio_backend() -> str:
    """The processes bring their own."""
    return "asyncio"


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory in memory, where there is one."""
    with directory_in_memory() as directory:
        yield directory


@pytest.fixture
def cluster(servers: Servers) -> Iterator[ClusterStore]:
    """A place of its own on the servers."""
    with servers.new_place() as place:
        store = ClusterStore(place)
        yield store
        store.close()


def storms(where: str) -> list[subprocess.Popen[bytes]]:
    """Start a process of clients for each event loop."""
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.support.storm", where, f"process{number}"),
                *(str(SECONDS), backend, str(CLIENTS), "1"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number, backend in enumerate(BACKENDS)
    ]


def ledgers_of(processes: list[subprocess.Popen[bytes]]) -> list[dict[str, Any]]:
    """Wait for processes, and return the ledgers of their clients."""
    found: list[dict[str, Any]] = []
    # All are waited for before any is checked: none is left running when another has failed.
    outputs = [process.communicate(timeout=SECONDS + 120) for process in processes]
    for process, (output, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors.decode()
        found += json.loads(output)
    return found


async def check_ledgers(store: ImageStore, ledgers: list[dict[str, Any]]) -> None:
    """Check that some calls were acknowledged, and that the store holds what they have done."""
    timeouts = sum(ledger["timeouts"] for ledger in ledgers)
    assert timeouts < sum(ledger["calls"] for ledger in ledgers)
    images = {image.id: image async for image in store.iter_images()}
    for ledger in ledgers:
        assert int(images[ledger["client"]].metadata) == ledger["counter"]
        assert set(ledger["created"]) <= images.keys()
        assert images.keys().isdisjoint(ledger["deleted"])


@pytest.mark.timeout(TIME_LIMIT)
async def test_a_storm_of_timeouts_loses_and_holds_nothing(root: Path) -> None:
    where = image_store(root)
    async with ImageStore(where):
        pass
    # containers/storage writes beside them, where it can be built.
    program = build(root) if has_go() else None
    processes = storms(str(where))
    with go_writer(root, program, processes) as written:
        ledgers = ledgers_of(processes)
    assert not is_locked(where)
    async with ImageStore(where, lock_timeout=30) as store:
        await check_ledgers(store, ledgers)
        for image_id in written:
            assert await store.exists(image_id)
        await store.collect_garbage()
    assert (await check(where)).ok


@pytest.mark.timeout(TIME_LIMIT)
async def test_a_storm_of_timeouts_on_a_cluster_loses_and_holds_nothing(
    cluster: ClusterStore,
) -> None:
    processes = storms(f"{cluster.place.records_url} {cluster.place.blobs_url}")
    ledgers = ledgers_of(processes)
    # The server ends the sessions that the processes have left.
    await until(lambda: not cluster.is_locked() and not cluster.open_handles())
    async with ImageStore(cluster.location, lock_timeout=30) as store:
        await check_ledgers(store, ledgers)
    assert (await check(cluster.location)).ok


@contextmanager
def go_writer(
    root: Path, program: Path | None, processes: list[subprocess.Popen[bytes]]
) -> Iterator[list[str]]:
    """Create images with containers/storage while processes run; yield the images' IDs.

    :param program: the peer; without one nothing is created
    """
    written: list[str] = []
    if program is None:
        yield written
        return
    peer = Peer(program)

    def write() -> None:
        while any(process.poll() is None for process in processes):
            image_id = f"{len(written):064x}"
            peer.ask("create", root, id=image_id, names=[], metadata="")
            written.append(image_id)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield written
    finally:
        thread.join(SECONDS + 60)
        peer.close()
    assert written
