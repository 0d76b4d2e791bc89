"""podman and buildah that are killed during a change leave a store that can be repaired."""

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

MOMENTS = 200 if NIGHTLY else 6
"""At how many moments a thorough run kills a command; at night, more than it has renames."""

pytestmark = [
    pytest.mark.peers,
    # A kill takes 1 to 4 seconds with the repair, and the commands of podman that follow it.
    pytest.mark.timeout(300 + 10 * MOMENTS),
    # These are tests of what other programs leave, which does not depend on the event loop.
    pytest.mark.parametrize("anyio_backend", EVERY_LOOP[:1]),
]


def moments(*, whole: bool) -> int:
    """Return at how many moments a command is killed."""
    return MOMENTS if whole or NIGHTLY else 2


NAME = "localhost/new:1"
KEPT = "localhost/kept:1"
RENAMES = "rename,renameat,renameat2"
PAUSE = 5_000
"""Microseconds by which each rename is delayed, so that the kill comes before it."""

GARBAGE = frozenset({Kind.DIRECTORY_ORPHANED, Kind.ITEM_UNLISTED, Kind.TEMPORARY_STALE})
"""The kinds of findings that garbage collection removes."""


def make_victim(tools: Tools) -> None:
    """Make a store with an image, and the files that the commands read."""
    tools.commit(KEPT, "kept")
    source = Tools(tools.root / "source")
    source.commit(NAME, "new")
    archive = f"oci-archive:{tools.root / 'archive'}:{NAME}"
    run("skopeo", "copy", "--quiet", f"{source.reference}{NAME}", archive)
    context = tools.root / "context"
    context.mkdir()
    for file in ("first", "second"):
        (context / file).touch()
    # Each step makes an image. Without RUN, no container has to run.
    (context / "Containerfile").write_text("FROM scratch\nCOPY first /\nCOPY second /\n")


class Victim:
    """A store, and a command that is killed while it changes the store."""

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

    def kill_after(self, seconds: float) -> None:
        """Run the command, and kill it and its children after some seconds."""
        with self.start() as process:
            time.sleep(seconds)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def kill_at_rename(self, number: int | None) -> int:
        """Run the command, kill it before this rename, and return how many it has begun.

        :param number: the first is 1; if there are fewer, or with ``None``, the command completes
        """
        # Not with strace's own `when`, which counts the renames of each thread separately.
        pause = f"inject={RENAMES}:delay_enter={PAUSE}"
        strace = ("strace", "--seccomp-bpf", "-f", "-qq", "-e", f"trace={RENAMES}", "-e", pause)
        seen, begun = b"", 0
        with self.start(*strace, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            # strace prints a rename before the pause, and its result after it.
            while part := os.read(process.stderr.fileno(), 65536):
                seen += part
                begun = len(re.findall(rb"rename\w*\(", seen))
                if number is not None and begun >= number:
                    os.killpg(process.pid, signal.SIGKILL)
        return begun

    async def check_store(self) -> None:
        """Check that a repair works, and that podman can list and prune what is left."""
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
"""A usual run kills only the first and the third at random moments."""


@pytest.fixture
def tools(short_path: Path, prepared: PreparedStores) -> Tools:
    """The tools, with the store and the files that the commands read."""
    require("podman", "buildah", "skopeo")
    return prepared.copy(make_victim, short_path)


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        *((name, False) for name in COMMANDS[::2]),
        *(pytest.param(name, True, marks=pytest.mark.thorough) for name in COMMANDS),
    ],
)
async def test_a_store_is_usable_after_a_kill_at_a_random_moment(
    tools: Tools, name: str, *, whole: bool
) -> None:
    victim = Victim(tools, name)
    start = time.monotonic()
    assert victim.start().wait() == 0
    duration = time.monotonic() - start
    await victim.check_store()
    chance = random.Random(name)
    for _ in range(moments(whole=whole)):
        victim.kill_after(chance.uniform(0, duration))
        await victim.check_store()


@pytest.mark.parametrize("whole", EXTENTS)
@pytest.mark.parametrize("name", COMMANDS)
async def test_a_store_is_usable_after_a_kill_at_a_rename(
    tools: Tools, name: str, *, whole: bool
) -> None:
    """A usual run tries the first rename, one in the middle and the last."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace: apt-get install strace")
    victim = Victim(tools, name)
    renames = victim.kill_at_rename(None)
    await victim.check_store()
    assert renames
    gaps = min(moments(whole=whole), renames - 1)
    for number in sorted({1, *(1 + (renames - 1) * gap // gaps for gap in range(1, gaps + 1))}):
        victim.kill_at_rename(number)
        await victim.check_store()
