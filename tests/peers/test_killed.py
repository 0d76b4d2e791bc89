"""Programs of podman that are killed during a change leave a store that podman can use."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from aimagestore import FindingKind as Kind, ImageStore, Report, check, repair

from ..support.loops import EVERY_LOOP, EXTENTS, NIGHTLY
from . import generation
from .tools import PreparedStores, Tools, require, run

pytestmark = [
    pytest.mark.peers,
    # What is tried is what other programs leave, whatever the loop.
    pytest.mark.parametrize("anyio_backend", EVERY_LOOP[:1]),
]


def moments(*, whole: bool) -> int:
    """Return how many moments are tried of a command; at night, more than it has renames."""
    if NIGHTLY:
        return 200
    return 6 if whole else 2


NAME = "localhost/new:1"
KEPT = "localhost/kept:1"
RENAMES = "rename,renameat,renameat2"
PAUSE = 5_000
"""Microseconds before each rename, for the kill to come in time."""

GARBAGE = frozenset({Kind.DIRECTORY_ORPHANED, Kind.ITEM_UNLISTED, Kind.TEMPORARY_STALE})
"""The kinds of findings that garbage collection removes."""


def make_victim(tools: Tools) -> None:
    """Make a store with an image, and beside it what the commands need."""
    tools.commit(KEPT, "kept")
    source = Tools(tools.root / "source")
    source.commit(NAME, "new")
    archive = f"oci-archive:{tools.root / 'archive'}:{NAME}"
    run("skopeo", "copy", "--quiet", f"{source.reference}{NAME}", archive)
    context = tools.root / "context"
    context.mkdir()
    for file in ("first", "second"):
        (context / file).touch()
    # Each step is an image; without RUN it needs no container that runs.
    (context / "Containerfile").write_text("FROM scratch\nCOPY first /\nCOPY second /\n")


class Victim:
    """A store, and a command that changes it until it is killed."""

    def __init__(self, tools: Tools, name: str) -> None:
        self.tools = tools
        (self.kept,) = tools.names()
        self._archive = tools.root / "archive"
        self._container = tools.buildah("from", "scratch") if name == "commit" else ""
        self._context = tools.root / "context"
        self._parts = self._commands()[name]()

    def _commands(self) -> dict[str, Callable[[], Sequence[object]]]:
        podman = ["podman", *self.tools.where]
        return {
            "load": lambda: [*podman, "load", "--quiet", "--input", self._archive],
            "pull": lambda: [*podman, "pull", "--quiet", f"oci-archive:{self._archive}"],
            "commit": lambda: [
                *("buildah", *self.tools.where, "commit", "--quiet", self._container, NAME)
            ],
            "build": lambda: [*podman, "build", "--quiet", "--tag", NAME, self._context],
        }

    def start(self, *before: object, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Start the command."""
        return subprocess.Popen(
            [*map(str, before), *generation.command(*self._parts)],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )

    def killed_after(self, seconds: float) -> None:
        """Kill it, and what it has started."""
        with self.start() as process:
            time.sleep(seconds)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def killed_at_rename(self, number: int | None) -> int:
        """Kill it before it makes this rename, if it comes to it; return how many it has begun."""
        # strace's own `when` counts the renames of each thread for itself.
        pause = f"inject={RENAMES}:delay_enter={PAUSE}"
        strace = ("strace", "--seccomp-bpf", "-f", "-qq", "-e", f"trace={RENAMES}", "-e", pause)
        seen, begun = b"", 0
        with self.start(*strace, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            # A rename is printed before the pause, its result after it.
            while part := os.read(process.stderr.fileno(), 65536):
                seen += part
                begun = len(re.findall(rb"rename\w*\(", seen))
                if number is not None and begun >= number:
                    os.killpg(process.pid, signal.SIGKILL)
        return begun

    async def check_left(self) -> None:
        """Check that garbage is found and removed, and that podman can list and prune the rest."""
        path = self.tools.image_store
        report = await check(path)
        if not report.ok:
            await repair(path, report)
            await self._drop_what_podman_cannot_use()
        async with ImageStore(path) as store:
            await store.collect_garbage()
        assert (await check(path)).findings == ()
        names = self.tools.names()
        assert names[self.kept] == [KEPT]
        if others := names.keys() - {self.kept}:
            self.tools.podman("rmi", "--force", *others)
        self.tools.podman("image", "prune", "--force")
        assert self.tools.names() == {self.kept: [KEPT]}

    async def _drop_what_podman_cannot_use(self) -> None:
        left: Report = await check(self.tools.image_store)
        if any(finding.kind not in GARBAGE for finding in left.findings):
            await repair(self.tools.image_store, left, drop=True)


COMMANDS = ["load", "pull", "commit", "build"]
"""What is killed. A usual run kills only the first and the third at random moments."""


@pytest.fixture
def tools(short_path: Path, prepared: PreparedStores) -> Tools:
    """The store."""
    require("podman", "buildah", "skopeo")
    return prepared.copy(make_victim, short_path)


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        *((name, False) for name in COMMANDS[::2]),
        *(pytest.param(name, True, marks=pytest.mark.thorough) for name in COMMANDS),
    ],
)
async def test_killed_at_random_moments(tools: Tools, name: str, *, whole: bool) -> None:
    victim = Victim(tools, name)
    start = time.monotonic()
    assert victim.start().wait() == 0
    duration = time.monotonic() - start
    await victim.check_left()
    chance = random.Random(name)
    for _ in range(moments(whole=whole)):
        victim.killed_after(chance.uniform(0, duration))
        await victim.check_left()


@pytest.mark.parametrize("whole", EXTENTS)
@pytest.mark.parametrize("name", COMMANDS)
async def test_killed_at_renames(tools: Tools, name: str, *, whole: bool) -> None:
    """A usual run tries the first rename, one in the middle and the last."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace: apt-get install strace")
    victim = Victim(tools, name)
    renames = victim.killed_at_rename(None)
    await victim.check_left()
    assert renames
    gaps = min(moments(whole=whole), renames - 1)
    for number in sorted({1, *(1 + (renames - 1) * gap // gaps for gap in range(1, gaps + 1))}):
        victim.killed_at_rename(number)
        await victim.check_left()
