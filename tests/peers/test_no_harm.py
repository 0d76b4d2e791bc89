"""What changes by this library mean for podman, in podman's own store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aimagestore import ImageStore, PodmanFailsError, oci

from ..cli.conftest import Cli
from .generation import GENERATION
from .tools import PreparedStores, Tools, require

pytestmark = pytest.mark.peers

NAME = "localhost/hello:1"


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """One loop is enough to try what podman does."""
    return str(request.param)


def make_hello(tools: Tools) -> None:
    tools.commit(NAME, "hello")


@pytest.fixture
def tools(short_path: Path, prepared: PreparedStores) -> Tools:
    """The tools, with an image that buildah has committed."""
    require("podman", "buildah")
    return prepared.copy(make_hello, short_path)


def layers_of(tools: Tools) -> list[str]:
    layers = tools.graph / "vfs-layers" / "layers.json"
    return [layer["id"] for layer in json.loads(layers.read_bytes())]


async def test_podman_fails_for_an_image_that_is_refused_here(tools: Tools) -> None:
    image_id = tools.inspect(NAME)["Id"]
    async with ImageStore(tools.image_store) as store:
        with pytest.raises(PodmanFailsError, match="podman images would fail"):
            await store.create(names=["localhost/bare:1"])
        assert tools.names() == {image_id: [NAME]}
        await store.create(names=["localhost/bare:1"], force=True)
        with pytest.raises(AssertionError, match=r"[Ee]rror"):
            tools.names()
        await store.delete("localhost/bare:1")
        assert tools.names() == {image_id: [NAME]}


async def test_podman_lists_an_import_without_layers_but_loads_the_image_only_after_its_removal(
    tools: Tools, caplog: pytest.LogCaptureFixture
) -> None:
    image_id = tools.inspect(NAME)["Id"]
    archive = tools.root / "archive.tar"
    tools.podman("save", "--quiet", "--format", "oci-archive", "--output", str(archive), NAME)
    tools.podman("rmi", NAME)
    tools.commit("localhost/other:1", "other")
    async with ImageStore(tools.image_store) as store:
        await oci.import_layout(store, archive)
    assert "can neither run it, nor load or pull it, before podman rmi" in caplog.text
    assert tools.names()[image_id] == [NAME]
    load = ("load", "--quiet", "--input", str(archive))
    with pytest.raises(AssertionError, match="different top layer"):
        tools.podman(*load)
    tools.podman("rmi", NAME)
    tools.podman(*load)
    assert tools.names()[image_id] == [NAME]
    assert tools.inspect(NAME)["RootFS"]["Layers"]


@pytest.mark.parametrize("with_podman", [True, False])
def test_layers_of_an_image_removed_here_stay_until_podmans_storage_is_repaired(
    tools: Tools, *, with_podman: bool
) -> None:
    other = tools.inspect(tools.commit("localhost/other:1", "other"))["Id"]
    before = set(layers_of(tools))
    assert len(before) == 2
    result = Cli(tools.graph)("rm", NAME)
    assert f"layers stay in {tools.graph / 'vfs-layers'}: podman rmi" in result.errors
    assert "podman system check --repair --max 0s" in result.errors
    tools.podman("image", "prune", "--all", "--force", "--filter", "until=1h")
    tools.podman("system", "prune", "--force")
    if GENERATION != "bookworm":
        tools.podman("system", "prune", "--external", "--force")
    assert set(layers_of(tools)) == before
    repairing = ("check", "--repair", "--max", "0s")
    if GENERATION == "bookworm":
        with pytest.raises(AssertionError, match="unknown flag"):
            tools.podman("system", *repairing)
    elif with_podman:
        tools.podman("system", *repairing)
    else:
        require("containers-storage")
        tools.containers_storage(*repairing)
    left = 2 if GENERATION == "bookworm" else 1
    assert len(layers_of(tools)) == left
    # podman removes an image with its layers.
    tools.podman("rmi", other)
    assert len(layers_of(tools)) == left - 1


def test_images_without_layers_are_removed_without_a_warning(tools: Tools) -> None:
    cli = Cli(tools.graph)
    (image_id,) = cli("create", "--name", "localhost/bare:1", "--force").lines
    assert cli("rm", image_id).errors == ""
