"""Where crashes are tried: in memory, unless the disk itself is what is tried."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support import guard
from ..support.disks import directory_in_memory
from ..support.loops import NIGHTLY


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the long form of these tests take its time."""
    for item in items:
        if NIGHTLY and item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory in memory, where it costs nothing to make things durable."""
    with directory_in_memory() as directory:
        yield directory


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
