"""Uploads hold a bounded amount of memory, however many there are."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from ..support.stores import becomes_true

if TYPE_CHECKING:
    from aimagestore.cluster._memory import Budget

    from .servers import Place

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("way", "stores"),
    [
        pytest.param("tasks", 1, marks=pytest.mark.thorough),
        ("tasks", 32),
        pytest.param("turn", 1, marks=pytest.mark.thorough),
    ],
)
def test_32_uploads_hold_at_most_64_mib(place: Place, way: str, stores: int) -> None:
    """A usual run leaves out the easier case, in which one store makes all uploads."""
    command = [sys.executable, "-m", "tests.cluster.uploads", "asyncio"]
    run = subprocess.run(
        [*command, place.records_url, place.blobs_url, way, str(stores)],
        # Otherwise the C library keeps freed memory for each thread.
        env=os.environ | {"MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) <= 64 * MIB


@pytest.fixture
def budget() -> Budget:
    """A budget of 10 bytes, of which 8 are in use."""
    pytest.importorskip("obstore")
    from aimagestore.cluster._memory import Budget

    budget = Budget(10)
    budget.acquire(8, 20, lambda: True)
    return budget


class Waiting:
    """A thread that acquires 3 bytes.

    :ivar has_it: whether it got them, or ``None`` while it waits
    """

    def __init__(
        self, budget: Budget, deadline: float = 20, is_wanted: Callable[[], bool] = lambda: True
    ) -> None:
        self.has_it: bool | None = None
        self._thread = threading.Thread(target=self._acquire, args=(budget, deadline, is_wanted))
        self._thread.start()

    def _acquire(self, budget: Budget, deadline: float, is_wanted: Callable[[], bool]) -> None:
        try:
            budget.acquire(3, deadline, is_wanted)
        except TimeoutError:
            self.has_it = False
        else:
            self.has_it = True

    def result(self) -> bool | None:
        self._thread.join(20)
        return self.has_it


def test_a_request_over_the_budget_waits_until_enough_is_released(budget: Budget) -> None:
    budget.acquire(2, 20, lambda: True)
    waiting = Waiting(budget)
    budget.release(2, has_arrived=True)
    time.sleep(0.02)
    assert waiting.has_it is None
    budget.release(8, has_arrived=True)
    assert waiting.result() is True


def test_a_wait_ends_when_it_is_not_wanted_any_more(budget: Budget) -> None:
    left = threading.Event()
    waiting = Waiting(budget, is_wanted=lambda: not left.is_set())
    left.set()
    budget.wake()
    assert waiting.result() is False


def test_a_wait_goes_on_as_long_as_others_make_progress(budget: Budget) -> None:
    began = time.monotonic()
    waiting = Waiting(budget, deadline=0.4)
    while time.monotonic() < began + 1:
        time.sleep(0.05)
        budget.acquire(1, 20, lambda: True)
        budget.release(1, has_arrived=True)
    assert waiting.has_it is None
    while waiting.has_it is None:
        budget.acquire(1, 20, lambda: True)
        budget.release(1, has_arrived=False)
    assert waiting.result() is False


def test_a_request_larger_than_the_budget_is_granted_alone(budget: Budget) -> None:
    waiting = threading.Thread(target=budget.acquire, args=(100, 20, lambda: True))
    waiting.start()
    budget.release(8, has_arrived=True)
    assert becomes_true(lambda: not waiting.is_alive())
