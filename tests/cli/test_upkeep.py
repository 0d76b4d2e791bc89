"""Commands that check, repair and clean a store."""

from __future__ import annotations

import fcntl
import os
import struct

import pytest

from ..support.foreign import foreign_writer, locked_by_another_process
from .conftest import Cli


@pytest.fixture
def image(cli: Cli) -> Cli:
    """An image with an item."""
    cli("create", "--id", "one", "--name", "a:1", "--data", "data=/dev/null")
    return cli


def test_nothing_found(image: Cli) -> None:
    assert image("check").lines == ["1 image, 1 item, 0 B read: nothing found"]
    assert image("check", "--json").json == {
        "ok": True,
        "images": 1,
        "items": 1,
        "bytes": 0,
        "findings": [],
    }
    assert image("repair").lines == ["0 repaired, 0 left"]
    assert image("gc").lines == ["0 removed, 0 B freed"]
    assert image("gc", "--json").json == {"bytes": 0, "removed": [], "stays": []}


def test_a_new_store_is_whole(cli: Cli) -> None:
    cli.root.mkdir()
    cli("check")


@pytest.mark.damage
def test_damage_is_found_and_dropped(image: Cli) -> None:
    file = image.root / "one" / "data"
    file.unlink()
    heading, row, summary = image("check", code=4).lines
    assert heading.split() == ["FINDING", "PATH", "KEY", "DETAIL"]
    assert row.split() == ["item-missing", str(file), "data"]
    assert summary.endswith("1 found")
    finding = {"kind": "item-missing", "id": "one", "key": "data", "path": str(file), "detail": ""}
    assert image("check", "--json", code=4).json["findings"] == [finding]
    assert image("digest", "one", "data").output
    assert image("repair", code=4).lines[0] == "0 repaired, 1 left"
    assert image("repair", "--json", code=4).json == {
        "ok": False,
        "repaired": [],
        "left": [finding],
    }
    repaired = image("repair", "--json", "--drop").json
    assert repaired["ok"]
    assert repaired["repaired"][0]["detail"] == "dropped from the record"
    image("check")


@pytest.mark.damage
def test_a_lost_index_is_rebuilt(cli: Cli) -> None:
    image_id = cli("create", "--data", "data=/dev/null").lines[0]
    (cli.root / "images.json").unlink()
    cli("images", code=4)
    cli("create", code=4)
    assert "1 found" in cli("check", "--no-verify", code=4).output
    assert cli("repair").lines[-1].endswith(" 0 left")
    assert cli("images", "--quiet", "--no-trunc").lines == [image_id]


@pytest.mark.damage
def test_gc_removes_an_unlisted_item(image: Cli) -> None:
    (image.root / "one" / "other").write_bytes(b"x" * 2000)
    assert image("repair", code=4).lines[0] == "0 repaired, 1 left"
    removed = image("gc").lines
    assert removed[-1] == "1 removed, 2 kB freed"
    assert removed[1].split() == ["item-unlisted", str(image.root / "one" / "other")]
    image("check")


@pytest.mark.damage
def test_gc_counts_what_it_cannot_remove(image: Cli) -> None:
    stale, other = "a" * 64, "b" * 64
    (image.root / stale / "/".join("d" * 101)).mkdir(parents=True)
    (image.root / other).mkdir()
    for options in (["--dry-run"], []):
        result = image("gc", "--json", *options, code=1)
        assert "1 finding cannot be removed" in result.errors
        assert [each["id"] for each in result.json["removed"]] == [other]
        (left,) = result.json["stays"]
        assert left["id"] == stale
        assert "remove them by hand" in left["detail"]
    assert image("gc", code=1).lines[-1] == "0 removed, 0 B freed"


@pytest.mark.damage
def test_a_lock_that_is_not_free(image: Cli) -> None:
    (image.root / "one" / "data").unlink()
    fd = os.open(image.root / "images.lock", os.O_RDONLY)
    try:
        # A reader's: a check waits for none of them.
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 0, 0))
        for arguments in (["tag", "one", "b:1"], ["gc"], ["repair"]):
            error = image("--lock-timeout", "0.05", *arguments, code=5).errors
            assert "lock" in error
            assert error.count("\n") == 1
    finally:
        os.close(fd)
    with locked_by_another_process(image.root) as process:
        for command in ("check", "repair"):
            error = image("--lock-timeout", "0.05", command, code=5).errors
            assert f"process {process.pid} holds it" in error
    image("--lock-timeout", "-1", "images", code=2)


@pytest.mark.damage
def test_a_read_beside_a_half_made_change_is_limited_too(image: Cli) -> None:
    with foreign_writer(image.root) as writer:
        writer.save({"id": "two", "created": "2024-01-01T00:00:00Z"})
        for arguments in (
            ["images"],
            ["inspect", "two"],
            ["df"],
            ["check"],
            ["prune", "--dry-run"],
        ):
            error = image("--lock-timeout", "0.05", *arguments, code=5).errors
            assert f"process {writer.process} holds it" in error
            assert "--lock-timeout" in error
