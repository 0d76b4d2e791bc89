"""Digests a stream beside the thread that moves it."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from contextlib import suppress

from .._core.digest import CANONICAL, digest_of, hasher

WORTH_HELP = 64 * 1024
"""Bytes that take longer to digest or read than to have a helper do it."""


class Digester:
    """Takes pieces in order, and digests each while the next one is on its way.

    No more than one piece is ever waiting, so memory stays flat.
    """

    def __init__(self, helpers: Executor, digest: str = CANONICAL) -> None:
        self._helpers = helpers
        self._hash = hasher(digest)
        self._pending: Future[None] | None = None

    def add(self, piece: bytes | memoryview) -> None:
        """Go on with a piece, which nobody changes before the next :meth:`finish`."""
        self.finish()
        if len(piece) >= WORTH_HELP:
            with suppress(RuntimeError):  # the store was closed under an open stream
                self._pending = self._helpers.submit(self._hash.update, piece)
                return
        self._hash.update(piece)

    def finish(self) -> None:
        """Return when everything that was added is digested."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    @property
    def digest(self) -> str:
        """The digest of what was added before the last :meth:`finish`."""
        return digest_of(self._hash)
