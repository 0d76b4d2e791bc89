"""Where crashes are tried: in memory, unless the disk itself is what is tried."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support import guard
from ..support.loops import NIGHTLY

SHM = Path("/dev/shm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the long form of these tests take its time."""
    for item in items:
        if NIGHTLY and item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where it costs nothing to make things durable."""
    if not os.access(SHM, os.W_OK):
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(prefix="aimagestore-", dir=SHM))
    yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def _guard() -> None:
    """Turn the guard against blocking off: it costs a third of the time of these tests.

    They make the same calls as tests elsewhere, a hundred times each.
    """
    guard.turn_off()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What is left to the next commit is warned of thousands of times here."""
    logging.getLogger("aimagestore").setLevel(logging.ERROR)
    yield
    logging.getLogger("aimagestore").setLevel(logging.NOTSET)
