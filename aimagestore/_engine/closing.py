"""Closing what a call in another thread may still use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class LastUse:
    """Tells who closes a resource: whoever closes it, or the call that still uses it then.

    A task that was cancelled leaves its thread in a call. If the resource was closed during the
    call, the number of its descriptor could be reused under the call's hands.

    :ivar is_over: whether it was asked for that the resource be closed
    """

    def __init__(self) -> None:
        # Held while the resource is used.
        self._mutex = threading.Lock()
        self.is_over = False

    @contextmanager
    def in_use(self, close: Callable[[], object]) -> Iterator[None]:
        """Use the resource in a block, alone; at its end, close it if that was asked for.

        :param close: closes the resource; may be called again
        """
        try:
            with self._mutex:
                yield
        finally:
            self._close_if_unused(close)

    def end(self, close: Callable[[], object]) -> None:
        """Close the resource, or leave that to the block that uses it. Does not block.

        :param close: as for :meth:`in_use`
        """
        self.is_over = True
        self._close_if_unused(close)

    def is_unused(self) -> bool:
        """Return whether no block uses the resource at this moment."""
        return not self._mutex.locked()

    def _close_if_unused(self, close: Callable[[], object]) -> None:
        # Each side calls this after its own step, so the later one finds the mutex free.
        if self.is_over and self._mutex.acquire(blocking=False):
            try:
                close()
            finally:
                self._mutex.release()
