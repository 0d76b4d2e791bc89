"""How long what has failed for want of a server is tried again."""

from __future__ import annotations

import threading
import time

PATIENCE = 10.0
"""Seconds: a restart or a failover takes less, and nobody wants to wait longer for an error."""

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5


class Patience:
    """Pauses between tries, longer each time, until it is over.

    :param closing: set when the store is closed, which ends the patience of its calls
    """

    def __init__(self, closing: threading.Event | None = None) -> None:
        self._closing = closing or threading.Event()
        self._until = time.monotonic() + PATIENCE
        self._pause = 0.0

    def wait(self) -> bool:
        """Pause, if not before the first further try; ``False`` when it is over."""
        if time.monotonic() + self._pause > self._until or self._closing.wait(self._pause):
            return False
        self._pause = min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)
        return True
