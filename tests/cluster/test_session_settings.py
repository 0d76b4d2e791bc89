"""Settings of the role, the database or the environment do not change what a store reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aimagestore import ImageStore, check

from .drills import shorten_grace_period, until_collected

if TYPE_CHECKING:
    from .servers import Place, Servers

pytest.importorskip("psycopg")


async def assert_works(place: Place) -> None:
    """Check that texts, bytes and dates are written and read as they are."""
    async with ImageStore(place.location()) as store:
        image = await store.create(
            "one", names=["名前"], metadata="Größe →", big_data={"ключ": b"1"}
        )
        assert await store.get("名前") == image
        assert await store.big_data("名前", "ключ") == b"1"
        assert (await check(place.location())).ok
        await store.delete("名前")
        await shorten_grace_period(place)
        assert [finding.key for finding in (await until_collected(store)).findings] == ["ключ"]


@pytest.mark.parametrize(
    "setting",
    [
        "client_encoding = 'LATIN1'",
        "client_encoding = 'SQL_ASCII'",
        "datestyle = 'German'",
        "datestyle = 'SQL, DMY'",
        "standard_conforming_strings = off",
    ],
)
async def test_a_setting_of_the_database_changes_nothing(
    servers: Servers, place: Place, setting: str
) -> None:
    await servers.execute(place, f"ALTER DATABASE {place.database} SET {setting}")
    await assert_works(place)


async def test_an_encoding_in_the_environment_changes_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    await assert_works(place)
