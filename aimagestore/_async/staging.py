"""Big data in: sources of any kind, and content that belongs to no image yet."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from anyio import EndOfStream

from .._core.content import Buffer
from .._core.digest import CANONICAL, check_digest, digest_of, hasher, is_canonical
from .._core.names import check_type
from .._engine.items import CHUNK
from .._engine.protocol import StagedContent
from ..errors import DigestMismatchError, SizeMismatchError
from .threads import ASYNC_FILES

if TYPE_CHECKING:
    from .core import StoreCore
    from .threads import Call, Threads

Progress: TypeAlias = Callable[[int, int | None], object]
"""Called with the amount done and the total, which is ``None`` if it is not known.

The amounts are bytes unless the call that takes it says otherwise.
"""


@runtime_checkable
class AsyncReadable(Protocol):
    """Something with an async ``read``; an empty piece ends the data."""

    def read(self, n: int, /) -> Awaitable[Buffer]:
        """Return up to ``n`` bytes."""
        ...


@runtime_checkable
class Receivable(Protocol):
    """Something with an async ``receive``; an empty piece ends the data.

    Of anyio's streams, which can be iterated over as well, only the end of the stream does.
    """

    def receive(self) -> Awaitable[Buffer]:
        """Return the next bytes, or raise :exc:`anyio.EndOfStream`."""
        ...


@runtime_checkable
class Readable(Protocol):
    """An open binary file; read in a worker thread."""

    def read(self, n: int, /) -> Buffer:
        """Return up to ``n`` bytes."""
        ...


_GATHER_SECONDS = 0.02
"""Seconds for which a thread gathers pieces of an iterable before it passes them on."""

_JOINED = 256 * 1024
"""Bytes of small pieces that are joined before a thread writes them."""

_NOT_USABLE = "staged data can be used once, inside the block that staged it: stage it again"


class StagedItem:
    """Data in the store that belongs to no image yet; :meth:`ImageStore.stage` provides it.

    Give it to :meth:`ImageStore.create`, :meth:`ImageStore.set_big_data` or a transaction of the
    same store, inside the block that staged it. Otherwise it is discarded at the end of the block,
    or with the process.
    """

    def __init__(self, core: StoreCore, content: StagedContent) -> None:
        self._core = core
        self._content = content
        self._is_used = False
        self._writes = 0
        # Kept, because the content's own digest waits for a write that another task has under way.
        self._digest = content.digest

    def __repr__(self) -> str:
        return f"<StagedItem of {self.size} bytes>"

    @property
    def size(self) -> int:
        """The number of bytes written so far."""
        return self._content.size

    @property
    def digest(self) -> str:
        """The SHA-256 digest of the bytes written so far, without a write that is under way."""
        return self._digest

    async def write(self, chunk: Buffer) -> None:
        """Append data. Each call takes a worker thread, so larger chunks are faster.

        If cancelled, the chunk was written as a whole or not at all: see ``size``. If cancelled
        while an object store does not answer, the data cannot be used any more.

        :raises TypeError: when the chunk is not bytes
        :raises ValueError: when the data is or was used, its block has ended, or a write failed
        :raises OSError: when the chunk cannot be written, for instance to a full disk
        """
        self._core.check_open()
        if self._is_used or not self._content.is_open:
            raise ValueError(_NOT_USABLE)
        piece = check_piece(chunk)
        self._writes += 1
        try:
            await self._core.threads.run(self._write, piece, interrupt=self._interrupt)
        finally:
            self._writes -= 1

    def _interrupt(self) -> None:
        # With several writes under way, the one that fails could be another task's.
        if self._writes == 1:
            self._content.interrupt()

    def _write(self, chunk: Buffer) -> None:
        self._content.sink.write(chunk)
        self._digest = self._content.digest

    def _use(self, core: StoreCore) -> StagedContent:
        """Return the content for use in a call or a transaction; :meth:`_unuse` must follow.

        :raises ValueError: when it cannot be used: it is another store's, is used already, its
            block has ended, or a write is under way
        """
        if core is not self._core:
            raise ValueError("the data belongs to the store that staged it: stage it in this one")
        if self._is_used or not self._content.is_open:
            raise ValueError(_NOT_USABLE)
        if self._writes:
            raise ValueError("staged data is being written by another task: wait for its end")
        self._is_used = True
        return self._content

    def _unuse(self) -> None:
        """Allow another use, unless the content was published."""
        self._is_used = False


BigDataSource: TypeAlias = (
    Buffer
    | StagedItem
    | AsyncReadable
    | Receivable
    | AsyncIterable[Buffer]
    | Readable
    | Iterable[Buffer]
)
"""Where big data comes from: bytes, staged data, a stream, an open file, or an iterable."""


def is_buffer(data: object) -> bool:
    """Return whether the data is bytes-like."""
    try:
        memoryview(data)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def check_piece(piece: object) -> Any:
    """Check a piece of data, and return it; if its bytes are not contiguous, a copy.

    :raises TypeError: when it is not bytes-like
    """
    if not is_buffer(piece):
        hint = ""
        if isinstance(piece, str):
            hint = ": encode it, or open the file in binary mode"
        elif inspect.isawaitable(piece):
            hint = ": an async read or receive must be defined with async def"
            if inspect.iscoroutine(piece):
                piece.close()
        raise TypeError(f"big data must be bytes, not {type(piece).__name__}{hint}")
    with memoryview(piece) as view:  # type: ignore[arg-type]
        return piece if view.c_contiguous else view.tobytes()


class Expectations:
    """The digest and the size that the caller expects of some data.

    :ivar size: the expected size in bytes, if one is expected
    """

    def __init__(self, digest: str | None, size: int | None) -> None:
        self._digest = None if digest is None else check_digest(digest)
        check_type(0 if size is None else size, int, "expected_size")
        if size is not None and size < 0:
            raise ValueError(f"expected_size must be a number of bytes, not {size}")
        self.size = size
        # The store computes the canonical digest itself; another one is computed beside it.
        other = None if self._digest is None or is_canonical(self._digest) else self._digest
        self._other = None if other is None else hasher(other)
        self._digested = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing is expected."""
        return self._digest is None and self.size is None

    @property
    def content(self) -> tuple[str, int | None] | None:
        """The digest and size by which to find such content; ``None`` without a usable digest."""
        digest = self._digest
        return None if digest is None or not is_canonical(digest) else (digest, self.size)

    @property
    def hashes(self) -> bool:
        """Whether the data must be given to :meth:`add`."""
        return self._other is not None

    def add(self, chunk: Buffer) -> None:
        """Hash a written chunk with the expected algorithm. Blocks."""
        assert self._other is not None, "a digest of another algorithm is expected"
        self._other.update(chunk)
        self._digested += len(chunk)

    def check_growing(self, size: int) -> None:
        """Check the number of bytes so far.

        :raises SizeMismatchError: when there is more data than expected
        """
        if self.size is not None and size > self.size:
            raise SizeMismatchError(
                f"the data is longer than the {self.size} bytes expected",
                expected=self.size,
                actual=size,
            )

    def check(self, content: StagedContent) -> None:
        """Check complete content.

        :raises ValueError: when the expected digest is of an algorithm that was not computed
        :raises SizeMismatchError: when there are more or fewer bytes than expected
        :raises DigestMismatchError: when the digest differs
        """
        self.check_growing(content.size)
        if self.size is not None and content.size != self.size:
            raise SizeMismatchError(
                f"the data has {content.size} bytes, {self.size} were expected",
                expected=self.size,
                actual=content.size,
            )
        actual = content.digest
        if self._other is not None:
            if self._digested != content.size:
                raise ValueError(
                    f"staged data has only a {CANONICAL} digest: give that as expected_digest, or "
                    "give the expected_digest to stage()"
                )
            actual = digest_of(self._other)
        if self._digest is not None and actual != self._digest:
            raise DigestMismatchError(
                f"the data has the digest {actual}, {self._digest} was expected",
                expected=self._digest,
                actual=actual,
            )


class WriteBehind:
    """Makes the calls of a file in worker threads, one behind: a call returns when it has begun.

    So the next piece of a stream is on its way while this one is written. Calls never overlap.
    """

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._last: Call[Any] | None = None

    async def run_in_executor(self, executor: object, function: Callable[[], object]) -> None:
        """Begin a call, after the one before. aiofiles takes this object for its event loop.

        Raises what the call before has raised. If interrupted, the call is not made.
        """
        await self.finish()
        self._last = self._threads.start_streaming(function)

    async def finish(self) -> None:
        """Wait for the last call, and raise what it has raised."""
        if self._last is not None:
            await self._last.ended.wait()
            last, self._last = self._last, None
            last.result()

    async def aclose(self) -> None:
        """Leave the last call, unless :meth:`finish` has waited for it."""
        if self._last is not None:
            await self._threads.leave(self._last)


class Pouring:
    """Writes one source of data into staged content."""

    def __init__(
        self,
        data: BigDataSource,
        threads: Threads,
        expectations: Expectations,
        progress: Progress | None,
    ) -> None:
        self._threads = threads
        self._expectations = expectations
        self._progress = progress
        self._total = memoryview(data).nbytes if is_buffer(data) else expectations.size  # type: ignore[arg-type]
        self._pieces = _pieces_of(data, threads)

    def skip(self, content: StagedContent) -> None:
        """Read nothing, because the store has the content, and report all of it as done."""
        self._total = content.size
        self._report(content.size)

    async def into(self, content: StagedContent, chunk_size: int = CHUNK) -> None:
        """Write all data. Small pieces are joined, because each write takes a worker thread.

        :param chunk_size: the most bytes to write at a time; up to three chunks are in memory
        """
        await self._threads.load(ASYNC_FILES)
        behind = WriteBehind(self._threads)
        file: Any = self._threads.async_file(content.sink, loop=behind)
        joined = bytearray()
        size = done = 0
        try:
            async for given in self._pieces:
                piece = check_piece(given)
                # Released before the next piece: a source may resize the buffer that it reuses.
                with memoryview(piece).cast("B") as view:
                    size += len(view)
                    self._expectations.check_growing(size)
                    if len(joined) + len(view) < _JOINED:
                        joined += view
                        continue
                    if joined:
                        chunk = bytes(joined)
                        joined.clear()  # frees the memory before the wait
                        await self._write(file, chunk)
                    for chunk in _chunks(piece, view, chunk_size):
                        await self._write(file, chunk)
                        if content.size > done:
                            done = content.size
                            self._report(done)
            if joined:
                await self._write(file, bytes(joined))
            await file.flush()
            await behind.finish()
            if content.size != done or not done:
                self._report(content.size)
        finally:
            try:
                await behind.aclose()
            finally:
                # An asynchronous generator that was made for this call is closed here.
                pieces: Any = self._pieces
                if inspect.isasyncgen(pieces):
                    await pieces.aclose()

    async def _write(self, file: Any, chunk: bytes) -> None:
        await file.write(chunk)
        if self._expectations.hashes:
            await self._threads.run_streaming(self._expectations.add, chunk)

    def _report(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, self._total)


def check_source(data: object) -> None:
    """Check that something is a source of data. Reads nothing of it.

    :raises TypeError: when it is none
    """
    if is_buffer(data):
        return
    if isinstance(data, str):
        raise TypeError("big data is bytes: encode the str first")
    reads = callable(getattr(data, "read", None))
    receives = inspect.iscoroutinefunction(getattr(data, "receive", None))
    if not (reads or receives or isinstance(data, AsyncIterable | Iterable)):
        raise TypeError(
            "big data must be bytes, staged data, an object with an async read or receive, a "
            f"binary file, or an iterable of bytes, async or not; not {type(data).__name__}"
        )


def _pieces_of(data: Any, threads: Threads) -> AsyncIterator[Buffer]:
    """Return the data of any kind of source in pieces.

    :raises TypeError: when the data is no source
    """
    check_source(data)
    if is_buffer(data):
        return _once(data)
    read = getattr(data, "read", None)
    if inspect.iscoroutinefunction(read):
        return _received(lambda: read(CHUNK))
    # Before receive, because in the middle of a stream of objects an empty piece is no end.
    if isinstance(data, AsyncIterable):
        return aiter(data)
    receive = getattr(data, "receive", None)
    if inspect.iscoroutinefunction(receive):
        return _received(receive)
    if callable(read):
        # Not by iterating, which gives lines: one may be as long as the file.
        return _gathered(_file_pieces(read), threads)
    return _gathered(iter(data), threads)


def _chunks(piece: Buffer, view: memoryview, size: int) -> Iterator[bytes]:
    """Split a piece into chunks of up to this size, which its owner cannot change any more.

    :param view: the bytes of the piece
    """
    if isinstance(piece, bytes) and len(piece) <= size:
        yield piece
        return
    for start in range(0, len(view), size):
        yield bytes(view[start : start + size])


async def _once(data: Buffer) -> AsyncIterator[Buffer]:
    yield data


async def _received(receive: Callable[[], Any]) -> AsyncIterator[Buffer]:
    while True:
        try:
            piece = await receive()
        except EndOfStream:
            return
        if not len(check_piece(piece)):
            return
        yield piece


def _file_pieces(read: Callable[[int], Any]) -> Iterator[Buffer]:
    while len(piece := check_piece(read(CHUNK))):
        yield piece


async def _gathered(pieces: Iterator[Buffer], threads: Threads) -> AsyncIterator[Buffer]:
    """Iterate in worker threads, and join small pieces.

    If cancelled, this waits for the iterator's next piece, not for a full chunk.
    """
    is_over = False

    def gather() -> bytes:
        nonlocal is_over
        gathered = bytearray()
        end = monotonic() + _GATHER_SECONDS
        for piece in pieces:
            gathered += memoryview(check_piece(piece)).cast("B")
            if len(gathered) >= CHUNK or monotonic() > end:
                return bytes(gathered)
        is_over = True
        return bytes(gathered)

    while not is_over:
        if joined := await threads.run_source(gather):
            yield joined
