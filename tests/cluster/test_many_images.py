"""In a store of very many images no call loads all of them: PostgreSQL answers less than 1 MiB."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from aimagestore import AmbiguousImageError, ImageStore, ImageUnknownError, copy_images
from aimagestore.oci import export_layout, import_layout

from ..support.commands import run as command
from ..support.layouts import hello
from ..support.loops import EVERY_LOOP, NIGHTLY

if TYPE_CHECKING:
    from .proxy import Proxy
    from .servers import Place, Servers

MIB = 1024 * 1024
IMAGES = int(os.environ.get("AIMAGESTORE_IMAGES") or (200_000 if NIGHTLY else 20_000))

# Records of 1.5 kB. All IDs begin with the same digit: even the IDs alone are more than 1 MiB.
_FILL = f"""
    CREATE TEMPORARY TABLE new AS
        SELECT n, 'a' || right(encode(sha256(n::text::bytea), 'hex'), 63) AS id
        FROM generate_series(1, {IMAGES}) n;
    INSERT INTO images (id, place, record) SELECT id, n, format(
        '{{"id":"%1$s","digest":"sha256:%1$s","names":["example.com/%2$s:1"],"metadata":"%3$s",'
        '"big-data-names":["manifest"],"big-data-sizes":{{"manifest":2}},'
        '"big-data-digests":{{"manifest":"sha256:%1$s"}},"created":"2024-05-01T08:15:00Z"}}',
        id, n, repeat('x', 1100)
    ) FROM new;
    INSERT INTO image_names (name, image_id)
        SELECT sha256(convert_to('example.com/' || n || ':1', 'UTF8')), id FROM new;
    INSERT INTO image_digests (digest, image_id) SELECT 'sha256:' || id, id FROM new;
    INSERT INTO image_items (blob, image_id, key, size)
        SELECT gen_random_uuid(), id, 'manifest', 2 FROM new;
    UPDATE image_store SET images = {IMAGES}, last_place = {IMAGES};
    ANALYZE images, image_names, image_digests, image_items;
"""


def id_of(number: int) -> str:
    """Return the ID of an image, as the statements above make it."""
    return f"a{sha256(str(number).encode()).hexdigest()[1:]}"


def name_of(number: int) -> str:
    """Return the name of an image."""
    return f"example.com/{number}:1"


class Meter:
    """Measures the size of PostgreSQL's answers.

    :ivar place: the place of a store, whose records are reached through the meter
    """

    def __init__(self, place: Place, proxy: Proxy) -> None:
        self.place = place
        self._proxy = proxy

    @contextmanager
    def little(self) -> Iterator[None]:
        """Check that the answers in a block are less than 1 MiB."""
        before = self._proxy.answered
        yield
        assert 0 < self._proxy.answered - before < MIB


@pytest.fixture(scope="module")
def crowded(servers: Servers) -> Iterator[Place]:
    """A place with many images, whose items have no objects."""

    async def begin() -> None:
        async with ImageStore(place.location()):
            pass

    with servers.new_place() as place:
        anyio.run(begin)  # marks the place as a store's
        servers.postgres.execute(_FILL, (), place.database)
        yield place


@pytest.fixture
def meter(servers: Servers, crowded: Place, to_postgres: Proxy) -> Meter:
    """The place of many images, measured."""
    return Meter(servers.by_way_of(crowded, to_postgres.port), to_postgres)


async def test_opening_a_store_loads_little(meter: Meter) -> None:
    with meter.little():
        async with ImageStore(meter.place.location()):
            pass


async def test_a_lookup_loads_little(meter: Meter) -> None:
    one, digest = id_of(1), f"sha256:{id_of(1)}"
    async with ImageStore(meter.place.location()) as store:
        for ref in (one, name_of(1), one[:12], digest, f"example.com/1@{digest}"):
            with meter.little():
                assert (await store.get(ref)).id == one
            async with store.transaction() as tx:
                with meter.little():
                    assert await tx.lookup(ref) == one
        with meter.little():
            assert [image.id for image in await store.by_digest(digest)] == [one]
        with meter.little(), pytest.raises(ImageUnknownError):
            await store.get("unknown")
        with meter.little(), pytest.raises(AmbiguousImageError):
            await store.get("a")
        async with store.transaction() as tx:
            with meter.little(), pytest.raises(AmbiguousImageError):
                await tx.get("a")


async def test_a_change_loads_little(meter: Meter) -> None:
    async with ImageStore(meter.place.location()) as store, store.watch() as changes:
        with meter.little():
            image = await store.create(big_data={"manifest": b"{}"})
            assert (await anext(changes)).image == image
        with meter.little():
            await store.set_big_data(image.id, "manifest", b"[]")
        for owner in (image.id, id_of(2)):
            with meter.little():
                assert name_of(2) in (await store.add_names(owner, [name_of(2)])).names
        with meter.little():
            async with store.transaction() as tx:
                await tx.set_metadata(name_of(3), "text")
                await tx.delete(image.id)
        with meter.little():
            await store.touch()
            assert not await store.modified()
            assert not await store.refresh()


async def test_moving_an_image_loads_little(meter: Meter, tmp_path: Path) -> None:
    layout = hello().write(tmp_path / "layout")
    async with (
        ImageStore(meter.place.location()) as store,
        ImageStore(tmp_path / "store") as other,
    ):
        with meter.little():
            (imported,) = await import_layout(store, layout, names=["imported"])
            assert imported.is_new
        with meter.little():
            (imported,) = await import_layout(store, layout, names=["again"])
            assert not imported.is_new
        with meter.little():
            await export_layout(store, "imported", tmp_path / "exported")
        with meter.little():
            await copy_images(store, other, ["imported"])
        with meter.little():
            await store.delete("again")
            await copy_images(other, store)
            await store.delete("again")


def test_a_command_loads_little(meter: Meter, tmp_path: Path) -> None:
    root = f"{meter.place.records_url} {meter.place.blobs_url}"

    def run(*arguments: str) -> str:
        with meter.little():
            return command("--root", root, *arguments)

    assert id_of(4) in run("inspect", name_of(4))
    run("tag", name_of(4), "other")
    (image_id,) = run("import", str(hello().write(tmp_path / "layout"))).split()
    run("rm", image_id)


# One loop is enough, because tracing memory takes long.
@pytest.mark.parametrize("anyio_backend", EVERY_LOOP[:1])
async def test_iterating_holds_one_page(meter: Meter) -> None:
    async with ImageStore(meter.place.location()) as store:
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            number = 0
            images = store.iter_images(page_size=200)
            while number < IMAGES:
                with meter.little():
                    for _ in range(200):
                        number += 1
                        assert (await anext(images)).id == id_of(number)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert await anext(images, None) is None
    # All of them are many times as much.
    assert peak - before < 4 * MIB
