"""The processes of the peers, and requests to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import golang
from .peer import Reply

OURS = "aimagestore"
PEERS = (OURS, "go", "aiosqlite", "diskcache")
BACKENDS = ("asyncio", "uvloop", "trio")
CLUSTER = "cluster"
CLUSTER_PEERS = (CLUSTER, "directory")
_OURS = (OURS, CLUSTER)
_MODULES = {
    OURS: "ours",
    CLUSTER: "ours",
    "directory": "ours",
    "aiosqlite": "sqlite",
    "diskcache": "disk_cache",
}


class PeerError(Exception):
    """A peer failed to do a task."""


@dataclass(frozen=True)
class Contender:
    """One peer, on one event loop.

    :ivar label: its name in the tables
    :ivar command: the command that starts its process
    :ivar directory: the working directory of its process; ``None`` for the current one
    """

    label: str
    peer: str
    command: tuple[str, ...]
    directory: Path | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it is the library under test."""
        return self.peer in _OURS


class Worker:
    """A contender's process."""

    def __init__(self, contender: Contender, scratch: Path) -> None:
        self.contender = contender
        self._process = subprocess.Popen(
            contender.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=contender.directory,
            env=_environment(scratch),
        )

    def send(self, task: str, **arguments: Any) -> None:
        """Send the request for a task."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": task, **arguments}) + "\n")
        self._process.stdin.flush()

    def receive(self) -> Reply | None:
        """Return the answer; ``None`` if the peer does not support the task.

        :raises PeerError: when the task failed, or the process has ended
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        reply: Reply = json.loads(line) if line else {"error": "its process has ended"}
        if "error" in reply:
            raise PeerError(f"{self.contender.label}: {reply['error']}")
        return None if "unsupported" in reply else reply

    def ask(self, task: str, **arguments: Any) -> Reply | None:
        """Send a request, and return the answer, as :meth:`receive` does."""
        self.send(task, **arguments)
        return self.receive()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.kill()
        self._process.wait()


def _environment(scratch: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(scratch)}


def find(
    peers: list[str], backends: list[str], scratch: Path
) -> tuple[list[Contender], dict[str, str]]:
    """Return the contenders that can run here, and why others cannot."""
    found: list[Contender] = []
    skipped: dict[str, str] = {}
    for peer in peers:
        if peer == "go":
            skipped |= _add_go(found, scratch)
        elif peer in {"aiosqlite", "diskcache"} and find_spec(peer) is None:
            skipped[peer] = "not installed"
        else:
            loops = backends if peer in _OURS else ["asyncio"]
            for backend in loops:
                if backend != "asyncio" and find_spec(backend) is None:
                    skipped[f"{peer} ({backend})"] = "not installed"
                    continue
                label = f"{peer} {backend}" if peer in _OURS else peer
                worker = (sys.executable, "-m", "benchmarks.worker", _MODULES[peer], backend)
                found.append(Contender(label, peer, worker))
    return found, skipped


def revisions(other: Path, name: str, backends: list[str]) -> list[Contender]:
    """Make contenders of this revision of the library and another one, on each backend."""
    return [
        Contender(
            f"{label} {backend}",
            OURS,
            (sys.executable, "-m", "benchmarks.worker", _MODULES[OURS], backend),
            directory,
        )
        for backend in backends
        for label, directory in ((OURS, Path(__file__).parent.parent), (name, other))
    ]


def _add_go(found: list[Contender], scratch: Path) -> dict[str, str]:
    skipped: dict[str, str] = {}
    for generation in golang.generations():
        if missing := generation.find_missing():
            skipped[generation.label] = missing
            continue
        try:
            found.append(Contender(generation.label, "go", generation.build(scratch)))
        except subprocess.CalledProcessError as error:
            skipped[generation.label] = f"go build failed: {error.stderr}"
    return skipped
