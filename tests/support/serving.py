"""The applications of ``tests/apps`` as servers, and the image that they serve."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from aimagestore import ImageStore

from .layouts import CONFIG as CONFIG_TYPE, LAYER as LAYER_TYPE, digest_of
from .pages import ROOT

NAME = "localhost/big:1"
LAYER = random.Random(1).randbytes(5_000_000)
CONFIG = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers"}}).encode()
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "config": {
            "mediaType": CONFIG_TYPE,
            "digest": digest_of(CONFIG),
            "size": len(CONFIG),
        },
        "layers": [
            {
                "mediaType": LAYER_TYPE,
                "digest": digest_of(LAYER),
                "size": len(LAYER),
            }
        ],
    }
).encode()


async def fill(path: Path) -> None:
    """Make a store of the image."""
    async with ImageStore(path) as store:
        items = {"manifest": MANIFEST, digest_of(CONFIG): CONFIG, digest_of(LAYER): LAYER}
        await store.create(names=[NAME], big_data=items)


class Server(NamedTuple):
    """One of the applications, serving one image."""

    process: subprocess.Popen[str]
    address: str
    store: Path

    def ask(
        self, path: str, method: str = "GET", **headers: str
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """Return the response to a request, and its body."""
        connection = http.client.HTTPConnection(self.address, timeout=20)
        try:
            connection.request(method, f"/v2/{path}", headers=headers)
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def open_items(self) -> list[str]:
        """Return the paths of the items that the application has open."""
        found = []
        for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                target = os.readlink(entry)
            except FileNotFoundError:
                continue
            if f"{self.store}/" in target and "images." not in target:
                found.append(target)
        return found


@contextmanager
def serving(kind: str, store: Path) -> Iterator[Server]:
    """Run one of the applications, and end it as Ctrl-C does."""
    command = [sys.executable, "-m", f"tests.apps.serve_{kind}", str(store), "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().removeprefix("http://").removesuffix("/v2/\n")
        assert address, "it ended early"
        server = Server(process, address, store)
        until(lambda: answers(server))
        yield server
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in {0, -signal.SIGINT}
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


def answers(server: Server) -> bool:
    """Return whether an application answers requests."""
    try:
        return server.ask("")[0].status == 200
    except ConnectionError:
        return False


def until(condition: Callable[[], bool]) -> None:
    """Return when a condition is true. Blocks; for use outside the event loop."""
    for _ in range(12_000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it took too long")
