"""A real power cut: the disk of a busy store is cloned at one moment, and the clone is mounted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from aimagestore import ImageStore, check

from ..support.disks import unmount
from ..support.loops import NIGHTLY
from .driver import ROOT
from .model import Model
from .state import LAST, State, read_again, read_state
from .writer import history

CUTS = 50 if NIGHTLY else 8
OUTER, INNER = "1G", "320M"
MAKE = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}
OPTIONS = {"ext4": "loop", "xfs": "loop,nouuid"}


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def make_disk(image: Path, size: str, *command: str) -> None:
    with image.open("wb"):
        run("truncate", "-s", size, image)
    run(*command, image)


@contextmanager
def mounted(image: Path, where: Path, options: str) -> Iterator[None]:
    where.mkdir()
    run("mount", "-o", options, image, where)
    try:
        yield
    finally:
        unmount(where)
        where.rmdir()


@pytest.fixture(params=["ext4", "xfs"])
def disk(request: pytest.FixtureRequest, scratch: Path) -> Iterator[tuple[str, Path]]:
    """A disk image, mounted at ``live``, on a file system that clones files in one step."""
    kind: str = request.param
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a file system")
    for tool in ("mkfs.xfs", f"mkfs.{kind}"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    outer = scratch / "outer"
    image = outer / "disk"
    make_disk(scratch / "outer.img", OUTER, "mkfs.xfs", "-q", "-m", "reflink=1")
    outer.mkdir()
    try:
        run("mount", "-o", "loop", scratch / "outer.img", outer)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot mount an XFS image: {error.stderr}")
    try:
        make_disk(image, INNER, *MAKE[kind])
        try:
            with mounted(image, scratch / "live", "loop"):
                yield kind, image
        except subprocess.CalledProcessError as error:
            pytest.skip(f"{error.cmd} failed: {error.stderr}")
    finally:
        unmount(outer)


@contextmanager
def writing(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that changes the store, for the block."""
    command = [sys.executable, "-m", f"{__package__}.writer", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def states() -> Iterator[State]:
    """Yield what the store holds after 0, 1, 2, … changes."""
    model = Model()
    yield model.state()
    for change in history():
        change.to_model(model)
        yield model.state()


def test_a_clone_of_the_disk_of_a_busy_store_has_every_acknowledged_change(
    disk: tuple[str, Path], scratch: Path
) -> None:
    kind, image = disk
    acknowledged: list[int] = []
    done = 0
    with writing(scratch / "live" / "store") as process:
        assert process.stdout is not None
        for cut in range(CUTS):
            for _ in range(1 + 3 * cut):
                assert process.stdout.readline(), "the writer died"
                done += 1
            acknowledged.append(done)
            # The clone is made in one step, as a power cut at this moment would leave the disk.
            run("cp", "--reflink=always", image, image.with_name(f"cut{cut}"))
        process.kill()
        done += len(process.stdout.readlines())
    for cut, least in enumerate(acknowledged):
        with mounted(image.with_name(f"cut{cut}"), scratch / "cut", OPTIONS[kind]):
            found = anyio.run(check_cut, scratch / "cut" / "store", least, done + 1)
        print(f"{kind}: {least} acknowledged, {found} found of {done}")


async def check_cut(path: Path, least: int, most: int) -> int:
    """Check the store on a clone, and return how many changes it has."""
    before = await read_again(path)
    matching = [n for n, state in zip(range(most + 1), states(), strict=False) if state == before]
    assert [n for n in matching if n >= least], f"lost some of {least} changes"
    async with ImageStore(path) as store:
        assert await read_state(store) == before
        await store.create(LAST, big_data={"key": b"data"})
        assert {name for name in os.listdir(path) if name.startswith(".")} == set()
        await store.collect_garbage()
        assert (await check(path)).findings == ()
    return max(matching)
