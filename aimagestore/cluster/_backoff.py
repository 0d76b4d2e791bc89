"""Exponential backoff between retries, up to a deadline."""

from __future__ import annotations

import threading
import time

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5


class Backoff:
    """Pauses between retries, each twice as long as the one before.

    :param until: the deadline, by the clock of :func:`time.monotonic`
    :param closing: set when the store is closed, which ends the retries
    """

    def __init__(self, until: float, closing: threading.Event | None = None) -> None:
        self._until = until
        self._closing = closing or threading.Event()
        # The first retry comes at once: a session that was idle may have been lost long ago.
        self._pause = 0.0

    def wait(self) -> bool:
        """Pause; return ``False`` at once when the deadline would pass or the store is closing."""
        if time.monotonic() + self._pause > self._until or self._closing.wait(self._pause):
            return False
        self._pause = min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)
        return True
