"""An object's content as a file to read from, at any place."""

from __future__ import annotations

import errno
import io
from typing import TYPE_CHECKING
from uuid import UUID

from obstore.exceptions import BaseError

from .._engine.items import CHUNK
from .blobs import Blobs
from .patience import Patience

if TYPE_CHECKING:
    from obstore import BytesStream


class BlobReader(io.RawIOBase):
    """Reads an object as it comes, and goes on where it was when the way to it was cut.

    :raises FileNotFoundError: when there is no such object
    :raises StoreUnavailableError: when the object store is not to be had
    """

    def __init__(self, blobs: Blobs, blob: UUID) -> None:
        self._blobs = blobs
        self._blob = blob
        self._place = 0
        # The stream, and where what comes of it next belongs.
        self._chunks: BytesStream | None = None
        self._rest = memoryview(b"")
        self._next = 0
        self._size = self._begin()

    def _begin(self) -> int:
        """Ask for the object from where the reading is; its size."""
        patience = Patience()
        while True:
            try:
                result = self._blobs.get(self._blob, self._place)
                self._chunks = result.stream(min_chunk_size=CHUNK)
                self._rest, self._next = memoryview(b""), self._place
                return result.meta["size"]
            except FileNotFoundError:
                path = self._blobs.path_of(self._blob)
                raise FileNotFoundError(errno.ENOENT, "the object is missing", path) from None
            except BaseError as error:
                if not patience.wait():
                    raise self._blobs.unavailable(error) from None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readall(self) -> bytes:
        return self.read(self._size)

    def read(self, size: int = -1) -> bytes:
        wanted = max(0, self._size - self._place)
        wanted = min(size, wanted) if size >= 0 else wanted
        pieces: list[memoryview] = []
        while wanted:
            piece = self._more()[:wanted]
            pieces.append(piece)
            self._rest = self._rest[len(piece) :]
            self._place += len(piece)
            self._next += len(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    def _more(self) -> memoryview:
        """What comes next, which is not nothing."""
        patience = Patience()
        while True:
            if self._chunks is None or self._next != self._place:
                self._begin()
            if self._rest:
                return self._rest
            assert self._chunks is not None
            try:
                self._rest = memoryview(next(self._chunks))
            except (StopIteration, BaseError) as error:
                self._chunks = None
                if not patience.wait():
                    raise self._blobs.unavailable(error) from None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        # Only reading asks for another part: the end is sought merely to know where it is.
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def close(self) -> None:
        self._chunks = None
        self._rest = memoryview(b"")
        super().close()
