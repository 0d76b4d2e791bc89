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
from ._blobs import RETRIES, Blobs

if TYPE_CHECKING:
    from obstore import BytesStream


class BlobReader(io.RawIOBase):
    """Reads an object as a stream, and continues at the same position after a lost connection.

    :ivar blob: the object
    :raises FileNotFoundError: when there is no such object
    :raises StoreUnavailableError: when the object store is unavailable, or sends nothing for the
        whole deadline
    """

    def __init__(self, blobs: Blobs, blob: UUID) -> None:
        self._blobs = blobs
        self.blob = blob
        self._position = 0
        # The stream, the rest of its last chunk, and the position of that.
        self._chunks: BytesStream | None = None
        self._rest = memoryview(b"")
        self._next = 0
        self._size = self._begin(self._backoff())

    def _backoff(self) -> Backoff:
        return Backoff(time.monotonic() + RETRIES * self._blobs.deadline)

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
            try:
                self._rest = memoryview(next(self._chunks))
            except (StopIteration, BaseError) as error:
                self._chunks = None
                if not backoff.wait():
                    raise self._blobs.unavailable(error) from None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        # Only a read requests another part: most seeks to the end merely ask for the size.
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def close(self) -> None:
        self._chunks = None
        self._rest = memoryview(b"")
        super().close()
