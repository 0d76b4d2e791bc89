"""An object as a seekable file."""

from __future__ import annotations

import errno
import io
import time
from typing import TYPE_CHECKING
from uuid import UUID

from obstore.exceptions import BaseError

from .._engine.items import CHUNK
from ._backoff import Backoff
from ._blobs import RETRY_SHARE, Blobs

if TYPE_CHECKING:
    from obstore import BytesStream


class BlobReader(io.RawIOBase):
    """Reads an object as a stream, and continues at the same position after a lost connection.

    Making one and reading raise :exc:`FileNotFoundError` when there is no such object, and
    :exc:`StoreUnavailableError` when the object store is unavailable, or sends nothing for a whole
    deadline.

    :ivar blob: the object
    """

    def __init__(self, blobs: Blobs, blob: UUID) -> None:
        self._blobs = blobs
        self.blob = blob
        self._position = 0
        # The stream, the rest of its last chunk, and the position of that rest.
        self._chunks: BytesStream | None = None
        self._rest = memoryview(b"")
        self._next = 0
        self._size = self._begin(self._backoff())

    def _backoff(self) -> Backoff:
        return Backoff(time.monotonic() + RETRY_SHARE * self._blobs.deadline)

    def _begin(self, backoff: Backoff) -> int:
        """Request the object from the present position on, and return its size."""
        while True:
            try:
                result = self._blobs.get(self.blob, self._position)
                self._chunks = result.stream(min_chunk_size=CHUNK)
                self._rest, self._next = memoryview(b""), self._position
                return result.meta["size"]
            except FileNotFoundError:
                path = self._blobs.path_of(self.blob)
                raise FileNotFoundError(errno.ENOENT, "the object is missing", path) from None
            except BaseError as error:
                if not backoff.wait():
                    raise self._blobs.unavailable(error) from None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readall(self) -> bytes:
        return self.read(self._size)

    def read(self, size: int = -1) -> bytes:
        wanted = max(0, self._size - self._position)
        wanted = min(size, wanted) if size >= 0 else wanted
        pieces: list[memoryview] = []
        while wanted:
            piece = self._more()[:wanted]
            pieces.append(piece)
            self._rest = self._rest[len(piece) :]
            self._position += len(piece)
            self._next += len(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    def _more(self) -> memoryview:
        """Return the bytes that come next, at least one."""
        backoff = self._backoff()
        while True:
            if self._chunks is None or self._next != self._position:
                self._begin(backoff)
            if self._rest:
                return self._rest
            assert self._chunks is not None
            failure: Exception
            try:
                self._rest = memoryview(next(self._chunks))
                continue
            except StopIteration:
                failure = EOFError("the object ends before its size")
            except BaseError as error:
                failure = error
            self._chunks = None
            if not backoff.wait():
                raise self._blobs.unavailable(failure)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        # Only a read requests the object anew: most seeks to the end only ask for the size.
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def close(self) -> None:
        self._chunks = None
        self._rest = memoryview(b"")
        super().close()
