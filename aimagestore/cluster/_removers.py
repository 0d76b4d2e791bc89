"""Removes objects that are not needed, in threads of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from .._engine.workers import WorkerPool
from ._upload import MOMENT

_THREADS = 2


class Removers:
    """Threads that remove objects. When a program ends, so do they; garbage is collected later."""

    def __init__(self) -> None:
        self._pool = WorkerPool(_THREADS, "aimagestore remover")
        # The last removal that took longer than its caller waited.
        self._late: Future[None] | None = None

    def remove(self, removal: Callable[[], None], *, waits: bool) -> None:
        """Begin a removal.

        While the object store does not answer, only the first of many calls waits.

        :param waits: whether to wait for it, for :data:`MOMENT` at most
        """
        late = self._late
        with suppress(RuntimeError):  # the store has been closed
            future = self._pool.submit(removal)
            if waits and (late is None or late.done()):
                try:
                    future.result(MOMENT)
                except TimeoutError:
                    self._late = future

    def shutdown(self) -> None:
        """Begin no more removals."""
        self._pool.shutdown()
