"""Processes on several machines change one store at the same time."""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import ExitStack
from itertools import chain, cycle
from typing import TYPE_CHECKING

import pytest

from aimagestore import ImageStore

from ..peers.peer import Running, running
from ..peers.reports import check_data, check_freshness, check_images
from ..peers.worker import COUNTER, SHARED, content
from .machines import Network, network
from .proxy import Proxy

if TYPE_CHECKING:
    from .servers import Place, Servers

SECONDS = float(os.environ.get("AIMAGESTORE_SECONDS", "3"))
"""How long the workers change the store."""

MACHINES = 4
BACKENDS = ("asyncio", "trio")


@pytest.fixture
def anyio_backend() -> str:
    """The workers bring their own."""
    return "asyncio"


@pytest.mark.timeout(120 + 2 * SECONDS)
async def test_no_update_is_lost_and_every_read_is_fresh(
    servers: Servers, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ImageStore(place.location()) as store:
        for image_id in (SHARED, COUNTER):
            metadata = json.dumps({"count": 0})
            await store.create(image_id, metadata=metadata, big_data=content(image_id))
    with ExitStack() as stack:
        net = stack.enter_context(network(MACHINES))
        # The servers accept connections from this machine only, so the others use proxies on it.
        bridge = (net.host, 0)
        to_postgres, to_objects = (
            stack.enter_context(Proxy(port, socket.create_server(bridge)))
            for port in (servers.postgres.port, servers.objects.port)
        )
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{net.host}:{to_objects.port}")
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        there = servers.by_way_of(place, to_postgres.port, net.host)
        workers = _start(stack, net, there)
        for worker in workers:
            assert worker.read_line() == '"ready"'
        for worker in workers:
            worker.go_on()
        lines = [json.loads(worker.read_line()) for worker in workers]
        for worker in workers:
            worker.go_on()
        lists = [json.loads(worker.read_line()) for worker in workers]
    monkeypatch.setenv("AWS_ENDPOINT_URL", servers.objects.endpoint)
    reports = list(chain.from_iterable(lines))
    async with ImageStore(place.location(), read_only=True) as store:
        images = {image.id: image for image in await store.images()}
        check_images(images, reports)
        await check_data(store, images.values(), reports)
    check_freshness(reports)
    assert all(listed == list(images) for listed in lists), "all see the same in the end"
    for report in reports:
        assert report["operations"] > SECONDS, f"{report['worker']} starved"


def _start(stack: ExitStack, net: Network, place: Place) -> list[Running]:
    """Start one worker for each event loop on each machine."""
    module = (sys.executable, "-m", "tests.cluster.worker")
    machines = [machine for machine in net.machines for _ in BACKENDS]
    return [
        stack.enter_context(
            running(
                *machine, *module, backend, place.records_url, place.blobs_url, f"{number}", SECONDS
            )
        )
        for number, (machine, backend) in enumerate(zip(machines, cycle(BACKENDS), strict=False))
    ]
