"""Checks and garbage collection while another process changes the store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimagestore import ImageStore, check

from .driver import ROOT
from .state import TWO

ROUNDS = 25


@pytest.fixture
def written(scratch: Path) -> Iterator[Path]:
    """A store that another process changes all the time, until the test ends."""
    path = scratch / "store"
    command = [sys.executable, "-m", "tests.crash.writer", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as writer:
        assert writer.stdout is not None
        for _ in range(2):  # two images, which stay
            writer.stdout.readline()
        try:
            yield path
        finally:
            assert writer.poll() is None, "the writer has failed"
            writer.kill()


async def test_a_store_that_another_process_writes_is_not_called_damaged(written: Path) -> None:
    for _ in range(ROUNDS):
        report = await check(written)
        assert report.findings == ()
        assert report.items > 0


async def test_unfinished_writes_of_other_processes_are_not_collected(written: Path) -> None:
    async with ImageStore(written) as store:
        seen = set()
        for _ in range(ROUNDS):
            assert (await store.collect_garbage()).findings == ()
            seen.add(await store.metadata(TWO))
        assert len(seen) > 1, "the other process has changed nothing meanwhile"
