"""Images are copied between stores of any kind whole, verified, and only once."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from aimagestore import (
    CopyResult,
    DigestMismatchError,
    ImageStore,
    ImageUnknownError,
    StoreReadOnlyError,
    check,
    copy_images,
)
from aimagestore._async.store import core_of
from aimagestore._core.record import Record

from ..support.buildah import FIXTURE, FIXTURE_ID
from ..support.interruptions import by_scope
from ..support.stores import StoreUnderTest, when_unchanged

# No call of the library could have written this: nanoseconds, large numbers, an unknown field.
RECORD = (
    b'{"id":"odd","names":["n"],"names-history":["n","o"],"layer":"l","mapped-layers":["m"],'
    b'"metadata":"{}","big-data-names":["k"],"big-data-sizes":{"k":1},'
    b'"created":"2020-01-01T00:00:00.123456789Z","flags":{"f":12345678901234567890.50},"x":[1.0]}'
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A store of three images: buildah's, one with an odd record, and one without items."""
    path = tmp_path / "source" / "store"
    shutil.copytree(FIXTURE, path)
    index = (path / "images.json").read_bytes()
    more = RECORD + b',{"id":"bare","created":"2020-01-01T00:00:00Z"}'
    (path / "images.json").write_bytes(index.rstrip()[:-1] + b"," + more + b"]")
    (path / "odd").mkdir()
    (path / "odd" / "k").write_bytes(b"x")
    return path


@pytest.fixture
async def there(source: Path, where: StoreUnderTest) -> AsyncIterator[ImageStore]:
    """That store, open for reading, and closed before the other is checked."""
    async with ImageStore(source, read_only=True) as store:
        yield store


async def test_images_are_copied_byte_for_byte(
    there: ImageStore, store: ImageStore, source: Path
) -> None:
    reported: list[tuple[int, int | None]] = []
    size = sum(sum(image.big_data_sizes.values()) for image in await there.images())
    copied = await copy_images(there, store, progress=lambda *figures: reported.append(figures))
    assert copied == CopyResult(images=3, present=0, bytes=size)
    for record in await records_of(there):
        assert await raw_record(store, record.id) == bytes(record.raw)
    assert await raw_record(store, "odd") == RECORD
    assert {i.id for i in await store.images()} == {i.id for i in await there.images()}
    for image in await store.images():
        for key in image.big_data_names:
            assert await store.big_data(image.id, key) == await there.big_data(image.id, key)
    assert reported[-1] == (size, size)
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)


async def records_of(store: ImageStore) -> list[Record]:
    return await core_of(store).read(lambda view: list(view.records()))


async def raw_record(store: ImageStore, image_id: str) -> bytes:
    return bytes(next(r for r in await records_of(store) if r.id == image_id).raw)


async def test_images_that_are_copied_back_are_unchanged(
    there: ImageStore, store: ImageStore, tmp_path: Path
) -> None:
    await copy_images(there, store)
    async with ImageStore(tmp_path / "back" / "store") as back:
        assert (await copy_images(store, back)).images == 3
        for record in await records_of(there):
            assert await raw_record(back, record.id) == bytes(record.raw)
    assert (await check(tmp_path / "back" / "store")).ok


async def test_present_images_are_not_copied_again(
    there: ImageStore, store: ImageStore, where: StoreUnderTest
) -> None:
    await copy_images(there, store)
    before = await when_unchanged(where.contents)
    assert await copy_images(there, store) == CopyResult(present=3)
    assert where.contents() == before
    # A changed name copies no data; a changed item copies the image.
    await store.set_names(FIXTURE_ID, ["other"])
    assert await copy_images(there, store) == CopyResult(images=1, present=2)
    await store.set_big_data(FIXTURE_ID, "manifest", b"other")
    copied = await copy_images(there, store)
    assert (copied.images, copied.present) == (1, 2)
    assert await store.get(FIXTURE_ID) == await there.get(FIXTURE_ID)


async def test_items_that_the_source_lacks_are_removed(
    there: ImageStore, store: ImageStore
) -> None:
    await copy_images(there, store, ["bare"])
    await store.set_big_data("bare", "mine", b"mine")
    await copy_images(there, store, ["bare"])
    assert (await store.get("bare")).big_data_names == ()


async def test_names_move_and_other_images_stay(there: ImageStore, store: ImageStore) -> None:
    await store.create("mine", names=["n", "kept"], big_data={"k": b"mine"})
    await copy_images(there, store, ["n"])
    assert (await store.get("mine")).names == ("kept",)
    assert (await store.get("n")).id == "odd"
    assert await store.big_data("mine", "k") == b"mine"
    assert len(await store.images()) == 2


async def test_only_the_given_images_are_copied(there: ImageStore, store: ImageStore) -> None:
    assert (await copy_images(there, store, ["ba", "n", "bare"])).images == 2
    assert {image.id for image in await store.images()} == {"bare", "odd"}
    with pytest.raises(ImageUnknownError, match="nobody"):
        await copy_images(there, store, ["bare", "nobody"])
    assert await copy_images(there, store, []) == CopyResult()


async def test_invalid_copies_are_refused(there: ImageStore, store: ImageStore) -> None:
    with pytest.raises(StoreReadOnlyError):
        await copy_images(store, there)
    with pytest.raises(ValueError, match="two stores"):
        await copy_images(store, store)
    with pytest.raises(TypeError):
        await copy_images(there, store, "bare")


@pytest.mark.parametrize("damage", ["altered", "missing"])
async def test_damage_stops_copying_and_is_named(
    there: ImageStore, store: ImageStore, source: Path, damage: str
) -> None:
    manifest = source / FIXTURE_ID / "manifest"
    if damage == "altered":
        manifest.write_bytes(manifest.read_bytes().replace(b"sha256", b"SHA256"))
    else:
        manifest.unlink()
    with pytest.raises((DigestMismatchError, FileNotFoundError), match="manifest"):
        await copy_images(there, store)
    assert not await store.exists(FIXTURE_ID)
    await copy_images(there, store, ["odd", "bare"])
    assert {image.id for image in await store.images()} == {"odd", "bare"}


async def test_images_are_copied_whole_while_the_source_changes(
    source: Path, store: ImageStore
) -> None:
    async with ImageStore(source) as there:
        for number in range(40):
            await there.create(f"image{number:02}", big_data={"k": b"%d" % number})

        async def change() -> None:
            for number in range(40):
                await there.set_big_data(f"image{number:02}", "k", b"new %d" % number)
                if number % 4 == 0:
                    await there.delete(f"image{number:02}")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(change)
            await copy_images(there, store)
        # The fixture checks that what was copied is whole. Copying again brings it up to date.
        await copy_images(there, store)
        for image in await there.images():
            assert await store.get(image.id) == image


async def test_concurrent_copies_make_each_image_once(
    there: ImageStore, store: ImageStore, where: StoreUnderTest
) -> None:
    async with ImageStore(where.location) as other, anyio.create_task_group() as tasks:
        tasks.start_soon(copy_images, there, store)
        tasks.start_soon(copy_images, there, other)
    assert sorted(image.id for image in await store.images()) == sorted(
        image.id for image in await there.images()
    )


async def test_copying_resumes_after_a_cancellation_at_any_step(
    there: ImageStore, where: StoreUnderTest
) -> None:
    for step in range(1, 300):
        where.clear()
        async with ImageStore(where.location) as store:
            is_interrupted = await by_scope(partial(copy_images, there, store), step)
            await where.until_no_garbage()
            await anyio.to_thread.run_sync(where.check_intact)
            before = len(await store.images())
            copied = await copy_images(there, store)
            assert (copied.images, copied.present) == (3 - before, before)
            assert await store.get(FIXTURE_ID) == await there.get(FIXTURE_ID)
        if not is_interrupted:
            return
    raise AssertionError("it never completed")
