"""Big data is stored from every kind of source, and read whole and in pieces."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from aimagestore import (
    BigDataSource,
    BigDataUnknownError,
    DigestMismatchError,
    DigestUnknownError,
    ImageStore,
    ImageUnknownError,
    InvalidBigDataNameError,
    InvalidDigestError,
    SizeMismatchError,
    StagedItem,
    StoreClosedError,
)

from ..support.sources import CONTENT, DIGEST, SOURCES, chunks
from ..support.stores import ClusterStore, StoreUnderTest, until


@pytest.fixture
async def image(store: ImageStore) -> str:
    """The ID of an image without items."""
    return (await store.create("image")).id


@pytest.mark.parametrize("source", SOURCES)
async def test_data_is_stored_from_every_kind_of_source(
    store: ImageStore, image: str, source: str
) -> None:
    progress: list[tuple[int, int | None]] = []
    changed = await store.set_big_data(
        image,
        "key",
        SOURCES[source](),
        expected_digest=DIGEST,
        expected_size=len(CONTENT),
        progress=lambda done, total: progress.append((done, total)),
    )
    assert changed.big_data_sizes == {"key": len(CONTENT)}
    assert changed.big_data_digests == {"key": DIGEST}
    assert await store.big_data(image, "key") == CONTENT
    assert progress == sorted(progress)
    assert progress[-1] == (len(CONTENT), len(CONTENT))
    assert {total for _, total in progress} == {len(CONTENT)}


@pytest.mark.parametrize("source", ["text", 5, None, ["text"], object()])
async def test_an_object_that_is_not_a_source_is_refused(
    store: ImageStore, image: str, source: object
) -> None:
    with pytest.raises(TypeError):
        await store.set_big_data(image, "key", source)  # type: ignore[arg-type]
    assert await store.big_data_names(image) == []


async def test_no_stream_is_read_if_other_data_of_a_new_image_cannot_be_used(
    store: ImageStore,
) -> None:
    is_read = False

    async def stream() -> AsyncIterator[bytes]:
        nonlocal is_read
        is_read = True
        yield CONTENT

    async with store.stage(CONTENT) as used:
        await store.create("image", big_data={"key": used})
        unusable: list[Any] = ["text", 5, None, object(), used]
        async with store.transaction() as tx:
            for data in unusable:
                with pytest.raises((TypeError, ValueError)):
                    await tx.create("new", big_data={"first": stream(), "second": data})
        for data in unusable:
            with pytest.raises((TypeError, ValueError)):
                await store.create("new", big_data={"first": stream(), "second": data})
    assert not is_read
    assert not await store.exists("new")


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
async def test_data_with_another_digest_than_expected_is_refused(
    store: ImageStore, image: str, algorithm: str
) -> None:
    right = f"{algorithm}:{hashlib.new(algorithm, CONTENT).hexdigest()}"
    changed = await store.set_big_data(image, "key", chunks(), expected_digest=right)
    assert changed.big_data_digests == {"key": DIGEST}
    wrong = f"{algorithm}:{hashlib.new(algorithm, b'other').hexdigest()}"
    with pytest.raises(DigestMismatchError) as info:
        await store.set_big_data(image, "other", chunks(), expected_digest=wrong)
    assert (info.value.expected, info.value.actual) == (wrong, right)
    assert await store.big_data_names(image) == ["key"]


@pytest.mark.parametrize("size", [0, len(CONTENT) - 1, len(CONTENT) + 1])
async def test_data_with_another_size_than_expected_is_refused(
    store: ImageStore, image: str, size: int
) -> None:
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


async def test_invalid_expectations_are_refused(store: ImageStore, image: str) -> None:
    with pytest.raises(InvalidDigestError):
        await store.set_big_data(image, "key", b"", expected_digest="md5:1")
    with pytest.raises(ValueError, match="expected_size"):
        await store.set_big_data(image, "key", b"", expected_size=-1)
    with pytest.raises(ValueError, match="need data"):
        async with store.stage(expected_size=1):
            pass


async def test_unknown_images_and_items_have_errors_of_their_own(
    store: ImageStore, image: str
) -> None:
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


async def test_a_path_for_servers_leads_to_the_content_that_was_opened(
    store: ImageStore, image: str, where: StoreUnderTest
) -> None:
    await store.set_big_data(image, "key", b"old")
    async with store.open_big_data(image, "key", start=1) as reader:
        if isinstance(where, ClusterStore):
            assert reader.path is None
            return
        assert reader.path is not None
        await store.set_big_data(image, "key", b"new")
        await store.delete(image)
        descriptor = os.open(reader.path, os.O_RDONLY)
        try:
            assert os.read(descriptor, 10) == b"old"
        finally:
            os.close(descriptor)
        assert await reader.read() == b"ld"
    with pytest.raises(StoreClosedError):
        _ = reader.path


async def test_data_that_is_verified_has_no_path(store: ImageStore, image: str) -> None:
    await store.set_big_data(image, "key", b"data")
    async with store.open_big_data(image, "key", verify=True) as reader:
        assert reader.path is None


async def test_data_for_an_image_that_is_deleted_meanwhile_is_refused(
    store: ImageStore, image: str
) -> None:
    async def deleting() -> AsyncIterator[bytes]:
        yield b"x"
        await store.delete(image)
        yield b"y"

    with pytest.raises(ImageUnknownError):
        await store.set_big_data(image, "key", deleting())


async def test_an_item_is_read_in_pieces_from_any_position(store: ImageStore, image: str) -> None:
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
        with pytest.raises(ValueError, match="max_bytes"):
            await reader.receive(0)


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
                await transaction.set_big_data("nobody", "key", staged)
        await store.set_big_data(image, "key", staged)
    assert await store.big_data(image, "key") == b"data"


async def test_of_concurrent_changes_of_one_item_one_remains_whole(
    store: ImageStore, image: str
) -> None:
    async with anyio.create_task_group() as tasks:
        for i in range(10):
            tasks.start_soon(store.set_big_data, image, "key", b"%d" % i)
    digest = (await store.get(image)).big_data_digests["key"]
    data = await store.big_data(image, "key")
    assert digest == "sha256:" + hashlib.sha256(data).hexdigest()


async def test_a_buffer_may_be_reused_after_a_write(store: ImageStore, image: str) -> None:
    buffer = bytearray(CONTENT)
    async with store.stage() as staged:
        await staged.write(buffer)
        assert staged.digest == DIGEST
        buffer[:] = bytes(len(buffer))
        await store.set_big_data(image, "key", staged)
    assert await store.big_data(image, "key") == CONTENT


@pytest.mark.parametrize("verify", [False, True])
async def test_the_more_readers_are_open_the_smaller_are_their_pieces(
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


async def test_closing_a_store_closes_its_readers_and_discards_its_staged_items(
    where: StoreUnderTest,
) -> None:
    store = ImageStore(where.location)
    async with store:
        await store.create("image", big_data={"key": CONTENT})
        async with AsyncExitStack() as stack:
            opened = store.open_big_data("image", "key", verify=True)
            reader = await stack.enter_async_context(opened)
            staged = await stack.enter_async_context(store.stage(CONTENT))
            await store.aclose()
            for call in (reader.read(), reader.receive(), reader.seek(0), anext(reader)):
                with pytest.raises(StoreClosedError):
                    await call
            with pytest.raises(StoreClosedError):
                await staged.write(CONTENT)
            with pytest.raises(StoreClosedError):
                await store.create("other", big_data={"key": staged})
    await where.until_no_garbage()


async def test_a_reader_is_closed_at_the_end_of_its_block(store: ImageStore, image: str) -> None:
    await store.set_big_data(image, "key", CONTENT)
    async with store.open_big_data(image, "key") as reader:
        await reader.read(5)
    for call in (reader.read(5), reader.receive(), reader.seek(0), anext(reader)):
        with pytest.raises(StoreClosedError):
            await call


async def test_an_item_may_be_empty(store: ImageStore, image: str) -> None:
    sources: list[BigDataSource] = [b"", [], chunks(b"")]
    for source in sources:
        changed = await store.set_big_data(image, "key", source)
        assert changed.big_data_sizes == {"key": 0}
        assert await store.big_data(image, "key") == b""
        async with store.open_big_data(image, "key", verify=True) as reader:
            assert [chunk async for chunk in reader] == []


async def test_replacing_a_manifest_keeps_the_digest_of_the_image(
    store: ImageStore, where: StoreUnderTest, image: str
) -> None:
    await store.set_big_data(image, "manifest", b"one")
    changed = await store.set_big_data(image, "manifest", b"two!")
    one, two = ("sha256:" + hashlib.sha256(data).hexdigest() for data in (b"one", b"two!"))
    assert changed.digest == one
    assert changed.digests == (one, two)
    assert changed.big_data_sizes == {"manifest": 4}
    assert await store.big_data(image, "manifest") == b"two!"
    await where.until_no_garbage()


async def test_a_source_that_fails_leaves_nothing(
    store: ImageStore, where: StoreUnderTest, image: str
) -> None:
    async def failing() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield CONTENT
        raise ConnectionError("lost")

    before = where.contents()
    with pytest.raises(ConnectionError):
        await store.set_big_data(image, "key", failing())
    assert await store.big_data_names(image) == []
    await where.until_no_garbage()
    # A cluster's store forgets an object a moment after it has removed it.
    await until(lambda: where.contents() == before)


async def test_sizes_and_digests_that_are_not_recorded_are_measured(where: StoreUnderTest) -> None:
    async with ImageStore(where.location) as store:
        await store.create("image", big_data={"key": CONTENT})
    where.remove_measures("image")
    async with ImageStore(where.location, read_only=True) as store:
        assert await store.big_data_size("image", "key") == len(CONTENT)
        assert await store.big_data_digest("image", "key") == DIGEST
        assert (await store.get("image")).big_data_sizes == {}
        with pytest.raises(DigestUnknownError):
            async with store.open_big_data("image", "key", verify=True):
                pass
    async with ImageStore(where.location) as store:
        async with store.transaction():
            assert await store.big_data_digest("image", "key") == DIGEST
        assert (await store.get("image")).big_data_digests == {}
        assert await store.big_data_digest("image", "key") == DIGEST
        assert (await store.get("image")).big_data_digests == {"key": DIGEST}
        assert (await store.get("image")).big_data_sizes == {"key": len(CONTENT)}


async def test_staged_data_is_used_once(store: ImageStore, where: StoreUnderTest) -> None:
    async with store.stage() as staged:
        for start in range(0, len(CONTENT), 500_000):
            await staged.write(CONTENT[start : start + 500_000])
        assert (staged.size, staged.digest) == (len(CONTENT), DIGEST)
        image = await store.create("image", big_data={"key": staged, "other": b"x"})
        assert image.big_data_digests["key"] == DIGEST
        with pytest.raises(ValueError, match="used once"):
            await staged.write(b"more")
        with pytest.raises(ValueError, match="used once"):
            await store.set_big_data("image", "again", staged)
    assert await store.big_data("image", "key") == CONTENT
    async with store.stage(chunks(), expected_digest=DIGEST) as staged:
        await store.set_big_data("image", "third", staged, expected_digest=DIGEST)
    assert await store.big_data("image", "third") == CONTENT
    await where.until_no_garbage()


async def test_more_data_can_be_written_to_a_staged_item(
    store: ImageStore, where: StoreUnderTest
) -> None:
    async with store.stage(CONTENT) as staged:
        await staged.write(b", and more")
        assert staged.size == len(CONTENT) + 10
        await store.create("one", big_data={"key": staged})
    async with store.open_big_data("one", "key", verify=True) as reader:
        assert await reader.read() == CONTENT + b", and more"
    await where.until_no_garbage()


async def test_unused_staged_data_is_removed(store: ImageStore, where: StoreUnderTest) -> None:
    kept: list[StagedItem] = []
    for content in (CONTENT, CONTENT * 4):
        with pytest.raises(RuntimeError, match="mine"):
            async with store.stage() as staged:
                await staged.write(content)
                kept.append(staged)
                raise RuntimeError("mine")
        with pytest.raises(RuntimeError, match="mine"):
            async with store.stage(content) as staged:
                raise RuntimeError("mine")
    await where.until_no_garbage()
    with pytest.raises(ValueError, match="used once"):
        await store.create(big_data={"key": kept[0]})
