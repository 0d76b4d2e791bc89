"""Big data out, in pieces: the reader of an item."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from anyio import EndOfStream

from .._core.image import Image
from .._engine.items import CHUNK, Source
from ..errors import StoreClosedError

if TYPE_CHECKING:
    from .core import StoreCore

_LARGEST_CHUNK = 3 * CHUNK
_SMALLEST_CHUNK = CHUNK // 4
_ALL_CHUNKS = 8 * CHUNK


def _chunk_size(readers: int, *, verify: bool) -> int:
    """Return how many bytes to read at a time, with this number of readers open.

    Large chunks, because a hop to a worker thread takes longer than to read 1 MiB; no larger than
    hashing makes worthwhile, and smaller the more readers share the memory.
    """
    share = _ALL_CHUNKS // max(readers, 1) // _SMALLEST_CHUNK * _SMALLEST_CHUNK
    return max(_SMALLEST_CHUNK, min(share, 2 * CHUNK if verify else _LARGEST_CHUNK))


class BigDataReader:
    """An open big-data item.

    It keeps the content that it was opened with, even when the item is replaced or its image
    deleted. Iterating gives chunks of up to 3 MiB. It is closed at the end of its
    :meth:`ImageStore.open_big_data` block, and with its store.
    """

    def __init__(self, core: StoreCore, image: Image, key: str, source: Source) -> None:
        self._core = core
        self._source = source
        self._file: Any = core.threads.async_file(source)
        self._image = image
        self._key = key

    def __repr__(self) -> str:
        return f"<BigDataReader of {self._key!r} of image {self._image.id}, {self.size} bytes>"

    @property
    def size(self) -> int:
        """The size of the whole item in bytes, whatever part of it is read."""
        return self._source.size

    @property
    def image(self) -> Image:
        """The record that the item was opened with."""
        return self._image

    @property
    def path(self) -> str | None:
        """A path for servers that send a file without reading it through Python.

        ASGI's ``http.response.pathsend`` takes it, and so does ``os.open``: ``os.sendfile`` takes
        that descriptor. It leads to the content that was opened, also when the item is replaced or
        its image deleted, but only in this process, and only until the reader is closed: keep the
        ``open_big_data`` block open until the server has sent it. It is the whole item, whatever
        part the reader reads, and its position is not the reader's.

        ``None`` where the content is no local file, as on a cluster, where the system has no
        ``/proc``, and with ``verify``, because nothing would compare what is sent.

        :raises StoreClosedError: when the reader or its store was closed
        """
        self._check_open()
        if self._source.is_verified or sys.platform != "linux":
            return None
        return self._source.path

    @property
    def digest(self) -> str:
        """The digest that the record gives, or ``""``."""
        return self._image.big_data_digests.get(self._key, "")

    def _check_open(self) -> None:
        self._core.check_open()
        if self._source.closed:
            raise StoreClosedError("the reader is closed: open the item again")

    async def read(self, n: int = -1) -> bytes:
        """Return up to ``n`` bytes from the current position, all of the rest if negative.

        Cancelled, it returns at once; the position is then before or after those bytes.

        :raises DigestMismatchError: with ``verify``, at the end of the data
        :raises StoreClosedError: when the reader or its store was closed
        """
        self._check_open()
        data: bytes = await self._file.read(n)
        return data

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return up to ``max_bytes`` bytes, as anyio's byte streams do.

        :raises anyio.EndOfStream: at the end of the data
        :raises DigestMismatchError: with ``verify``, at the end of the data
        """
        if data := await self.read(max_bytes):
            return data
        raise EndOfStream

    async def seek(self, offset: int) -> int:
        """Set the position, in bytes from the start of the item, and return it.

        :raises ValueError: when it is negative, or the data is verified
        """
        if offset < 0:
            raise ValueError(f"offset must not be negative: {offset}")
        self._core.check_open()
        position: int = await self._file.seek(offset)
        return position

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        size = _chunk_size(self._core.readers, verify=self._source.is_verified)
        if data := await self.read(size):
            return data
        raise StopAsyncIteration
