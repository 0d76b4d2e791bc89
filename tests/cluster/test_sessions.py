"""Deadlines of sessions, where the process is at its limits."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

pytest.importorskip("psycopg")

from aimagestore.cluster._sessions import Watchdog


class Watched:
    """Stands for a session: notes when it is shut down."""

    def __init__(self) -> None:
        self.is_shut_down = threading.Event()

    def _shut_down(self) -> None:
        self.is_shut_down.set()


def test_deadlines_are_enforced_again_when_the_process_has_threads_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aimagestore.cluster._sessions._IDLE", 0.01)
    watchdog = Watchdog()
    first: Any = Watched()
    second: Any = Watched()

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="new thread"):
            watchdog.watch(first, time.monotonic())
    watchdog.watch(second, time.monotonic())
    assert second.is_shut_down.wait(20)
    assert not first.is_shut_down.is_set()
