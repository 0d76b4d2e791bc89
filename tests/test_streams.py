"""Streams in both directions, and the threads that work ahead of a task or behind it."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from aimagestore import BigDataReader, DigestMismatchError, ImageStore, StoreClosedError
from aimagestore._async import streams
from aimagestore._async.read_ahead import PIECES, ReadAhead
from aimagestore._directory import staged
from aimagestore._engine.digesting import WORTH_HELP, Digester
from aimagestore._engine.items import Source
from aimagestore._engine.workers import WorkerPool

from .support.gates import Gate

CHUNK = 64 * 1024
CONTENT = random.Random(0).randbytes(10 * CHUNK + 5)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have readers read small chunks, so that small items have many."""
    monkeypatch.setattr(streams, "_chunk_size", lambda readers, *, verify: CHUNK)


@pytest.fixture
async def image(store: ImageStore) -> str:
    """An image with an item."""
    return (await store.create("image", big_data={"key": CONTENT})).id


class Reads:
    """Counts the reads of items, and calls a function before each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.before: Callable[[], object] = lambda: None
        read = Source.read

        def counted(source: Source, size: int | None = -1) -> bytes:
            self.count += 1
            self.before()
            return read(source, size)

        monkeypatch.setattr(Source, "read", counted)

    async def until(self, count: int) -> None:
        """Return 20 ms after this number of reads, so that a further one would show."""
        with anyio.fail_after(20):
            while self.count < count:
                await anyio.sleep(0.001)
        await anyio.sleep(0.02)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


async def test_a_stream_is_read_ahead_by_no_more_than_some_pieces(
    store: ImageStore, image: str, reads: Reads
) -> None:
    async with store.open_big_data(image, "key") as reader:
        first = await anext(reader)
        await reads.until(1)
        assert reads.count == 1  # one piece may be all that the caller wants
        second = await anext(reader)
        await reads.until(2 + PIECES)
        assert reads.count == 2 + PIECES
        rest = [chunk async for chunk in reader]
    assert b"".join([first, second, *rest]) == CONTENT


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("seed", range(5))
async def test_calls_of_all_kinds_give_the_content_in_order(
    store: ImageStore, image: str, seed: int, *, verify: bool
) -> None:
    choices = random.Random(seed)
    async with store.open_big_data(image, "key", verify=verify) as reader:
        position = 0
        while position < len(CONTENT):
            size = choices.choice([1, 1000, CHUNK, 3 * CHUNK])
            data = b""
            match choices.choice(["next", "receive", "read", "read", "seek"]):
                case "next":
                    data = await anext(reader)
                case "receive":
                    data = await reader.receive(size)
                case "read":
                    data = await reader.read(size)
                    assert len(data) == min(size, len(CONTENT) - position)
                case "seek" if not verify and choices.random() < 0.5:
                    position = choices.randrange(len(CONTENT))
                    assert await reader.seek(position) == position
            assert CONTENT.startswith(data, position)
            position += len(data)
        assert await reader.read() == b""
        with pytest.raises(StopAsyncIteration):
            await anext(reader)


async def test_a_cancelled_call_takes_nothing_that_is_read_ahead(
    store: ImageStore, image: str, reads: Reads
) -> None:
    gate = Gate()
    async with store.open_big_data(image, "key") as reader:
        found = [await anext(reader)]
        reads.before = gate
        with anyio.move_on_after(0.05) as scope:
            await anext(reader)
        assert scope.cancelled_caught
        gate.open()
        found += [chunk async for chunk in reader]
    assert b"".join(found) == CONTENT


@pytest.mark.parametrize("late", ["read", "seek"])
@pytest.mark.parametrize("later", ["read", "seek", "receive"])
async def test_a_cancelled_call_does_not_move_the_position_after_later_calls(
    store: ImageStore, image: str, monkeypatch: pytest.MonkeyPatch, late: str, later: str
) -> None:
    gate, ended = Gate(), threading.Event()
    call = getattr(ReadAhead, late)

    def gated(ahead: ReadAhead, argument: int) -> object:
        monkeypatch.undo()
        gate()
        try:
            return call(ahead, argument)
        finally:
            ended.set()

    async with store.open_big_data(image, "key") as reader:
        monkeypatch.setattr(ReadAhead, late, gated)
        with anyio.move_on_after(0.05) as scope:
            await getattr(reader, late)(1000)
        assert scope.cancelled_caught
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_open_soon, gate)
            if later == "seek":
                await reader.seek(5)
                start = CONTENT[5:15]
            else:
                start = await getattr(reader, later)(10)
        await to_thread.run_sync(ended.wait)
        data = await reader.read(10)
    position = CONTENT.index(start) + (0 if later == "seek" else 10)
    assert data == CONTENT[position : position + 10]


async def _open_soon(gate: Gate) -> None:
    await anyio.sleep(0.05)
    gate.open()


async def test_a_ready_piece_can_be_cancelled_and_lets_other_tasks_run(
    store: ImageStore, image: str, reads: Reads
) -> None:
    async with store.open_big_data(image, "key") as reader:
        found = [await anext(reader), await anext(reader)]
        await reads.until(2 + PIECES)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anext(reader)
        assert scope.cancelled_caught
        async with anyio.create_task_group() as tasks:
            ran: list[bool] = []
            tasks.start_soon(_note, ran)
            found += [await anext(reader), await anext(reader)]
            assert ran
        found += [chunk async for chunk in reader]
    assert b"".join(found) == CONTENT


async def _note(ran: list[bool]) -> None:
    ran.append(True)


async def test_an_error_comes_after_the_pieces_before_it_and_reading_goes_on(
    store: ImageStore, image: str, reads: Reads
) -> None:
    def fail() -> None:
        if reads.count == 4:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    reads.before = fail
    async with store.open_big_data(image, "key") as reader:
        found = [await anext(reader) for _ in range(3)]
        with pytest.raises(OSError, match="Input/output error"):
            await anext(reader)
        found += [chunk async for chunk in reader]
    assert b"".join(found) == CONTENT


async def test_a_read_that_fails_takes_nothing_that_is_read_ahead(
    store: ImageStore, image: str, reads: Reads
) -> None:
    def fail() -> None:
        if reads.count == 2 + PIECES:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with store.open_big_data(image, "key") as reader:
        found = [await anext(reader), await reader.receive(10), await reader.receive(10)]
        await reads.until(1 + PIECES)
        reads.before = fail
        with pytest.raises(OSError, match="Input/output error"):
            await reader.read()
        found.append(await reader.read())
    assert b"".join(found) == CONTENT


@pytest.mark.damage
async def test_the_last_piece_of_altered_content_is_never_given(
    store: ImageStore, image: str
) -> None:
    async with store.open_big_data(image, "key") as reader:
        assert reader.path is not None
        file = os.readlink(reader.path)
    os.truncate(file, len(CONTENT) - 1)
    async with store.open_big_data(image, "key", verify=True) as reader:
        size = 0
        with pytest.raises(DigestMismatchError):
            async for chunk in reader:
                size += len(chunk)
        assert size == 10 * CHUNK
        with pytest.raises(DigestMismatchError):
            await reader.read()


@pytest.mark.damage
async def test_content_that_is_cut_off_while_it_is_open_is_noticed(
    store: ImageStore, image: str
) -> None:
    async with store.open_big_data(image, "key") as reader:
        assert reader.path is not None
        file = os.readlink(reader.path)
    for rest in (CHUNK, 0):
        async with store.open_big_data(image, "key", verify=True) as reader:
            assert await reader.read(1000) == CONTENT[:1000]
            os.truncate(file, rest)
            with pytest.raises(DigestMismatchError):
                await reader.read()
        Path(file).write_bytes(CONTENT)


async def test_a_reader_that_is_closed_while_it_reads_ahead_closes_its_file(
    store: ImageStore, image: str, reads: Reads
) -> None:
    gate = Gate()
    async with store.open_big_data(image, "key") as reader:
        await anext(reader)
        path = reader.path
        assert path is not None
        file = os.readlink(path)
        reads.before = gate
        with anyio.move_on_after(0.05):
            await anext(reader)
    gate.open()
    with anyio.fail_after(20):
        while os.path.exists(path) and os.readlink(path) == file:
            await anyio.sleep(0.001)


async def test_a_read_whose_reader_is_closed_before_it_begins_is_refused(
    store: ImageStore, image: str, reads: Reads
) -> None:
    gate = Gate()

    async def read(reader: BigDataReader) -> None:
        with pytest.raises(StoreClosedError, match="reader is closed"):
            await reader.read()

    async with anyio.create_task_group() as tasks:
        async with store.open_big_data(image, "key") as reader:
            reads.before = gate
            tasks.start_soon(read, reader)
            await reads.until(1)
        gate.open()


class Writes:
    """Calls a function before each write to staged content."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before: Callable[[], object] = lambda: None
        append = staged._Sink.append

        def observed(sink: staged._Sink, fd: int, piece: bytes | memoryview) -> None:
            self.before()
            append(sink, fd, piece)

        monkeypatch.setattr(staged._Sink, "append", observed)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    return Writes(monkeypatch)


async def test_a_source_gives_its_next_piece_while_one_is_written(
    store: ImageStore, image: str, writes: Writes
) -> None:
    writes.before = gate = Gate()

    async def pieces() -> AsyncIterator[bytes]:
        yield CONTENT
        await to_thread.run_sync(gate.reached.wait, 20)
        gate.open()
        yield CONTENT

    with anyio.fail_after(10):
        await store.set_big_data(image, "key", pieces())
    assert await store.big_data(image, "key") == 2 * CONTENT


@pytest.mark.parametrize(
    ("streams", "size"), [(1, 1 << 20), (8, (16 << 20) // 3 // 8), (40, 1 << 18)]
)
async def test_the_more_streams_are_written_the_smaller_are_their_pieces(
    store: ImageStore, image: str, monkeypatch: pytest.MonkeyPatch, streams: int, size: int
) -> None:
    sizes: list[int] = []
    append = staged._Sink.append

    def observed(sink: staged._Sink, fd: int, piece: bytes | memoryview) -> None:
        sizes.append(len(piece))
        append(sink, fd, piece)

    monkeypatch.setattr(staged._Sink, "append", observed)
    async with AsyncExitStack() as stack:
        for _ in range(streams - 1):
            await stack.enter_async_context(store.stage())
        await store.set_big_data(image, "key", bytes(4 << 20))
    assert max(sizes) == size
    assert sum(sizes) == 4 << 20


async def test_a_write_that_fails_while_the_source_waits_fails_the_call(
    store: ImageStore, image: str, writes: Writes
) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writes.before = fail
    with pytest.raises(OSError, match="No space left"):
        await store.set_big_data(image, "other", [CONTENT])
    assert await store.big_data_names(image) == ["key"]


async def test_a_call_that_is_cancelled_while_it_writes_leaves_no_file_open(
    store: ImageStore, image: str, writes: Writes
) -> None:
    writes.before = gate = Gate()

    async def pieces() -> AsyncIterator[bytes]:
        yield CONTENT
        await anyio.sleep_forever()

    before = set(os.listdir("/proc/self/fd"))
    with anyio.move_on_after(0.05) as scope:
        await store.set_big_data(image, "other", pieces())
    assert scope.cancelled_caught
    gate.open()
    with anyio.fail_after(20):
        while not set(os.listdir("/proc/self/fd")) <= before:
            await anyio.sleep(0.001)
    assert await store.big_data_names(image) == ["key"]


class _LateDigester(Digester):
    """Hashes nothing before it must."""

    def __init__(self, helpers: Executor) -> None:
        super().__init__(helpers)
        self._late: list[memoryview] = []

    def add(self, piece: Any) -> None:
        self._late.append(piece)

    def finish(self) -> None:
        for piece in self._late:
            super().add(piece)
        self._late.clear()
        super().finish()


async def test_a_buffer_may_change_after_it_was_written(
    store: ImageStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged, "Digester", _LateDigester)
    buffer = bytearray(CONTENT)
    async with store.stage() as item:
        for _ in range(2):
            await item.write(buffer)
            buffer.reverse()
        await store.set_big_data(image, "key", item)
    changed = await store.get(image)
    expected = CONTENT + CONTENT[::-1]
    assert changed.big_data_digests["key"] == f"sha256:{hashlib.sha256(expected).hexdigest()}"
    assert await store.big_data(image, "key") == expected


class _BusyHelpers(Executor):
    """Helpers that begin no call."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return Future()


def _pieces() -> list[bytes]:
    sizes = [1, WORTH_HELP, 3 * WORTH_HELP, WORTH_HELP - 1, 2 * WORTH_HELP] * 20
    return [random.Random(n).randbytes(size) for n, size in enumerate(sizes)]


@pytest.mark.parametrize("are_busy", [False, True])
def test_pieces_are_digested_in_order_whether_or_not_a_helper_has_time(*, are_busy: bool) -> None:
    helpers = _BusyHelpers() if are_busy else WorkerPool(4, "helper")
    digester = Digester(helpers)
    for piece in _pieces():
        digester.add(piece)
    digester.finish()
    assert digester.digest == f"sha256:{hashlib.sha256(b''.join(_pieces())).hexdigest()}"
    helpers.shutdown()


def test_a_helper_has_no_more_than_two_pieces() -> None:
    pool = WorkerPool(1, "helper")
    gate = Gate()
    pool.submit(gate)
    digester = Digester(_Unstoppable(pool))
    digester.add(bytes(WORTH_HELP))
    digester.add(bytes(WORTH_HELP))
    third = threading.Thread(target=digester.add, args=(bytes(WORTH_HELP),))
    third.start()
    third.join(0.05)
    assert third.is_alive()
    gate.open()
    third.join(20)
    digester.finish()
    assert digester.digest == f"sha256:{hashlib.sha256(bytes(3 * WORTH_HELP)).hexdigest()}"
    pool.shutdown()


class _FailingHash:
    """A hash object that has no memory."""

    def update(self, piece: bytes) -> None:
        raise MemoryError("no more")


@pytest.mark.timeout(60)
def test_a_failure_of_a_helper_is_raised_by_each_later_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = WorkerPool(1, "helper")
    digester = Digester(_Unstoppable(pool))
    monkeypatch.setattr(digester, "_hash", _FailingHash())
    digester.add(bytes(WORTH_HELP))
    for _ in range(2):
        with pytest.raises(MemoryError, match="no more"):
            digester.finish()
    pool.shutdown()


class _Unstoppable(Executor):
    """Helpers whose calls cannot be cancelled."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = self._pool.submit(fn, *args, **kwargs)
        future.cancel = lambda: False  # type: ignore[method-assign]
        return future
