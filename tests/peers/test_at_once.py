"""Processes of this library and of containers/storage change one store at the same time."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import anyio
import pytest

from aimagestore import ImageStore, check

from ..support.podman import without_podman
from .peer import Peer, running
from .reports import check_data, check_freshness, check_images
from .tools import Tools, require
from .twins import records_of
from .worker import COUNTER, SHARED, content

pytestmark = pytest.mark.peers

SECONDS = float(os.environ.get("AIMAGESTORE_SECONDS", "2"))
"""How long the workers change the store; 60 is thorough."""

WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture
def anyio_backend() -> str:
    """One loop here: the worker processes run on both."""
    return "asyncio"


class Repeated(threading.Thread):
    """Runs a command repeatedly, and keeps its failure."""

    def __init__(self, command: Callable[[], object]) -> None:
        super().__init__()
        self._command = command
        self._is_over = threading.Event()
        self.runs = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Run it once, and again until it fails or :meth:`stop` is called."""
        while self.failure is None:
            try:
                self._command()
            except BaseException as error:
                self.failure = error
            self.runs += 1
            if self._is_over.is_set():
                break

    def stop(self) -> None:
        """Wait for the current run, and start no other."""
        self._is_over.set()
        self.join()


@pytest.mark.timeout(600 + 10 * SECONDS)
async def test_nothing_is_lost(program: Path, peer: Peer, short_path: Path) -> None:
    """Images are created and deleted, while containers-storage lists them and a check runs."""
    require("containers-storage", "podman")
    tools = Tools(short_path)

    def look() -> None:
        tools.containers_storage("images")
        # A Go worker stores the manifest before the config. For podman, that is damage.
        assert without_podman(anyio.run(check, tools.image_store)).findings == ()

    await _work(program, peer, tools, "churn", look)


@pytest.mark.timeout(600 + 10 * SECONDS)
async def test_podman_never_fails(program: Path, peer: Peer, short_path: Path) -> None:
    """Images change but stay: podman 4 fails if any program deletes one while it lists them."""
    require("podman")
    tools = Tools(short_path)
    await _work(program, peer, tools, "steady", lambda: tools.podman("images"))


async def _work(
    program: Path, peer: Peer, tools: Tools, mode: str, look: Callable[[], object]
) -> None:
    path = tools.image_store
    for image_id in (SHARED, COUNTER):
        metadata = json.dumps({"count": 0})
        items = content(image_id)
        peer.ask("create", tools.root, id=image_id, metadata=metadata, big_data=items)
    await anyio.to_thread.run_sync(look)
    with ExitStack() as stack:
        commands: list[tuple[object, ...]] = [
            *((sys.executable, WORKER, "asyncio", path, f"asyncio{n}") for n in range(2)),
            (sys.executable, WORKER, "trio", path, "trio0"),
            *((program, "change", tools.root, f"go{n}") for n in range(2)),
        ]
        workers = [stack.enter_context(running(*command, SECONDS, mode)) for command in commands]
        for worker in workers:
            assert worker.read_line() == '"ready"'
        looks = Repeated(look)
        looks.start()
        stack.callback(looks.stop)
        for worker in workers:
            worker.go_on()
        answers = [json.loads(worker.read_line()) for worker in workers]
        looks.stop()
        for worker in workers:
            worker.go_on()
        lists = [json.loads(worker.read_line()) for worker in workers]
    reports = list(chain.from_iterable(r if isinstance(r, list) else [r] for r in answers))
    if looks.failure is not None:
        raise looks.failure
    async with ImageStore(path) as store:
        images = {image.id: image for image in await store.images()}
        check_images(images, reports)
        await check_data(store, images.values(), reports)
    check_freshness([report for report in reports if "looks" in report])
    for report in reports:
        assert report["operations"], f"{report['worker']} starved"
    assert all(listed == list(images) for listed in lists)
    assert [image["id"] for image in peer.ask("images", tools.root)] == list(images)
    assert tools.names().keys() == images.keys()
    directories = {entry.name for entry in path.iterdir()} - {"images.json", "images.lock"}
    assert directories == images.keys(), "a directory has no record"
    assert len(records_of(path)) == len(images)
    print({report["worker"]: report["operations"] for report in reports}, looks.runs)
