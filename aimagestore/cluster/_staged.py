"""Big data on its way into the object store."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from uuid import UUID, uuid4

from .._core.content import Buffer
from .._engine.digesting import Digester
from .._engine.items import CHUNK
from ..errors import StoreUnavailableError
from .blobs import FAILURES, PART, Blobs
from .reader import BlobReader

logger = logging.getLogger("aimagestore")


class _Sink(io.BufferedIOBase):
    """Passes on what is written, and digests it beside that."""

    def __init__(self, append: Callable[[bytes], None], helpers: Executor) -> None:
        self._append = append
        self.size = 0
        self.digester = Digester(helpers)

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:  # type: ignore[override]
        # The writer keeps what it is given until it is sent; the caller may change it before that.
        piece = data if isinstance(data, bytes) else bytes(data)
        self.digester.add(piece)
        self._append(piece)
        self.size += len(piece)
        return len(piece)

    def flush(self) -> None:
        self.digester.settle()


class StagedBlob:
    """An object that no record refers to yet; see :class:`StagedContent` of the protocol.

    One that is never referred to, because its process died, is found by ``collect_garbage``.

    :ivar id: which object it is
    """

    def __init__(self, blobs: Blobs, helpers: Executor) -> None:
        self.id: UUID = uuid4()
        self._blobs = blobs
        self._writer = blobs.writer(self.id)
        self._sink = _Sink(self._append, helpers)
        self._finished: float | None = None
        self._is_broken = False
        self._is_open = True
        self._is_lent = False

    def _append(self, piece: bytes) -> None:
        try:
            if self._finished is not None:
                self._begin_again()
            self._writer.write(piece)
        except FAILURES as error:
            self._is_broken = True
            raise self._blobs.unavailable(error) from None

    def _begin_again(self) -> None:
        """Go on in another object, with what the finished one has: an object is for good."""
        longer = uuid4()
        writer = self._blobs.writer(longer)
        with BlobReader(self._blobs, self.id) as reader:
            while piece := reader.read(CHUNK):
                writer.write(piece)
        self._blobs.delete([self.id])
        self.id, self._writer, self._finished = longer, writer, None

    @property
    def sink(self) -> io.BufferedIOBase:
        return self._sink

    @property
    def size(self) -> int:
        return self._sink.size

    @property
    def digest(self) -> str:
        self._sink.flush()
        return self._sink.digester.digest

    @property
    def is_open(self) -> bool:
        return self._is_open

    @property
    def age(self) -> float:
        """Seconds since it was finished."""
        return 0.0 if self._finished is None else time.monotonic() - self._finished

    def finish(self) -> None:
        """Have the object there.

        :raises ValueError: when a write has failed before
        :raises StoreUnavailableError: when it could not be stored
        """
        if self._is_broken:
            raise ValueError("a write to this staged data has failed: stage it again")
        self._sink.flush()
        if self._finished is not None:
            return
        try:
            self._writer.close()
        except FAILURES as error:
            self._is_broken = True
            raise self._blobs.unavailable(error) from None
        self._finished = time.monotonic()

    def lend(self) -> None:
        """Know that a commit may refer to it from here on."""
        self._is_lent = True

    def take_back(self) -> None:
        """Know that no commit does."""
        self._is_lent = False

    def give_away(self) -> None:
        """Know that a commit does: it is not this one's to remove."""
        self._is_open = False

    def discard(self) -> None:
        """Remove the object, unless a commit may refer to it; failing that, it is garbage."""
        self._sink.flush()
        is_mine, self._is_open = self._is_open and not self._is_lent, False
        # What fits into one part is not sent before it is finished.
        if not is_mine or (self._finished is None and self._sink.size < PART):
            return
        try:
            if self._finished is None:
                # An upload in parts cannot be aborted through this client, but ended and removed.
                with suppress(*FAILURES):
                    self._writer.close()
            self._blobs.delete([self.id])
        except StoreUnavailableError as error:
            logger.warning("left to collect_garbage: %s", error)
