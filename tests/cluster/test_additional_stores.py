"""Additional stores, where the store or the additional one is a cluster's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aimagestore import (
    AdditionalStore,
    AmbiguousImageError,
    Image,
    ImageStore,
    StoreReadOnlyError,
    StoreUnavailableError,
    check,
)

for package in ("psycopg", "obstore"):
    pytest.importorskip(package, reason="needs the clients: pip install 'aimagestore[cluster]'")

from aimagestore._engine.protocol import Location
from aimagestore.cluster import ClusterLocation

from ..support.watching import kinds, replay, take

if TYPE_CHECKING:
    from .servers import Servers

MANIFEST = b'{"schemaVersion":2}'
LARGE = bytes(range(256)) * 10_000


@pytest.fixture(params=["own", "additional", "both"])
def locations(
    request: pytest.FixtureRequest, servers: Servers, tmp_path: Path
) -> Iterator[tuple[Path | Location, Path | Location]]:
    """The locations of a store and its additional one. ``param`` says which is a cluster's."""
    with servers.new_place() as own, servers.new_place() as additional:
        yield (
            tmp_path / "store" if request.param == "additional" else own.location(),
            tmp_path / "store-additional" if request.param == "own" else additional.location(),
        )


async def fill(additional: Path | Location) -> None:
    async with ImageStore(additional) as store:
        items = {"manifest": MANIFEST, "large": LARGE}
        await store.create("aa1", names=["a", "x"], big_data=items, flags={"f": [1]})
        await store.create("aa2", names=["b"], big_data={"manifest": MANIFEST})
        await store.create("aa3", names=["c"])


def shown(images: list[Image]) -> list[tuple[str, bool]]:
    return [(image.id, image.read_only) for image in images]


async def test_all_stores_are_seen_as_one(
    locations: tuple[Path | Location, Path | Location],
) -> None:
    own, additional = locations
    await fill(additional)
    async with ImageStore(own, additional_stores=[additional]) as store:
        await store.create("own", names=["x"])
        await store.set_metadata("aa2", "copied")
        expected = [("own", False), ("aa2", False), ("aa1", True), ("aa3", True)]
        assert shown(await store.images()) == expected
        for size in (1, 2, 100):
            pages = store.iter_images(page_size=size)
            assert shown([image async for image in pages]) == expected
        snapshot = await store.snapshot()
        assert (shown(list(snapshot)), len(snapshot)) == (expected, 4)
        assert await store.lookup("x") == "own"
        assert await store.lookup("a") == "aa1"
        assert await store.lookup("aa") == "aa2"  # the first store that has one
        await store.create("aa22")
        with pytest.raises(AmbiguousImageError):
            await store.lookup("aa")
        assert await store.lookup("sha256:aa3") == "aa3"
        image = await store.get("aa1")
        digest = image.digest
        assert image.flags == {"f": [1]}
        assert [image.id for image in await store.by_digest(digest)] == ["aa2", "aa1"]
        async with store.open_big_data("a", "large", verify=True) as reader:
            assert await reader.read() == LARGE
        assert await store.big_data("aa2", "manifest") == MANIFEST
        with pytest.raises(StoreReadOnlyError):
            await store.delete("aa1")
        async with store.transaction() as tx:
            image = await tx.set_big_data("aa1", "more", b"more")
            assert not image.read_only
            assert await tx.big_data("aa1", "large") == LARGE
            assert (await store.get("aa1")).read_only
            with pytest.raises(StoreReadOnlyError):
                await tx.delete("aa3")
        assert await store.get("aa1") == image
        assert image.names == ("a",)
        merged = await store.create("aa3", names=["n"], metadata="new")
        assert (merged.names, merged.metadata) == (("c", "n"), "new")
        await store.wipe()
        assert shown(await store.images()) == [("aa1", True), ("aa2", True), ("aa3", True)]
    async with ImageStore(own) as alone:
        assert await alone.images() == []
        await alone.collect_garbage()
    assert (await check(own, verify=True)).findings == ()
    assert (await check(additional, verify=True)).findings == ()


async def test_a_copy_has_its_items_in_the_store_itself(
    locations: tuple[Path | Location, Path | Location],
) -> None:
    own, additional = locations
    await fill(additional)
    async with ImageStore(own, additional_stores=[additional]) as store:
        image = await store.set_flag("a", "new", 1)
    async with ImageStore(own, read_only=True) as alone:
        assert await alone.images() == [image]
        assert await alone.big_data("aa1", "large") == LARGE
        assert await alone.big_data("aa1", "manifest") == MANIFEST


async def test_a_watch_yields_the_changes_of_all_stores(
    locations: tuple[Path | Location, Path | Location],
) -> None:
    own, additional = locations
    async with (
        ImageStore(additional) as other,
        ImageStore(own, additional_stores=[additional]) as store,
        store.watch() as watch,
    ):
        images: dict[str, Image] = {}
        steps: list[tuple[Callable[[], Awaitable[object]], str | None]] = [
            (lambda: other.create("i", big_data={"k": LARGE}), "created"),
            (lambda: store.set_metadata("i", "copied"), "changed"),
            (lambda: other.set_metadata("i", "hidden"), None),
            (lambda: store.delete("i"), "changed"),
            (lambda: other.set_metadata("i", "seen"), "changed"),
            (lambda: other.delete("i"), "deleted"),
        ]
        for change, kind in steps:
            await change()
            events = await take(watch, 0 if kind is None else 1)
            assert kinds(events) == ([] if kind is None else [(kind, "i")])
            replay(images, events)
            assert list(images.values()) == await store.images()


async def test_an_additional_cluster_that_cannot_be_reached_is_an_error_or_left_out(
    tmp_path: Path,
) -> None:
    unreachable = ClusterLocation("postgresql://127.0.0.1:1/none", "s3://bucket/none", deadline=1.0)
    with pytest.raises(StoreUnavailableError):
        async with ImageStore(tmp_path / "store", additional_stores=[unreachable]):
            pass
    optional = AdditionalStore(unreachable, required=False)
    async with ImageStore(tmp_path / "store", additional_stores=[optional]) as store:
        await store.create("one")
        assert shown(await store.images()) == [("one", False)]
