"""Closing what a call in another thread may still use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class LastUse:
    """Decides who closes a resource: the call that ends its use, or a call that still uses it then.

    A task that was cancelled leaves its thread in a call. If the resource were closed meanwhile,
    the call could go on with another file that has the same descriptor.

    :ivar is_over: whether the resource was closed, or will be at the end of the present use
    """

    def __init__(self) -> None:
        # Held while the resource is used.
        self._mutex = threading.Lock()
        self.is_over = False

    @contextmanager
    def in_use(self, close: Callable[[], object]) -> Iterator[None]:
        """Use the resource in a block, alone. If :meth:`end` was called, close it after the block.

        Waits for another block to end.

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
