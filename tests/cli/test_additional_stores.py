"""Additional stores on the command line."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from aimagestore import ImageStore

from .conftest import Cli


@pytest.fixture
def additional(tmp_path: Path) -> Path:
    """The graph root of another store, with one image."""

    async def fill() -> None:
        async with ImageStore(tmp_path / "store-graph" / "vfs-images") as store:
            await store.create("below", names=["localhost/below:1"], big_data={"manifest": b"{}"})

    anyio.run(fill)
    return tmp_path / "store-graph"


def test_additional_stores_are_given_before_or_after_the_command(
    cli: Cli, additional: Path
) -> None:
    cli("create", "--id", "own", "--name", "localhost/own:1")
    assert "R/O" not in cli("images").output
    for arguments in (
        ("--additional-store", additional, "images"),
        ("images", "--additional-store", additional / "vfs-images"),
    ):
        header, *lines = cli(*arguments).lines
        assert header.split()[-1] == "R/O"
        assert {(line.split()[0], line.split()[-1]) for line in lines} == {
            *(("localhost/own", "false"), ("localhost/below", "true"))
        }
    found = cli("--additional-store", additional, "inspect", "--json", "below").json
    assert [image["read_only"] for image in found] == [True]


def test_additional_stores_may_be_given_before_and_after_the_command(
    cli: Cli, additional: Path, tmp_path: Path
) -> None:
    cli("create", "--id", "own")
    other = Cli(tmp_path / "other")
    other("create", "--id", "beside")
    given = ("--additional-store", additional, "images", "-q", "--additional-store", other.root)
    assert set(cli(*given).lines) == {"own", "below", "beside"}


def test_an_image_of_an_additional_store_is_copied_but_not_deleted(
    cli: Cli, additional: Path
) -> None:
    given = ("--additional-store", additional)
    cli("create", "--id", "own")
    errors = cli(*given, "rm", "below", code=1).errors
    assert str(additional / "vfs-images") in errors
    cli(*given, "tag", "below", "localhost/new:1")
    found = cli("inspect", "--json", "below").json
    assert [image["names"] for image in found] == [["localhost/new:1", "localhost/below:1"]]
    assert (cli.root / "below" / "manifest").read_bytes() == b"{}"


def test_a_missing_additional_store_is_an_error(cli: Cli, tmp_path: Path) -> None:
    cli("create", "--id", "own")
    errors = cli("--additional-store", tmp_path / "missing", "images", code=1).errors
    assert str(tmp_path / "missing") in errors
