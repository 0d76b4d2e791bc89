"""Big data out, in pieces: the reader of an item."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from anyio import EndOfStream

from .._core.image import Image
from .._core.names import check_type
from .._engine.items import CHUNK, Source
from ..errors import StoreClosedError
from .read_ahead import PIECES, ReadAhead

if TYPE_CHECKING:
    from .core import StoreCore

_LARGEST_CHUNK = 2 * CHUNK
_LARGEST_VERIFIED_CHUNK = CHUNK
_SMALLEST_CHUNK = CHUNK // 4
_ALL_CHUNKS = 12 * CHUNK
"""The memory for the chunks of all readers of a store, until each has the smallest size."""


def _chunk_size(readers: int, *, verify: bool) -> int:
    """Return how many bytes to read at a time.

    Chunks are large, because waking a thread takes as long as reading 1 MiB. They are smaller, the
    more readers share the memory. Each has those that are read ahead, and the caller's.

    :param readers: the number of open readers
    """
    share = _ALL_CHUNKS // max(readers, 1) // (PIECES + 1) // _SMALLEST_CHUNK * _SMALLEST_CHUNK
    largest = _LARGEST_VERIFIED_CHUNK if verify else _LARGEST_CHUNK
    return max(_SMALLEST_CHUNK, min(share, largest))


class BigDataReader:
    """An open big-data item, to be read in pieces.

    It is an async iterator, which gives chunks of up to 2 MiB. The content is that of the moment
    when the item was opened, even if the item is replaced or its image deleted. The reader is
    closed at the end of its :meth:`ImageStore.open_big_data` block, or with its store.
    """

    def __init__(self, core: StoreCore, image: Image, key: str, source: Source) -> None:
        self._core = core
        self._source = source
        self._ahead = ReadAhead(source, core.threads)
        self._file: Any = core.threads.async_file(self._ahead, loop=self._ahead.calls)
        self._stream: Any = core.threads.async_file(self._ahead, loop=self._ahead)
        self._image = image
        self._key = key

    def __repr__(self) -> str:
        return f"<BigDataReader of {self._key!r} of image {self._image.id}, {self.size} bytes>"

    @property
    def size(self) -> int:
        """The size of the whole item in bytes, even if only a part of it is read."""
        return self._source.size

    @property
    def image(self) -> Image:
        """The record that the item was opened with."""
        return self._image

    @property
    def path(self) -> str | None:
        """A path for servers that send a file without reading it through Python.

        Pass it to ASGI's ``http.response.pathsend``, or open it with ``os.open`` and pass the
        descriptor to ``os.sendfile``. It leads to the content that the reader has open, in this
        process only, and only until the reader is closed: keep the ``open_big_data`` block open
        until the server has sent everything. It is the whole item, with a position of its own.

        ``None`` if the content is no local file, as on a cluster, if the system has no ``/proc``,
        and with ``verify``, because what the server sends would not be verified.

        :raises StoreClosedError: when the reader or its store was closed
        """
        self._check_open()
        if self._source.is_verified or sys.platform != "linux":
            return None
        return self._source.path

    @property
    def digest(self) -> str:
        """The digest that the record has for the item, or ``""``."""
        return self._image.big_data_digests.get(self._key, "")

    def _check_open(self) -> None:
        self._core.check_open()
        if self._source.closed:
            raise StoreClosedError("the reader is closed: open the item again")

    async def read(self, n: int = -1) -> bytes:
        """Return up to ``n`` bytes from the current position, or all of the rest if negative.

        If cancelled, it returns at once; the position is then before or after those bytes.

        :raises DigestMismatchError: with ``verify``, at the end of the data
        :raises StoreClosedError: when the reader or its store was closed
        """
        check_type(n, int, "n")
        self._check_open()
        data: bytes = await self._file.read(n)
        return data

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return up to ``max_bytes`` bytes, as anyio's byte streams do.

        If cancelled, it returns at once, as :meth:`read` does.

        :raises anyio.EndOfStream: at the end of the data
        :raises DigestMismatchError: with ``verify``, at the end of the data
        :raises StoreClosedError: when the reader or its store was closed
        :raises ValueError: when ``max_bytes`` is not positive
        """
        check_type(max_bytes, int, "max_bytes")
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1: {max_bytes}")
        if data := await self._read_next(max_bytes):
            return data
        raise EndOfStream

    async def seek(self, offset: int) -> int:
        """Set the position, in bytes from the start of the item, and return it.

        If cancelled, it returns at once; the position is then the old or the new one.

        :raises ValueError: when it is negative, or the data is verified
        :raises StoreClosedError: when the reader or its store was closed
        """
        check_type(offset, int, "offset")
        if offset < 0:
            raise ValueError(f"offset must not be negative: {offset}")
        self._check_open()
        position: int = await self._file.seek(offset)
        return position

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """Return the next chunk."""
        if data := await self._read_next(-1):
            return data
        raise StopAsyncIteration

    async def _read_next(self, max_bytes: int) -> bytes:
        """Return bytes that were read ahead, or the next ones; none at the end."""
        self._check_open()
        self._ahead.piece_size = _chunk_size(self._core.readers, verify=self._source.is_verified)
        data: bytes = await self._stream.read1(max_bytes)
        return data
