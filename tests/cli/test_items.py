"""Commands about items: data in and out, from and to files."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from .conftest import Cli
from .test_records import sha256

LARGE = bytes(range(256)) * 4096 * 5


@pytest.fixture
def image(cli: Cli) -> Cli:
    """An image."""
    cli("create", "--id", "one", "--name", "a:1")
    return cli


def test_in_and_out(image: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(LARGE)
    assert image("put", "a:1", "data", tmp_path / "in").output == ""
    image("get", "one", "data", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == LARGE
    assert image("digest", "one", "data").lines == [sha256(LARGE)]
    assert image("digest", "one", "data", "--json").json == {
        "id": "one",
        "key": "data",
        "digest": sha256(LARGE),
    }
    assert sorted(os.listdir(tmp_path)) == ["in", "out", "store"]


def test_to_standard_output(image: Cli, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    image("put", "one", "empty", "/dev/null")
    image("get", "one", "empty")
    assert capfdbinary.readouterr().out == b""


def test_an_item_without_a_recorded_digest_is_written_too(image: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"{}")
    image("put", "one", "data", tmp_path / "in")
    index = image.root / "images.json"
    (record,) = json.loads(index.read_bytes())
    del record["big-data-digests"]
    index.write_text(json.dumps([record]))
    image("get", "one", "data", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"{}"


def test_the_digest_of_an_image(image: Cli, tmp_path: Path) -> None:
    assert "has no digest" in image("digest", "one", code=3).errors
    (tmp_path / "in").write_bytes(b"{}")
    image("put", "one", "manifest", tmp_path / "in")
    assert image("digest", "a:1").lines == [sha256(b"{}")]
    assert image("digest", "a:1", "--json").json["key"] is None


def test_an_unknown_item(image: Cli, tmp_path: Path) -> None:
    image("get", "one", "nothing", tmp_path / "out", code=3)
    image("get", "nobody", "nothing", tmp_path / "out", code=3)
    image("digest", "one", "nothing", code=3)
    image("put", "nobody", "data", "/dev/null", code=3)
    image("put", "one", "", "/dev/null", code=1)
    assert os.listdir(tmp_path) == ["store"]


def test_a_file_that_cannot_be_had(image: Cli, tmp_path: Path) -> None:
    image("put", "one", "data", tmp_path / "missing", code=1)
    image("put", "one", "data", "/dev/null")
    error = image("get", "one", "data", tmp_path / "missing" / "out", code=1).errors
    assert error.endswith("No such file or directory\n")
    for command in ("get", "put"):
        error = image(command, "one", "data", tmp_path, code=1).errors
        assert error == f"aimagestore: {tmp_path}: Is a directory\n"
    assert os.listdir(tmp_path) == ["store"]


@pytest.mark.damage
def test_damaged_data_never_takes_a_files_place(image: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"data")
    image("put", "one", "data", tmp_path / "in")
    (image.root / "one" / "data").write_bytes(b"DATA")
    (tmp_path / "out").write_bytes(b"before")
    assert "digest" in image("get", "one", "data", tmp_path / "out", code=4).errors
    assert (tmp_path / "out").read_bytes() == b"before"
    image("get", "one", "data", tmp_path / "out", "--no-verify")
    assert (tmp_path / "out").read_bytes() == b"DATA"
    (image.root / "one" / "data").unlink()
    image("get", "one", "data", tmp_path / "out", code=4)
    assert sorted(os.listdir(tmp_path)) == ["in", "out", "store"]


def test_a_replaced_file_keeps_its_permissions_and_links(image: Cli, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"before")
    (tmp_path / "target").chmod(0o640)
    (tmp_path / "link").symlink_to("target")
    image("put", "one", "data", "/dev/null")
    image("get", "one", "data", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b""
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o640
    mask = os.umask(0)
    os.umask(mask)
    image("get", "one", "data", tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~mask


def test_a_device_is_written_to_and_stays(image: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"data")
    image("put", "one", "data", tmp_path / "in")
    image("get", "one", "data", "/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
