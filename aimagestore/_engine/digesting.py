"""Digests of streams, computed in another thread than the one that moves the data."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Executor, Future

from .._core.digest import CANONICAL, digest_of, hasher

WORTH_HELP = 64 * 1024
"""The number of bytes from which on a helper thread saves time."""

_PIECES = 2
"""The pieces that a helper has: while it hashes one, the next is there, so that it never waits."""


class Digester:
    """Takes pieces in order, and digests them while the next ones are on their way.

    No more than two pieces are ever in its hands, so memory stays flat. One thread at a time adds
    pieces.
    """

    def __init__(self, helpers: Executor, digest: str = CANONICAL) -> None:
        self._helpers = helpers
        self._hash = hasher(digest)
        # Guards what follows; held for a few instructions.
        self._changed = threading.Condition(threading.Lock())
        # The first one is being hashed, if a helper has begun.
        self._pieces: deque[bytes | memoryview] = deque()
        self._helping: Future[None] | None = None
        # What a helper has failed with; the pieces are not digested then.
        self._failure: BaseException | None = None

    def add(self, piece: bytes | memoryview) -> None:
        """Add a piece, which must not change before :meth:`finish`, or the second next call."""
        if len(piece) < WORTH_HELP:
            self.finish()
            self._hash.update(piece)
            return
        with self._changed:
            self._wait(_PIECES - 1)
            self._pieces.append(piece)
            if self._helping is None:
                try:
                    self._helping = self._helpers.submit(self._help)
                except RuntimeError:  # the helpers were shut down, or no thread can start
                    self._hash.update(self._pieces.pop())

    def finish(self) -> None:
        """Wait until everything that was added is digested."""
        if self._pieces:  # a piece leaves only when it was digested
            with self._changed:
                self._wait(0)

    def _wait(self, pieces: int) -> None:
        """Wait until no more than this number of pieces are left. Called with the guard held."""
        while len(self._pieces) > pieces:
            if self._failure is not None:
                raise self._failure
            assert self._helping is not None, "a helper has the pieces"
            if self._helping.cancel():  # all helpers are busy
                self._helping = None
                while self._pieces:
                    self._hash.update(self._pieces.popleft())
            else:
                self._changed.wait()

    def _help(self) -> None:
        """Hash pieces until none is left, in a helper thread."""
        try:
            while (piece := self._first()) is not None:
                self._hash.update(piece)
                del piece
                with self._changed:
                    self._pieces.popleft()
                    self._changed.notify()
        except BaseException as error:  # noqa: BLE001 (whoever adds or finishes raises it)
            with self._changed:
                self._failure = error
                self._changed.notify()

    def _first(self) -> bytes | memoryview | None:
        """Return the next piece to hash; end the help if there is none."""
        with self._changed:
            if self._pieces:
                return self._pieces[0]
            self._helping = None
            return None

    @property
    def digest(self) -> str:
        """The digest of everything that was added. Call :meth:`finish` first."""
        return digest_of(self._hash)
