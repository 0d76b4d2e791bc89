"""Big data in and out, in pieces."""

from __future__ import annotations

import inspect
import io
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from aiofiles.threadpool import wrap
from anyio import EndOfStream

from .._core.content import Buffer
from .._core.digest import CANONICAL, check_digest, digest_of, hasher, is_canonical
from .._engine.items import CHUNK, Source
from .._engine.protocol import StagedContent
from ..errors import DigestMismatchError, SizeMismatchError
from .threads import Threads

Progress = Callable[[int], object]

_NOT_HANDED_OVER = "staged data can be handed over once, inside its block"


_LARGEST_CHUNK = 3 * CHUNK
_SMALLEST_CHUNK = CHUNK // 4
_ALL_CHUNKS = 8 * CHUNK


class Readers:
    """How many readers are open, and how much each of them takes at a time.

    Large chunks, for the way to a worker thread and back takes longer than to read 1 MiB; no
    larger than digesting makes worth while, and less for each the more readers there are.
    """

    def __init__(self) -> None:
        self._number = 0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Count a reader for as long as the block takes."""
        self._number += 1
        try:
            yield
        finally:
            self._number -= 1

    def chunk(self, *, verify: bool) -> int:
        """The size of the next chunk, in bytes."""
        share = _ALL_CHUNKS // max(self._number, 1) // _SMALLEST_CHUNK * _SMALLEST_CHUNK
        return max(_SMALLEST_CHUNK, min(share, 2 * CHUNK if verify else _LARGEST_CHUNK))


class BigDataReader:
    """An open item. It keeps its content when the item is replaced or its image deleted.

    Iterating gives the data in chunks of up to 3 MiB.
    """

    def __init__(self, source: Source, digest: str, readers: Readers, threads: Threads) -> None:
        self._file: Any = wrap(source, loop=threads)
        self._readers = readers
        self._is_verified = source.is_verified
        self._size = source.size
        self._digest = digest

    @property
    def size(self) -> int:
        """The length of the open file, in bytes."""
        return self._size

    @property
    def digest(self) -> str:
        """The digest that the record gives, or ``""``."""
        return self._digest

    async def read(self, n: int = -1) -> bytes:
        """Read up to ``n`` bytes from where the reading is, all that are left if negative.

        Cancelled, it has read nothing, or what it read is lost.

        :raises DigestMismatchError: with ``verify``, at the end of the data
        """
        data: bytes = await self._file.read(n)
        return data

    async def seek(self, offset: int) -> int:
        """Go to a place, in bytes from the start, and return it.

        :raises ValueError: when it is negative, or the data is verified
        """
        if offset < 0:
            raise ValueError(f"offset must not be negative: {offset}")
        place: int = await self._file.seek(offset)
        return place

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if data := await self.read(self._readers.chunk(verify=self._is_verified)):
            return data
        raise StopAsyncIteration


class Staged:
    """Data on disk that belongs to no image yet.

    Hand it to :meth:`ImageStore.create`, :meth:`ImageStore.set_big_data` or a transaction inside
    the block that made it. Otherwise it vanishes with the block, or with the process.
    """

    def __init__(self, content: StagedContent, threads: Threads) -> None:
        self._content = content
        self._threads = threads
        self._file: Any = wrap(content.sink, loop=threads)
        self._is_given = False

    @property
    def size(self) -> int:
        """What was written so far, in bytes."""
        return self._content.size

    @property
    def digest(self) -> str:
        """The SHA-256 digest of what was written so far."""
        return self._content.digest

    async def write(self, chunk: Buffer) -> None:
        """Append data. Each call is a hop to a worker thread: larger chunks are faster.

        Cancelled, the chunk was written wholly or not at all: ``size`` tells.

        :raises ValueError: when the data was handed over already
        :raises OSError: when it cannot be written, a full disk for instance
        """
        if self._is_given or not self._content.is_open:
            raise ValueError(_NOT_HANDED_OVER)
        await self._threads.run(_write_and_flush, self._content.sink, chunk)

    async def _pour(self, chunk: bytes) -> None:
        """Append data that may be digested while the next is on its way, until a flush."""
        await self._file.write(chunk)

    async def _flush(self) -> None:
        await self._file.flush()

    def _give(self) -> StagedContent:
        """Hand over the content; :meth:`_take_back` follows when that is over."""
        if self._is_given or not self._content.is_open:
            raise ValueError(_NOT_HANDED_OVER)
        self._is_given = True
        return self._content

    def _take_back(self) -> None:
        """Allow another try, in case the content was not used."""
        self._is_given = False


def _write_and_flush(sink: io.BufferedIOBase, chunk: Buffer) -> None:
    sink.write(chunk)
    sink.flush()


class Expectations:
    """What the caller says that the data will be, checked as it passes."""

    def __init__(self, digest: str | None, size: int | None) -> None:
        self._digest = None if digest is None else check_digest(digest)
        self._size = size
        is_other = self._digest is not None and not is_canonical(self._digest)
        # The store's own digest is always the canonical one; another is computed beside it.
        self._other = hasher(self._digest) if self._digest is not None and is_other else None
        self._digested = 0
        if size is not None and size < 0:
            raise ValueError(f"expected_size must not be negative: {size}")

    async def add(self, chunk: bytes, threads: Threads) -> None:
        """Digest what was written, where the writing does not do it."""
        if self._other is not None:
            await threads.run(self._other.update, chunk)
            self._digested += len(chunk)

    def check_growing(self, size: int) -> None:
        """Check the size so far.

        :raises SizeMismatchError: when it is too long already
        """
        if self._size is not None and size > self._size:
            raise SizeMismatchError(
                f"the data is longer than the {self._size} bytes expected",
                expected=self._size,
                actual=size,
            )

    def check(self, content: StagedContent) -> None:
        """Check the whole.

        :raises ValueError: when it was not digested in the way that is expected

        :raises SizeMismatchError: when it is longer or shorter than expected
        :raises DigestMismatchError: when its digest is another
        """
        self.check_growing(content.size)
        if self._size is not None and content.size != self._size:
            raise SizeMismatchError(
                f"the data has {content.size} bytes, {self._size} were expected",
                expected=self._size,
                actual=content.size,
            )
        actual = content.digest
        if self._other is not None:
            if self._digested != content.size:
                raise ValueError(f"staged data has a {CANONICAL} digest: expect that one")
            actual = digest_of(self._other)
        if self._digest is not None and actual != self._digest:
            raise DigestMismatchError(
                f"the data has the digest {actual}, {self._digest} was expected",
                expected=self._digest,
                actual=actual,
            )


def is_buffer(data: object) -> bool:
    """Whether it is bytes-like."""
    try:
        memoryview(data)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def as_bytes(data: Any) -> bytes:
    """Bytes that nobody changes any more."""
    return data if isinstance(data, bytes) else bytes(data)


def chunks_of(data: Any, threads: Threads) -> AsyncIterator[Buffer]:
    """The data in pieces, whatever kind of source it is.

    :raises TypeError: when it is none
    """
    if isinstance(data, str):
        raise TypeError("big data is bytes: encode the str first")
    if is_buffer(data):
        view = memoryview(data).cast("B")
        pieces = [view[start : start + CHUNK] for start in range(0, len(view), CHUNK)]
        return _iterated(iter(pieces), threads)
    read = getattr(data, "read", None)
    if inspect.iscoroutinefunction(read):
        return _received(lambda: read(CHUNK))
    receive = getattr(data, "receive", None)
    if inspect.iscoroutinefunction(receive):
        return _received(receive)
    if isinstance(data, AsyncIterable):
        return aiter(data)
    if callable(read):
        # A plain file: its lines, which is what iterating gives, may be as long as the file.
        return _iterated(iter(lambda: read(CHUNK), b""), threads)
    if isinstance(data, Iterable):
        return _iterated(iter(data), threads)
    raise TypeError(
        "big data is bytes, staged data, something with async read or receive, or an iterable of "
        f"bytes, async or not, but not {type(data).__name__}"
    )


async def _received(receive: Callable[[], Any]) -> AsyncIterator[Buffer]:
    while True:
        try:
            chunk = await receive()
        except EndOfStream:
            return
        if not chunk:
            return
        yield chunk


async def _iterated(chunks: Any, threads: Threads) -> AsyncIterator[Buffer]:
    def gather() -> list[Buffer]:
        gathered: list[Buffer] = []
        size = 0
        for chunk in chunks:
            gathered.append(chunk)
            size += len(chunk)
            if size >= CHUNK:
                break
        return gathered

    while gathered := await threads.run(gather):
        for chunk in gathered:
            yield chunk


async def pour(
    source: AsyncIterator[Buffer],
    staged: Staged,
    expectations: Expectations,
    progress: Progress | None,
    threads: Threads,
) -> None:
    """Write all that comes from the source, small chunks joined until they are worth a hop."""
    waiting: list[bytes] = []
    size = 0

    async def flush() -> None:
        chunk = waiting[0] if len(waiting) == 1 else b"".join(waiting)
        waiting.clear()
        await staged._pour(chunk)
        await expectations.add(chunk, threads)
        if progress is not None:
            progress(staged.size)

    try:
        async for chunk in source:
            if not is_buffer(chunk):
                raise TypeError(f"big data comes in bytes, not in {type(chunk).__name__}")
            waiting.append(as_bytes(chunk))
            size += len(waiting[-1])
            expectations.check_growing(size)
            if size - staged.size >= CHUNK:
                await flush()
        if waiting:
            await flush()
        await staged._flush()
    finally:
        # One that was made for this call has nobody else to close it.
        if inspect.isasyncgen(source):
            await source.aclose()
