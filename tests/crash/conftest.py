"""What the tests of crashes share: directories in memory, and the process that kills."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support import guard
from ..support.disks import directory_in_memory
from ..support.loops import NIGHTLY
from .driver import Driver, driver


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the nightly form of these tests no timeout."""
    for item in items:
        if NIGHTLY and item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory in memory, where syncing costs nothing."""
    with directory_in_memory() as directory:
        yield directory


@pytest.fixture(scope="module")
def killer() -> Iterator[Driver]:
    """The process that makes changes in children, and kills them."""
    with driver() as process:
        yield process


@pytest.fixture(autouse=True)
def _guard() -> None:
    """Turn off the guard against blocking the event loop: it takes a third of these tests' time.

    Tests elsewhere make the same calls under the guard.
    """
    guard.turn_off()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Silence the warnings that a change is left to be completed: there are thousands here."""
    logging.getLogger("aimagestore").setLevel(logging.ERROR)
    yield
    logging.getLogger("aimagestore").setLevel(logging.NOTSET)
