"""Memory for data that is being sent to object stores: one budget for all stores of a process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from ._blobs import PART


class Budget:
    """A limit on the bytes that are sent at once; a call that needs more waits.

    Sending depends on object stores only, so every call gets its memory in the end.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget the calls that have memory or wait for it."""
        # Guards what follows; held for a few instructions only.
        self._changed = threading.Condition()
        self._used = 0
        self._arrivals = 0

    def acquire(self, size: int, deadline: float, is_wanted: Callable[[], bool]) -> None:
        """Wait for memory; :meth:`release` must follow.

        :param size: bytes; more than the whole budget are sent when nothing else is
        :param deadline: seconds within which one of the others must have arrived
        :param is_wanted: whether to go on waiting; asked again after each :meth:`wake`
        :raises TimeoutError: when none has arrived in that time, or the wait is not wanted any more
        """
        with self._changed:
            arrivals, until = self._arrivals, time.monotonic() + deadline
            while self._used and self._used + size > self._total:
                rest = until - time.monotonic()
                if not is_wanted() or rest <= 0:
                    raise TimeoutError
                self._changed.wait(rest)
                if self._arrivals != arrivals:
                    arrivals, until = self._arrivals, time.monotonic() + deadline
            self._used += size

    def release(self, size: int, *, has_arrived: bool) -> None:
        """Give memory back.

        :param has_arrived: whether its data has arrived; that renews the deadline of those who wait
        """
        with self._changed:
            self._used -= size
            self._arrivals += has_arrived
            self._changed.notify_all()

    def wake(self) -> None:
        """Make every call that waits ask again whether it is to."""
        with self._changed:
            self._changed.notify_all()


budget = Budget(3 * (PART + 1))
"""The budget of this process."""

# A forked child has none of its parent's uploads.
os.register_at_fork(after_in_child=budget.begin_anew)
