"""Big data: in and out in pieces, from every kind of source."""

from __future__ import annotations

import hashlib
import io
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.abc
import pytest

from aimagestore import (
    BigDataUnknownError,
    DigestMismatchError,
    ImageStore,
    ImageUnknownError,
    InvalidBigDataNameError,
    InvalidDigestError,
    SizeMismatchError,
    StoreClosedError,
)

from ..homes import Home

CONTENT = bytes(range(256)) * 12_000  # 3 MB, so that it comes in several chunks


DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
async def image(store: ImageStore) -> str:
    """An image without any item."""
    return (await store.create("image")).id


async def chunks(content: bytes = CONTENT, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


class AsyncReader:
    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    async def read(self, n: int = -1) -> bytes:
        await anyio.lowlevel.checkpoint()
        return self._file.read(n)


class Receiver:
    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    async def receive(self) -> bytes:
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


@pytest.mark.parametrize("source", SOURCES)
async def test_every_kind_of_source(store: ImageStore, image: str, source: str) -> None:
    progress: list[int] = []
    changed = await store.set_big_data(
        image,
        "key",
        SOURCES[source](),
        expected_digest=DIGEST,
        expected_size=len(CONTENT),
        progress=progress.append,
    )
    assert changed.big_data_sizes == {"key": len(CONTENT)}
    assert changed.big_data_digests == {"key": DIGEST}
    assert await store.big_data(image, "key") == CONTENT
    assert progress == sorted(progress)
    assert progress[-1] == len(CONTENT)


@pytest.mark.parametrize("source", ["text", 5, None, ["text"], object()])
async def test_what_is_no_source_is_refused(store: ImageStore, image: str, source: object) -> None:
    with pytest.raises(TypeError):
        await store.set_big_data(image, "key", source)
    assert await store.big_data_names(image) == []


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
async def test_expected_digests(store: ImageStore, image: str, algorithm: str) -> None:
    right = f"{algorithm}:{hashlib.new(algorithm, CONTENT).hexdigest()}"
    changed = await store.set_big_data(image, "key", chunks(), expected_digest=right)
    assert changed.big_data_digests == {"key": DIGEST}
    wrong = f"{algorithm}:{hashlib.new(algorithm, b'other').hexdigest()}"
    with pytest.raises(DigestMismatchError) as info:
        await store.set_big_data(image, "other", chunks(), expected_digest=wrong)
    assert (info.value.expected, info.value.actual) == (wrong, right)
    assert await store.big_data_names(image) == ["key"]


@pytest.mark.parametrize("size", [0, len(CONTENT) - 1, len(CONTENT) + 1])
async def test_expected_sizes(store: ImageStore, image: str, size: int) -> None:
    with pytest.raises(SizeMismatchError) as info:
        await store.set_big_data(image, "key", chunks(), expected_size=size)
    assert info.value.expected == size
    assert await store.big_data_names(image) == []


async def test_a_source_that_is_too_long_is_not_read_to_its_end(
    store: ImageStore, image: str
) -> None:
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 1
            yield b"x" * 1000

    with pytest.raises(SizeMismatchError):
        await store.set_big_data(image, "key", endless(), expected_size=5000)
    assert given == 6


async def test_bad_expectations(store: ImageStore, image: str) -> None:
    with pytest.raises(InvalidDigestError):
        await store.set_big_data(image, "key", b"", expected_digest="md5:1")
    with pytest.raises(ValueError, match="negative"):
        await store.set_big_data(image, "key", b"", expected_size=-1)
    with pytest.raises(ValueError, match="need data"):
        async with store.stage(expected_size=1):
            pass


async def test_unknown_images_and_items(store: ImageStore, image: str) -> None:
    for call in [
        store.big_data("nobody", "key"),
        store.set_big_data("nobody", "key", b""),
        store.big_data_names("nobody"),
        store.big_data_size("nobody", "key"),
        store.big_data_digest("nobody", "key"),
    ]:
        with pytest.raises(ImageUnknownError):
            await call
    for item in [
        store.big_data(image, "key"),
        store.big_data_size(image, "key"),
        store.big_data_digest(image, "key"),
    ]:
        with pytest.raises(BigDataUnknownError) as info:
            await item
        assert (info.value.id, info.value.key) == (image, "key")
    for key in ["", "..", "a/", "x" * 300]:
        with pytest.raises(InvalidBigDataNameError):
            await store.set_big_data(image, key, b"")
        with pytest.raises(InvalidBigDataNameError):
            await store.big_data(image, key)


async def test_an_image_deleted_while_data_streams(store: ImageStore, image: str) -> None:
    async def deleting() -> AsyncIterator[bytes]:
        yield b"x"
        await store.delete(image)
        yield b"y"

    with pytest.raises(ImageUnknownError):
        await store.set_big_data(image, "key", deleting())


async def test_reading_in_pieces(store: ImageStore, image: str) -> None:
    await store.set_big_data(image, "key", CONTENT)
    async with store.open_big_data(image, "key") as reader:
        assert (reader.size, reader.digest) == (len(CONTENT), DIGEST)
        assert await reader.read(10) == CONTENT[:10]
        assert await reader.seek(1000) == 1000
        assert await reader.read(10) == CONTENT[1000:1010]
        assert await reader.read() == CONTENT[1010:]
        assert await reader.read() == b""
        assert await reader.seek(0) == 0
        assert b"".join([chunk async for chunk in reader]) == CONTENT
        with pytest.raises(ValueError, match="negative"):
            await reader.seek(-1)


async def test_a_reader_keeps_its_content(store: ImageStore, image: str) -> None:
    await store.set_big_data(image, "key", CONTENT)
    async with store.open_big_data(image, "key", verify=True) as first:
        assert await first.read(10) == CONTENT[:10]
        await store.set_big_data(image, "key", b"other")
        async with store.open_big_data(image, "key", verify=True) as second:
            await store.delete(image)
            assert await second.read() == b"other"
        assert await first.read() == CONTENT[10:]


async def test_staged_data_survives_a_refusal(store: ImageStore, image: str) -> None:
    async with store.stage(b"data") as staged:
        with pytest.raises(ImageUnknownError):
            await store.set_big_data("nobody", "key", staged)
        with pytest.raises(DigestMismatchError):
            await store.set_big_data(image, "key", staged, expected_digest=DIGEST)
        with pytest.raises(ValueError, match="sha256"):
            await store.set_big_data(image, "key", staged, expected_digest="sha512:" + "0" * 128)
        async with store.transaction() as transaction:
            with pytest.raises(ImageUnknownError):
                transaction.set_big_data("nobody", "key", staged)
        await store.set_big_data(image, "key", staged)
    assert await store.big_data(image, "key") == b"data"


async def test_the_same_key_at_once_ends_with_one_of_them(store: ImageStore, image: str) -> None:
    async with anyio.create_task_group() as tasks:
        for i in range(10):
            tasks.start_soon(store.set_big_data, image, "key", b"%d" % i)
    digest = (await store.get(image)).big_data_digests["key"]
    data = await store.big_data(image, "key")
    assert digest == "sha256:" + hashlib.sha256(data).hexdigest()


async def test_what_was_written_may_be_changed_at_once(store: ImageStore, image: str) -> None:
    buffer = bytearray(CONTENT)
    async with store.stage() as staged:
        await staged.write(buffer)
        assert staged.digest == DIGEST
        buffer[:] = bytes(len(buffer))
        await store.set_big_data(image, "key", staged)
    assert await store.big_data(image, "key") == CONTENT


@pytest.mark.parametrize("verify", [False, True])
async def test_many_readers_take_less_at_a_time(
    store: ImageStore, image: str, verify: bool
) -> None:
    await store.set_big_data(image, "key", CONTENT)

    async def first_chunk(readers: int) -> int:
        async with AsyncExitStack() as stack:
            for _ in range(readers):
                opened = store.open_big_data(image, "key", verify=verify)
                reader = await stack.enter_async_context(opened)
            return len(await anext(reader))

    sizes = [await first_chunk(readers) for readers in (1, 4, 16, 100)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] >= 256 * 1024


async def test_streams_outlast_their_store(home: Home) -> None:
    store = ImageStore(home())
    async with store:
        await store.create("image", big_data={"key": CONTENT})
        async with AsyncExitStack() as stack:
            opened = store.open_big_data("image", "key", verify=True)
            reader = await stack.enter_async_context(opened)
            staged = await stack.enter_async_context(store.stage())
            await store.aclose()
            assert await reader.read() == CONTENT
            await staged.write(CONTENT)
            assert staged.digest == DIGEST
            with pytest.raises(StoreClosedError):
                await store.create("other", big_data={"key": staged})
