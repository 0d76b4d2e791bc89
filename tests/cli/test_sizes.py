"""The sizes of images in podman's store."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import anyio
import pytest

from aimagestore import ImageStore
from aimagestore._core.layers import Layer
from aimagestore._directory.record_file import RecordFile

from ..support.beside import Beside, container, layer
from .conftest import Cli

IMAGE = "1" * 64


@pytest.fixture
def beside(tmp_path: Path) -> Beside:
    """A store of podman's, with one image of two layers."""
    beside = Beside(tmp_path / "store")
    beside.write_layers(layer("base", size=3_000), layer("top", "base", 1_500_000))

    async def fill() -> None:
        async with ImageStore(beside.images) as store:
            await store.create(IMAGE, top_layer="top", big_data={"x": bytes(500)}, force=True)

    anyio.run(fill)
    return beside


def shown(cli: Cli) -> str:
    """The size in the table of images."""
    return cli("images").lines[1].split("  ")[-1].strip()


def test_the_size_of_an_image_is_that_of_layers_and_items(beside: Beside) -> None:
    cli = Cli(beside.images)
    assert shown(cli) == "1.5 MB"
    assert "Size:    1.5 MB (1.5 MB of layers, 500 B of items)" in cli("inspect", IMAGE).lines
    for command in (["images"], ["inspect", IMAGE]):
        (found,) = cli(*command, "--json").json
        assert (found["size"], found["layers_size"]) == (500, 1_503_000)


def test_a_size_that_is_not_all_known_says_so(beside: Beside) -> None:
    cli = Cli(beside.images)
    beside.write_layers(layer("base", size=None), layer("top", "base"))
    assert shown(cli) == ">500 B"
    assert "Size:    >500 B" in cli("inspect", IMAGE).lines
    assert cli("images", "--json").json[0]["layers_size"] is None


def test_images_are_listed_when_their_layers_cannot_be_read(beside: Beside) -> None:
    beside.write(beside.layers, "layers.json", "[")
    result = Cli(beside.images)("images")
    assert result.lines[1].endswith(" 500 B")
    assert "layers.json is damaged" in result.errors


def test_images_are_listed_when_others_may_not_read_the_layers(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: RecordFile[Layer]) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), file.path)

    monkeypatch.setattr(RecordFile, "read", refuse)
    result = Cli(beside.images)("images")
    assert result.lines[1].endswith(" 500 B")
    assert f"Permission denied: '{beside.layers}/layers.json'" in result.errors


def test_images_of_an_additional_store_have_their_layers_sizes(
    beside: Beside, tmp_path: Path
) -> None:
    (tmp_path / "plain").mkdir()
    cli = Cli(tmp_path / "plain")
    listed = cli("--additional-store", str(beside.images), "images").lines[1]
    assert listed.split()[-3:] == ["1.5", "MB", "true"]


def test_sizes_do_not_depend_on_containers(beside: Beside) -> None:
    beside.write(beside.containers, "containers.json", "[")
    assert shown(Cli(beside.images)) == "1.5 MB"


def test_an_image_that_a_container_uses_is_only_deleted_by_force(beside: Beside) -> None:
    cli = Cli(beside.images)
    beside.write_containers(container("c", IMAGE, "web"), volatile=True)
    refused = cli("rm", IMAGE, code=1)
    assert "is used by the container web: remove the container first" in refused.errors
    assert "or delete the image with --force" in refused.errors
    cli("exists", IMAGE)
    cli("rm", "--force", IMAGE)
    cli("exists", IMAGE, code=3)
