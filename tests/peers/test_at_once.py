"""Processes of every kind that change one store at the same time."""

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
from .peer import Peer, Running, running
from .reports import check_data, check_freshness, check_images
from .tools import Tools, require
from .twins import records_of
from .worker import COUNTER, SHARED, content

pytestmark = pytest.mark.peers

SECONDS = float(os.environ.get("AIMAGESTORE_SECONDS", "2"))
"""How long; 60 to be thorough."""

WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture
def anyio_backend() -> str:
    """The workers bring their own."""
    return "asyncio"


class Repeated(threading.Thread):
    """Runs a command again and again."""

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
        """Let the last run end."""
        self._is_over.set()
        self.join()


@pytest.mark.timeout(600 + 10 * SECONDS)
async def test_nothing_is_lost(program: Path, peer: Peer, short_path: Path) -> None:
    """Images come and go; containers-storage lists them meanwhile, and a check finds no damage."""
    require("containers-storage", "podman")
    tools = Tools(short_path)

    def look() -> None:
        tools.containers_storage("images")
        # A manifest is there before its config is, for podman to stumble over.
        assert without_podman(anyio.run(check, tools.image_store)).findings == ()

    await _work(program, peer, tools, "churn", look)


@pytest.mark.timeout(600 + 10 * SECONDS)
async def test_podman_never_fails(program: Path, peer: Peer, short_path: Path) -> None:
    """Images change but stay: podman 4 fails when one goes while it lists them, whoever did it."""
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
        workers = [
            *_python_workers(stack, path, "asyncio", 2, mode),
            *_python_workers(stack, path, "trio", 1, mode),
            *_go_workers(stack, program, tools.root, 2, mode),
        ]
        for worker in workers:
            assert worker.read_line() == '"ready"'
        looking = Repeated(look)
        looking.start()
        stack.callback(looking.stop)
        for worker in workers:
            worker.go_on()
        answers = [json.loads(worker.read_line()) for worker in workers]
        looking.stop()
        for worker in workers:
            worker.go_on()
        lists = [json.loads(worker.read_line()) for worker in workers]
    reports = list(chain.from_iterable(r if isinstance(r, list) else [r] for r in answers))
    if looking.failure is not None:
        raise looking.failure
    assert looking.runs
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
    assert directories == images.keys(), "nothing is left over"
    assert len(records_of(path)) == len(images)
    print({report["worker"]: report["operations"] for report in reports}, looking.runs)


def _python_workers(
    stack: ExitStack, path: Path, backend: str, number: int, mode: str
) -> list[Running]:
    return [
        stack.enter_context(
            running(sys.executable, WORKER, backend, path, f"{backend}{n}", SECONDS, mode)
        )
        for n in range(number)
    ]


def _go_workers(
    stack: ExitStack, program: Path, root: Path, number: int, mode: str
) -> list[Running]:
    return [
        stack.enter_context(running(program, "change", root, f"go{n}", SECONDS, mode))
        for n in range(number)
    ]
