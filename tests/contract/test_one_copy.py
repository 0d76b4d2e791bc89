"""Content of several items is kept once, and content that the store has is not read again."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from aimagestore import CopyResult, DigestMismatchError, ImageStore, check, copy_images
from aimagestore.oci import import_layout

from ..support.layouts import Maker, digest_of
from ..support.sources import CONTENT, DIGEST, chunks
from ..support.stores import StoreUnderTest, until


def unread() -> Iterator[bytes]:
    """Fail when it is read, as a source of content that the store has must not be."""
    raise AssertionError("the store has this content")
    yield b""


async def until_copies(where: StoreUnderTest, number: int) -> None:
    """Return when the store has this number of copies; it may remove others after a call."""
    await until(lambda: where.copies() == number)


@pytest.fixture
async def first(store: ImageStore) -> str:
    """An image with the content."""
    return (await store.create("first", big_data={"layer": CONTENT})).id


async def test_equal_items_of_a_new_image_are_one_copy(
    store: ImageStore, where: StoreUnderTest
) -> None:
    await store.create("image", big_data={"one": b"equal", "two": b"equal", "three": b"other"})
    await until_copies(where, 2)
    assert await store.big_data("image", "two") == b"equal"


@pytest.mark.usefixtures("first")
async def test_content_that_turns_out_to_be_there_is_not_kept_again(
    store: ImageStore, where: StoreUnderTest
) -> None:
    await store.create("created", big_data={"key": CONTENT})
    await store.create("streamed")
    await store.set_big_data("streamed", "key", chunks())
    async with store.stage() as staged:
        await staged.write(CONTENT[:1000])
        await staged.write(CONTENT[1000:])
        await store.create("staged", big_data={"key": staged})
    async with store.transaction() as tx:
        await tx.create("in a transaction", big_data={"key": CONTENT})
    await until_copies(where, 1)
    for image in ["created", "streamed", "staged", "in a transaction"]:
        assert await store.big_data(image, "key") == CONTENT


@pytest.mark.usefixtures("first")
async def test_data_whose_digest_is_there_is_not_read(
    store: ImageStore, where: StoreUnderTest
) -> None:
    progress: list[tuple[int, int | None]] = []
    await store.create("image")
    image = await store.set_big_data(
        "image",
        "key",
        unread(),
        expected_digest=DIGEST,
        progress=lambda done, total: progress.append((done, total)),
    )
    assert image.big_data_sizes == {"key": len(CONTENT)}
    assert image.big_data_digests == {"key": DIGEST}
    assert progress == [(len(CONTENT), len(CONTENT))]
    size = len(CONTENT)
    async with store.stage(unread(), expected_digest=DIGEST, expected_size=size) as staged:
        assert (staged.size, staged.digest) == (size, DIGEST)
        await store.set_big_data("image", "staged", staged)
    await until_copies(where, 1)
    assert await store.big_data("image", "key") == CONTENT
    assert await store.big_data("image", "staged") == CONTENT


@pytest.mark.usefixtures("first")
async def test_another_size_than_that_of_the_known_content_is_refused(store: ImageStore) -> None:
    await store.create("image")
    wrong = len(CONTENT) + 1
    with pytest.raises(ValueError, match="expected"):
        await store.set_big_data(
            "image", "key", chunks(), expected_digest=DIGEST, expected_size=wrong
        )
    assert await store.big_data_names("image") == []


async def test_an_item_outlives_the_one_that_it_is_like(
    store: ImageStore, where: StoreUnderTest, first: str
) -> None:
    await store.create("second", big_data={"key": CONTENT})
    await store.delete(first)
    assert await store.big_data("second", "key") == CONTENT
    await store.set_big_data("second", "other", CONTENT)
    await store.set_big_data("second", "key", b"replaced")
    assert await store.big_data("second", "other") == CONTENT
    assert (await check(where.location, verify=True)).ok


async def test_staged_content_outlives_the_item_that_it_was_found_in(
    store: ImageStore, first: str
) -> None:
    async with store.stage(unread(), expected_digest=DIGEST) as staged:
        await store.delete(first)
        await store.create("second", big_data={"key": staged})
    assert await store.big_data("second", "key") == CONTENT


@pytest.mark.parametrize("is_known", [True, False], ids=["known before", "found out"])
async def test_writing_on_behind_content_of_the_store_changes_no_other_item(
    store: ImageStore, where: StoreUnderTest, first: str, is_known: bool
) -> None:
    known = store.stage(unread(), expected_digest=DIGEST)
    async with known if is_known else store.stage(CONTENT) as staged:
        await staged.write(b"more")
        assert (staged.size, staged.digest) == (len(CONTENT) + 4, digest_of(CONTENT + b"more"))
        await store.create("second", big_data={"key": staged})
    assert await store.big_data("second", "key") == CONTENT + b"more"
    assert await store.big_data(first, "layer") == CONTENT
    assert (await check(where.location, verify=True)).ok


async def test_an_item_that_gets_the_content_it_has(
    store: ImageStore, where: StoreUnderTest, first: str
) -> None:
    before = await store.get(first)
    assert await store.set_big_data(first, "layer", CONTENT) == before
    assert await store.set_big_data(first, "layer", unread(), expected_digest=DIGEST) == before
    assert await store.big_data(first, "layer") == CONTENT
    await until_copies(where, 1)
    await where.until_no_garbage()


async def test_one_item_gets_the_content_of_another(
    store: ImageStore, where: StoreUnderTest, first: str
) -> None:
    await store.set_big_data(first, "other", b"small")
    await store.set_big_data(first, "other", CONTENT)
    assert await store.big_data(first, "other") == CONTENT
    await store.set_big_data(first, "layer", b"small")
    assert await store.big_data(first, "layer") == b"small"
    assert await store.big_data(first, "other") == CONTENT
    assert (await check(where.location, verify=True)).ok


@pytest.mark.damage
async def test_damaged_content_is_not_used_again(
    store: ImageStore, where: StoreUnderTest, first: str
) -> None:
    where.damage(first, "layer")
    await store.create("second", big_data={"key": CONTENT})
    assert await store.big_data("second", "key") == CONTENT
    where.damage("second", "key")
    await store.create("third")
    await store.set_big_data("third", "key", chunks(), expected_digest=DIGEST)
    assert await store.big_data("third", "key") == CONTENT


@pytest.mark.damage
async def test_damaged_content_does_not_hide_data_that_is_wrong(
    store: ImageStore, where: StoreUnderTest, first: str
) -> None:
    where.damage(first, "layer")
    await store.create("second")
    with pytest.raises(DigestMismatchError):
        await store.set_big_data("second", "key", b"wrong", expected_digest=DIGEST)


async def test_tasks_that_store_the_same_at_once_keep_one_copy(
    store: ImageStore, where: StoreUnderTest
) -> None:
    async def create(number: int) -> None:
        await store.create(f"image{number}")
        await store.set_big_data(f"image{number}", "key", chunks())

    async with anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(create, number)
    await until_copies(where, 1)
    await where.until_no_garbage()


async def test_images_that_are_copied_share_what_the_destination_has(
    store: ImageStore, where: StoreUnderTest, tmp_path: Path, first: str
) -> None:
    async with ImageStore(tmp_path / "source") as source:
        for number in range(20):
            layers = {"layer": CONTENT, "base": b"b" * 100_000, "own": b"%d" % number}
            await source.create(f"copied{number}", big_data=layers)
        # Content that the destination has is not read: it may even be missing.
        for path in (tmp_path / "source").glob("*/layer"):
            path.unlink()
        result = await copy_images(source, store)
    own = sum(len(str(number)) for number in range(20))
    assert result == CopyResult(20, 0, 100_000 + own)
    await until_copies(where, 2 + 20)
    assert await store.big_data("copied7", "layer") == CONTENT
    assert await store.big_data(first, "layer") == CONTENT
    assert (await check(where.location, verify=True)).ok


@pytest.fixture
async def layouts(tmp_path: Path) -> AsyncIterator[list[Path]]:
    """Two layouts of ten images each, with ten layers in common and one of their own."""
    made = []
    for number in range(2):
        maker = Maker()
        shared = [b"%d" % layer + b"s" * 100_000 for layer in range(10)]
        for image in range(10):
            own = b"own layer %d of %d" % (image, number)
            config = {"created": f"2024-01-{image + 1:02}T00:00:0{number}Z"}
            maker.enter(maker.image(*shared, own, config=config), f"image{number}-{image}:1")
        made.append(maker.write(tmp_path / f"layout{number}"))
    yield made
    for path in made:
        shutil.rmtree(path)


async def test_images_on_one_base_take_the_space_of_one_base(
    store: ImageStore, where: StoreUnderTest, layouts: list[Path]
) -> None:
    imported = await import_layout(store, layouts[0])
    # A manifest, a config and a layer are an image's own.
    await until_copies(where, 10 + 10 * 3)
    assert imported[0].stored > 10 * 100_000
    assert all(each.stored < 10_000 for each in imported[1:])
    for path in (layouts[1] / "blobs" / "sha256").iterdir():
        if path.stat().st_size > 100_000:
            path.write_bytes(bytes(path.stat().st_size))  # reading it would fail
    imported = await import_layout(store, layouts[1])
    await until_copies(where, 10 + 20 * 3)
    assert all(each.stored < 10_000 for each in imported)
    assert (await check(where.location, verify=True)).ok


async def test_a_small_item_is_not_read_again(
    store: ImageStore, where: StoreUnderTest, tmp_path: Path
) -> None:
    maker = Maker()
    maker.enter(maker.image(b"small", b"first"), "first:1")
    await import_layout(store, maker.write(tmp_path / "first"))
    maker = Maker()
    config = {"created": "2024-01-01T00:00:00Z"}
    maker.enter(maker.image(b"small", b"second", config=config), "second:1")
    layout = maker.write(tmp_path / "second")
    (layout / "blobs" / digest_of(b"small").replace(":", "/")).write_bytes(b"wrong")
    (second,) = await import_layout(store, layout)
    assert await store.big_data(second.image.id, digest_of(b"small")) == b"small"
    assert (await check(where.location, verify=True)).ok
