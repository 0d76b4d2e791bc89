"""Digests of streams, computed in another thread than the one that moves the data."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from contextlib import suppress

from .._core.digest import CANONICAL, digest_of, hasher

WORTH_HELP = 64 * 1024
"""The number of bytes from which on a helper thread saves time."""


class Digester:
    """Takes pieces in order, and digests each while the next one is on its way.

    No more than one piece is ever waiting, so memory stays flat.
    """

    def __init__(self, helpers: Executor, digest: str = CANONICAL) -> None:
        self._helpers = helpers
        self._hash = hasher(digest)
        self._pending: Future[None] | None = None

    def add(self, piece: bytes | memoryview) -> None:
        """Add a piece, which must not change before the next :meth:`add` or :meth:`finish`."""
        self.finish()
        if len(piece) >= WORTH_HELP:
            with suppress(RuntimeError):  # the helpers were shut down, or no thread can start
                self._pending = self._helpers.submit(self._hash.update, piece)
                return
        self._hash.update(piece)

    def finish(self) -> None:
        """Wait until everything that was added is digested."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    @property
    def digest(self) -> str:
        """The digest of everything that was added. Call :meth:`finish` first."""
        return digest_of(self._hash)
