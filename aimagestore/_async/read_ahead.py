"""Pieces of an item that a worker thread reads before they are asked for."""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from anyio import Event
from anyio.lowlevel import checkpoint

from .._engine.items import CHUNK, Source
from ..errors import StoreClosedError
from .threads import InTurn, Threads

T = TypeVar("T")

PIECES = 2
"""The number of pieces that are read ahead."""


class ReadAhead(io.BufferedIOBase):
    """Reads an item ahead, if it is read from start to end.

    Waking a thread and then the event loop takes as long as reading some MiB. So from the second
    :meth:`read1` on, a thread reads until there are :data:`PIECES`, and the task that asks for the
    next one seldom waits.

    :meth:`read1` never blocks; it is called in the event loop, by :meth:`run_in_executor`. The
    other methods block, and are called by :attr:`calls` in worker threads.

    :ivar piece_size: the number of bytes that are read at a time
    :ivar calls: makes the calls of the methods that block
    """

    piece_size = CHUNK

    def __init__(self, source: Source, threads: Threads) -> None:
        self._source = source
        self._threads = threads
        self.calls = InTurn(threads)
        # Held while the source is read, so that each read gets what follows the one before.
        self._turn = threading.Lock()
        # Guards what follows; held for a few instructions.
        self._mutex = threading.Lock()
        # An empty piece stands for the end, an exception for a read that has failed.
        self._pieces: deque[bytes | BaseException] = deque()
        # The number of bytes of the first piece that were returned already.
        self._returned = 0
        self._is_reading = False
        self._is_sequential = False
        # Set when there is a piece.
        self._added: Event | None = None

    def readable(self) -> bool:
        return True

    async def run_in_executor(self, executor: object, function: Callable[[], T]) -> T:
        """Call :meth:`read1` when there is a piece. aiofiles takes this object for its event loop.

        If interrupted, this returns at once, and the piece stays for the next call.
        """
        await self.calls.wait()
        if self._pieces:
            await checkpoint()
        is_sequential = self._is_sequential
        while True:
            while (added := self._event_unless_piece()) is not None:
                self._begin_reading()
                await added.wait()
            with suppress(BlockingIOError):  # a read in a thread has taken the piece meanwhile
                data = function()
                break
        # A thread that stops reading says so before its last piece is taken: no mutex is needed.
        if is_sequential and data and not self._is_reading:
            with suppress(StoreClosedError, RuntimeError):  # this call has what it was to read
                self._begin_reading()
        return data

    def _event_unless_piece(self) -> Event | None:
        """Return what is set when there is a piece; ``None`` if there is one."""
        with self._mutex:
            if self._pieces:
                return None
            if self._added is None:
                self._added = Event()
            return self._added

    def _begin_reading(self) -> None:
        """Have a thread read pieces, if there are too few."""
        with self._mutex:
            if self._is_reading or not self._is_wanting():
                return
            self._is_reading = True
        try:
            self._threads.start_streaming(self._read_pieces)
        except BaseException:
            self._is_reading = False
            raise

    def _is_wanting(self) -> bool:
        """Return whether another piece is to be read. Called with the mutex held."""
        if not self._pieces:
            return True
        last = self._pieces[-1]
        # Nothing follows the end, or an error.
        is_over = isinstance(last, BaseException) or not last
        return self._is_sequential and len(self._pieces) < PIECES and not is_over

    def _read_pieces(self) -> None:
        """Read pieces until there are enough."""
        with self._turn:
            while self._is_reading:
                piece: bytes | BaseException
                try:
                    piece = self._source.read(self.piece_size)
                except BaseException as error:  # noqa: BLE001 (read1 raises it)
                    piece = error
                with self._mutex:
                    self._pieces.append(piece)
                    self._is_reading = self._is_wanting()
                    added, self._added = self._added, None
                del piece  # frees it as soon as the task does
                if added is not None:
                    self._threads.loop.post(added.set)

    def read1(self, size: int = -1) -> bytes:
        """Return some bytes, at most this number; none at the end.

        :raises BlockingIOError: when there is no piece
        :raises BaseException: what reading the next piece has raised
        """
        with self._mutex:
            piece = self._take(size)
            self._is_sequential = True
        if isinstance(piece, BaseException):
            raise piece
        return piece

    def _take(self, size: int) -> bytes | BaseException:
        """Remove the next bytes, at most this number, or an exception, from the pieces."""
        if not self._pieces:
            raise BlockingIOError
        piece = self._pieces[0]
        if isinstance(piece, bytes):
            start, end = self._returned, self._returned + size
            if start < end < len(piece):
                self._returned = end
                return piece[start:end]
            piece = piece[start:]
        self._returned = 0
        self._pieces.popleft()
        return piece

    def read(self, size: int | None = -1) -> bytes:
        """Return up to this number of bytes; all of the rest if it is negative or ``None``.

        Raises as :meth:`Source.read` does.
        """
        missing = self._source.size if size is None or size < 0 else size
        with self._turn:
            with self._mutex:
                kept = self._pieces.copy(), self._returned
                pieces = []
                while missing and self._pieces:
                    piece = self._take(missing)
                    # An error is raised by the read that follows.
                    if isinstance(piece, bytes):
                        pieces.append(piece)
                        missing -= len(piece)
            if missing or not pieces:
                try:
                    pieces.append(self._source.read(missing))
                except BaseException:
                    with self._mutex:
                        self._pieces, self._returned = kept
                    raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, and return it. Raises as :meth:`Source.seek` does."""
        with self._turn:
            position = self._source.seek(offset, whence)
            with self._mutex:
                self._pieces.clear()
                self._returned = 0
                self._is_sequential = False
        return position
