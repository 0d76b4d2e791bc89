"""The statements for operators on the page about clusters do what the page says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from aimagestore import ImageStore, StoreReadOnlyError, StoreUnavailableError

from ..support.pages import blocks, page

if TYPE_CHECKING:
    from .servers import Place, Servers

ROLES, GRANTS, WATCHED = blocks(page("cluster"), "sql")
NAMES = ("images_owner", "images_writer", "images_reader")


@pytest.fixture
def owned(servers: Servers) -> Iterator[Place]:
    """The database and roles that the page has an administrator make, with tables."""
    from aimagestore.cluster import migrate

    from .servers import Place

    postgres = servers.postgres
    for statement in _statements(ROLES):
        postgres.execute(statement)
    for name in NAMES:
        postgres.execute(f"ALTER ROLE {name} PASSWORD '{postgres.password}'")
    # Each test has a prefix of its own, because its database is another store.
    place = Place(postgres.url("images"), servers.local.blobs_url(f"images-{uuid4()}"))
    migrate(_as(place, "images_owner").records_url)
    for statement in _statements(GRANTS):
        postgres.execute(statement, database="images")
    yield place
    postgres.drop_database("images")
    for name in NAMES:
        postgres.execute(f"DROP ROLE {name}")


def _statements(text: str) -> list[Any]:
    return [part for part in re.split(r";\n", text) if part.strip()]


def _as(place: Place, role: str) -> Place:
    return replace(place, records_url=place.records_url.replace("//postgres@", f"//{role}@"))


async def test_the_roles_of_the_page_have_all_privileges_that_they_need(owned: Place) -> None:
    reader = ImageStore(_as(owned, "images_reader").location(), read_only=True)
    async with ImageStore(_as(owned, "images_writer").location()) as store, reader:
        async with reader.watch() as changes:
            image = await store.create("one", names=["name"], big_data={"manifest": b"m"})
            assert (await anext(changes)).id == "one"
        async with store.transaction() as transaction:
            await transaction.set_big_data("one", "manifest", b"n")
            await transaction.create("two", names=["other"])
        await store.add_names("two", ["name"])
        await store.set_metadata("one", "text")
        await store.delete("one")
        await store.touch()
        await store.collect_garbage()
        assert await reader.lookup("name") == "two"
        with pytest.raises(StoreReadOnlyError):
            await reader.create()
        assert await reader.images() == await store.images() != [image]


async def test_a_reader_cannot_write(owned: Place) -> None:
    async with ImageStore(_as(owned, "images_writer").location()) as store:
        await store.create("one")
    async with ImageStore(_as(owned, "images_reader").location()) as store:
        with pytest.raises(StoreUnavailableError, match="permission denied"):
            await store.create("two")
    async with ImageStore(owned.location()) as store:
        assert [image.id for image in await store.images()] == ["one"]


async def test_the_statements_for_monitoring_return_figures(servers: Servers, place: Place) -> None:
    async with ImageStore(place.location()) as store:
        await store.create("one", big_data={"manifest": b"m"})
        await store.set_big_data("one", "manifest", b"n")
        found = [await servers.execute(place, statement) for statement in _statements(WATCHED)]
    assert found[0][0][:2] == (2, 1)
    assert found[1] == []
    assert found[2][0][0] == 1
