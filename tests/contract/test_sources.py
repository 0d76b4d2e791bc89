"""Sources of big data that are slow or endless, give tiny pieces, or give text."""

from __future__ import annotations

import io
import threading
import time
import tracemalloc
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from ctypes import c_int
from pathlib import Path
from typing import Any

import anyio
import pytest

from aimagestore import ImageStore

from ..support.sources import CONTENT, DIGEST
from ..support.stores import StoreUnderTest, until


@pytest.fixture
async def image(store: ImageStore) -> str:
    """The ID of an image without items."""
    return (await store.create("image")).id


class Counter:
    """Gives the same piece for ever, and counts how often it was asked for one."""

    def __init__(self, piece: Any) -> None:
        self.piece = piece
        self.asked = 0

    def _next(self) -> Any:
        self.asked += 1
        return self.piece


class Endless(Counter):
    """A file without an end."""

    def read(self, n: int) -> Any:
        """Return the next piece."""
        assert n > 0
        return self._next()


class AsyncEndless(Counter):
    """A stream without an end."""

    async def read(self, n: int) -> Any:
        """Return the next piece."""
        assert n > 0
        return self._next()


class EndlessReceiver(Counter):
    """A receiver without an end."""

    async def receive(self) -> Any:
        """Return the next piece."""
        return self._next()


class EndlessIterable(Counter):
    """An iterable without an end."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self._next()


class AsyncEndlessIterable(Counter):
    """An async iterable without an end."""

    async def __aiter__(self) -> AsyncIterator[Any]:
        while True:
            yield self._next()


ENDLESS = [Endless, AsyncEndless, EndlessReceiver, EndlessIterable, AsyncEndlessIterable]


@pytest.mark.parametrize("source", ENDLESS)
async def test_a_source_that_gives_something_else_is_refused_at_its_first_piece(
    store: ImageStore, where: StoreUnderTest, image: str, source: type[Counter]
) -> None:
    for piece in ("text", 5, None):
        given = source(piece)
        with anyio.fail_after(20), pytest.raises(TypeError, match=type(piece).__name__):
            await store.set_big_data(image, "key", given)  # type: ignore[arg-type]
        assert given.asked == 1
        assert await store.big_data_names(image) == []
        await where.until_no_garbage()


@pytest.mark.parametrize("source", [Endless, AsyncEndless, EndlessReceiver])
async def test_an_empty_piece_ends_what_is_read(
    store: ImageStore, image: str, source: type[Counter]
) -> None:
    given = source(b"")
    with anyio.fail_after(20):
        changed = await store.set_big_data(image, "key", given)  # type: ignore[arg-type]
    assert (changed.big_data_sizes, given.asked) == ({"key": 0}, 1)


async def test_an_empty_piece_does_not_end_a_stream_that_can_be_iterated_over(
    store: ImageStore, image: str
) -> None:
    send, receive = anyio.create_memory_object_stream[bytes](5)
    with send, receive:
        for piece in (b"", b"first", b"", b"second", b""):
            send.send_nowait(piece)
        send.close()
        await store.set_big_data(image, "key", receive)
    assert await store.big_data(image, "key") == b"firstsecond"


class Delegating:
    """A stream whose methods return what async functions return, and are none themselves."""

    def read(self, n: int) -> Awaitable[bytes]:
        """Return the next piece, to be awaited."""
        return AsyncEndless(b"x").read(n)


async def test_a_method_that_is_not_async_itself_is_refused_with_advice(
    store: ImageStore, image: str
) -> None:
    with pytest.raises(TypeError, match=r"not coroutine: .* async def"):
        await store.set_big_data(image, "key", Delegating())
    assert await store.big_data_names(image) == []


class Reused:
    """A stream that gives all of its pieces in one buffer, which it resizes."""

    def __init__(self, size: int) -> None:
        self._buffer = bytearray()
        self._size = size
        self._start = 0

    def read(self, n: int) -> bytearray:
        """Return the next piece."""
        self._buffer.clear()
        self._buffer += CONTENT[self._start : min(self._start + self._size, SMALL)]
        self._start += len(self._buffer)
        return self._buffer


class AsyncReused(Reused):
    """Another such stream."""

    async def read(self, n: int) -> bytearray:  # type: ignore[override]
        """Return the next piece."""
        return super().read(n)


@pytest.mark.parametrize("source", [Reused, AsyncReused])
async def test_a_source_may_resize_the_buffer_that_it_gave_before(
    store: ImageStore, image: str, source: type[Reused]
) -> None:
    for size in (SMALL // 100, SMALL // 2):  # joined with others, and written by itself
        await store.set_big_data(image, "key", source(size))
        assert await store.big_data(image, "key") == CONTENT[:SMALL]


async def test_files_that_were_opened_as_text_are_refused(
    store: ImageStore, image: str, tmp_path: Path
) -> None:
    path = tmp_path / "text"
    path.write_text("text")
    with path.open() as file, pytest.raises(TypeError, match="binary mode"):
        await store.set_big_data(image, "key", file)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="str"):
        await store.create(big_data={"key": io.StringIO("text")})  # type: ignore[dict-item]
    with path.open("rb") as binary:
        await store.set_big_data(image, "key", binary)
    assert await store.big_data(image, "key") == b"text"


async def test_a_slow_iterable_is_cancelled_between_two_of_its_pieces(
    store: ImageStore, where: StoreUnderTest, image: str
) -> None:
    pieces = 0

    def slow() -> Iterator[bytes]:
        # At this rate, 5,000 pieces fill one chunk of 1 MiB in half a minute.
        nonlocal pieces
        while True:
            time.sleep(0.005)
            pieces += 1
            yield b"x" * 200

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.set_big_data, image, "key", slow())
        await until(lambda: pieces > 0)
        tasks.cancel_scope.cancel()
        before = pieces
    assert pieces - before < 1000, "the chunk was filled first"
    assert await store.big_data_names(image) == []
    await where.until_no_garbage()


async def trickle(size: int) -> AsyncIterator[bytes]:
    """Give the content in small pieces."""
    for start in range(0, SMALL, size):
        yield CONTENT[start : start + size]


def plain_trickle(size: int) -> Iterator[bytes]:
    """Give the content in small pieces."""
    for start in range(0, SMALL, size):
        yield CONTENT[start : start + size]


SMALL = 600_000


@pytest.mark.parametrize("source", [trickle, plain_trickle])
async def test_tiny_pieces_take_no_more_memory_than_large_ones(
    store: ImageStore, image: str, source: Callable[[int], Any]
) -> None:
    await store.set_big_data(image, "key", source(65_536))
    tracemalloc.start()
    try:
        await store.set_big_data(image, "key", source(10))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Kept one by one, 60,000 pieces would take 3 MiB.
    assert peak < 2 * 1024 * 1024
    assert await store.big_data(image, "key") == CONTENT[:SMALL]


@pytest.mark.parametrize("kind", [bytearray, memoryview])
async def test_a_source_may_reuse_its_buffer_for_the_next_piece(
    store: ImageStore, image: str, kind: Callable[[bytearray], Any]
) -> None:
    size = 512 * 1024

    async def pieces() -> AsyncIterator[Any]:
        buffer = bytearray(size)
        for number in range(4):
            buffer[:] = bytes([number]) * size
            yield buffer if kind is bytearray else memoryview(buffer)

    await store.set_big_data(image, "key", pieces())
    assert await store.big_data(image, "key") == b"".join(bytes([n]) * size for n in range(4))


BUFFERS: dict[str, Callable[[], Any]] = {
    "every other byte": lambda: memoryview(CONTENT[:5000])[::2],
    "backwards": lambda: memoryview(CONTENT[:5000])[::-1],
    "much, backwards": lambda: memoryview(CONTENT)[::-1],
    "numbers": lambda: array("I", range(1000)),
    "every other number": lambda: memoryview(array("I", range(1000)))[::2],
    "rows": lambda: memoryview(CONTENT[:5000]).cast("B", shape=[2, 2500]),
    "one number": lambda: c_int(7),
    "nothing": lambda: array("I"),
}


@pytest.mark.parametrize("buffer", BUFFERS.values(), ids=BUFFERS)
async def test_every_kind_of_buffer_is_stored_by_every_call(
    store: ImageStore, image: str, buffer: Callable[[], Any]
) -> None:
    expected = memoryview(buffer()).tobytes()

    async def pieces() -> AsyncIterator[Any]:
        yield buffer()
        yield buffer()

    await store.create("two", big_data={"created": buffer()})
    await store.set_big_data("two", "set", buffer())
    await store.set_big_data("two", "checked", buffer(), expected_size=len(expected))
    await store.set_big_data("two", "async", pieces())
    await store.set_big_data("two", "iterable", [buffer(), buffer()])
    async with store.stage() as staged, store.stage(buffer()) as whole:
        await staged.write(buffer())
        await staged.write(buffer())
        await store.set_big_data("two", "written", staged)
        await store.set_big_data("two", "staged", whole)
    async with store.transaction() as tx:
        await tx.set_big_data("two", "in a transaction", buffer())
        await tx.set_big_data("two", "checked there", buffer(), expected_size=len(expected))
    for key in await store.big_data_names("two"):
        times = 2 if key in {"async", "iterable", "written"} else 1
        assert await store.big_data("two", key) == expected * times, key


async def test_large_data_is_neither_hashed_nor_written_on_the_event_loop(
    store: ImageStore,
) -> None:
    """The guard of every test fails this one otherwise."""
    await store.create("one", big_data={"a": CONTENT, "b": bytearray(CONTENT)})
    await store.set_big_data("one", "c", memoryview(CONTENT), expected_digest=DIGEST)
    async with store.stage() as staged:
        await staged.write(CONTENT)
        assert staged.digest == DIGEST
        await store.set_big_data("one", "d", staged, expected_digest=DIGEST)
    async with store.transaction() as tx:
        await tx.create("two", big_data={"a": CONTENT, "b": CONTENT[:65_536]})
        await tx.set_big_data("one", "e", CONTENT, expected_size=len(CONTENT))
        assert await tx.big_data("two", "a") == CONTENT
    for key in "abcde":
        assert (await store.get("one")).big_data_digests[key] == DIGEST
        async with store.open_big_data("one", key, verify=True) as reader:
            assert await reader.read() == CONTENT


async def test_iterables_that_wait_keep_no_other_call_waiting(
    store: ImageStore, image: str
) -> None:
    go_on = threading.Event()
    waiting: list[int] = []

    def pieces(number: int) -> Iterator[bytes]:
        waiting.append(number)
        go_on.wait(60)
        yield b"data"

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(store.set_big_data, image, f"key{number}", pieces(number))
        try:
            await until(lambda: len(waiting) == 20)
            with anyio.fail_after(30):
                await store.set_big_data(image, "other", CONTENT)
                async with store.open_big_data(image, "other") as reader:
                    assert await reader.read() == CONTENT
        finally:
            go_on.set()
    assert len(await store.big_data_names(image)) == 21
