"""The upload of one object."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import suppress
from tempfile import SpooledTemporaryFile
from typing import IO, Any, TypeVar
from uuid import UUID, uuid4

from .._engine.items import CHUNK
from ..errors import StoreUnavailableError
from ._blobs import FAILURES, PART, Blobs
from ._memory import budget

_SPOOLED_IN_MEMORY = 64 * 1024

MOMENT = 0.25
"""Seconds that an interrupted call has to end by itself."""

T = TypeVar("T")

Interruption = Future[None]
"""Done when a wait is to end."""


class Upload:
    """Writes one object, for one thread at a time.

    A part is spooled until it is complete, in a file unless it is small, and then sent while the
    next one is spooled. Only what is being sent is in memory, which a shared budget limits.

    :param uploaders: threads that wait for the object store
    :ivar id: the object
    """

    def __init__(self, blobs: Blobs, uploaders: Executor) -> None:
        self.id: UUID = uuid4()
        self._blobs = blobs
        self._uploaders = uploaders
        self._writer = blobs.writer(self.id)
        # Data that is not sent yet, if there is any, and the bytes that it still takes. The first
        # time it takes one byte more than a part: a write of that byte waits for the part.
        self._spool: IO[bytes] | None = None
        self._room = PART + 1
        # The last call of the writer, if there was one, and the moment by which it must have ended.
        self._call: Future[None] | None = None
        self._until = 0.0
        self._is_complete = False

    @property
    def is_sent(self) -> bool:
        """Whether the object store may have got anything of the object."""
        return self._call is not None

    def write(self, rest: memoryview, interruption: Interruption) -> None:
        """Spool a piece, and send the parts that it completes.

        :raises StoreUnavailableError: when the object store is unavailable, or refuses
        :raises OSError: when the piece cannot be spooled
        """
        while rest:
            taken, rest = rest[: self._room], rest[self._room :]
            self._spool = self._spool or _new_spool()
            self._spool.write(taken)
            self._room -= len(taken)
            if not self._room:
                self._send(self._write_part, interruption)
                self._room = PART

    def complete(self, interruption: Interruption) -> None:
        """Send the rest, so that the object exists and is durable.

        :raises StoreUnavailableError: when the object store is unavailable, or refuses
        """
        self._send(self._write_rest, interruption)
        self._wait_for_call(interruption)
        self._is_complete = True

    def _send(self, write: Callable[[IO[bytes], int], None], interruption: Interruption) -> None:
        """Begin to send what is spooled, once what was sent before has arrived.

        :raises StoreUnavailableError: when that has not arrived in time, or no other upload that
            has the memory made progress
        """
        self._wait_for_call(interruption)
        spool, self._spool = self._spool or _new_spool(), None
        size = spool.tell()
        interruption.add_done_callback(lambda _: budget.wake())
        try:
            budget.acquire(size, self._blobs.deadline, lambda: not interruption.done())
        except TimeoutError:
            spool.close()
            raise _overdue(self._blobs) from None

        def send() -> None:
            has_arrived = False
            try:
                with spool:
                    spool.seek(0)
                    write(spool, size)
                has_arrived = True
            finally:
                budget.release(size, has_arrived=has_arrived)

        self._until = time.monotonic() + self._blobs.deadline
        try:
            self._call = self._uploaders.submit(send)
        except RuntimeError:  # the store has been closed
            budget.release(size, has_arrived=False)
            spool.close()
            raise

    def _write_part(self, spool: IO[bytes], size: int) -> None:
        """Write what is spooled; return when the part that it completes is stored."""
        for start in range(0, size - 1, CHUNK):
            self._writer.write(spool.read(min(CHUNK, size - 1 - start)))
        self._writer.write(spool.read(1))

    def _write_rest(self, spool: IO[bytes], _: int) -> None:
        while piece := spool.read(CHUNK):
            self._writer.write(piece)
        self._writer.close()

    def _wait_for_call(self, interruption: Interruption) -> None:
        if self._call is not None:
            wait_for(self._call, self._until, interruption, self._blobs)

    def close(self) -> None:
        """Remove what is spooled. Idempotent."""
        spool, self._spool = self._spool, None
        if spool is not None:
            spool.close()

    def remove(self) -> None:
        """Remove the object, or what was sent of it. Waits for the last call of the writer.

        :raises StoreUnavailableError: when the object store is unavailable, or refuses
        """
        self.close()
        if self._call is None:
            return
        with suppress(*FAILURES):
            self._call.result()
        if not self._is_complete:
            # The client cannot abort an upload in parts, so complete it first.
            with suppress(*FAILURES):
                self._writer.close()
        self._blobs.delete([self.id])


def wait_for(call: Future[T], until: float, interruption: Interruption, blobs: Blobs) -> T:
    """Wait for a call of a server, until a moment or an interruption.

    :raises StoreUnavailableError: when a server is unavailable, or refuses
    """
    either: list[Future[Any]] = [call, interruption]
    wait(either, max(0.0, until - time.monotonic()), FIRST_COMPLETED)
    try:
        return call.result(MOMENT if interruption.done() else 0)
    except TimeoutError:
        raise _overdue(blobs) from None
    except StoreUnavailableError:
        raise  # an OSError too
    except FAILURES as error:
        raise blobs.unavailable(error) from None


def _overdue(blobs: Blobs) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"{blobs.name}: an upload made no progress for {blobs.deadline:g} s"
    )


def _new_spool() -> IO[bytes]:
    """Return an empty file without a name; little data stays in memory."""
    return SpooledTemporaryFile(_SPOOLED_IN_MEMORY)
