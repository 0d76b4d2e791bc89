"""Big data, and a source of each kind that gives it."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel

from .layouts import digest_of

CONTENT = bytes(range(256)) * 12_000
"""3 MB, which takes several chunks."""


DIGEST = digest_of(CONTENT)


async def chunks(content: bytes = CONTENT, size: int = 100_000) -> AsyncIterator[bytes]:
    """Yield data in pieces."""
    for start in range(0, len(content), size):
        yield content[start : start + size]


class AsyncReader:
    """A source with an async ``read``."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    async def read(self, n: int = -1) -> bytes:
        """Return the next bytes."""
        await anyio.lowlevel.checkpoint()
        return self._file.read(n)


class Receiver:
    """A source with a ``receive``, like anyio's streams."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    async def receive(self) -> bytes:
        """Return the next bytes."""
        await anyio.lowlevel.checkpoint()
        if chunk := self._file.read(100_000):
            return chunk
        raise anyio.EndOfStream


SOURCES: dict[str, Callable[[], Any]] = {
    "bytes": lambda: CONTENT,
    "bytearray": lambda: bytearray(CONTENT),
    "memoryview": lambda: memoryview(CONTENT),
    "async read": lambda: AsyncReader(CONTENT),
    "receive": lambda: Receiver(CONTENT),
    "async iterable": chunks,
    "iterable": lambda: (CONTENT[i : i + 777] for i in range(0, len(CONTENT), 777)),
    "file": lambda: io.BytesIO(CONTENT),
    "list": lambda: [CONTENT[:5], b"", CONTENT[5:]],
}
"""Every kind of source, each of which gives :data:`CONTENT`."""
