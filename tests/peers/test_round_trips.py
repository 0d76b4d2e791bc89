"""Images that buildah has committed are changed here, and podman and skopeo use them again."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimagestore import ImageStore, ImageUnknownError

from .tools import PreparedStores, Tools, require, run

pytestmark = pytest.mark.peers

NAME = "localhost/hello:1"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Two loops are enough to try what other programs read."""
    return str(request.param)


def make_hello(tools: Tools) -> None:
    tools.commit(NAME, "hello")


@pytest.fixture(params=["vfs", "overlay"])
def tools(
    request: pytest.FixtureRequest, short_path: Path, prepared: PreparedStores
) -> Iterator[Tools]:
    """The tools, with an image that buildah has committed."""
    require("podman", "buildah", "skopeo")
    if request.param == "vfs":
        yield prepared.copy(make_hello, short_path)
        return
    tools = Tools(short_path, request.param)
    try:
        make_hello(tools)
    except AssertionError as error:
        pytest.skip(f"needs overlay mounts: {error}")
    yield tools
    # podman leaves its overlay directory mounted on itself.
    mount = str(tools.graph / tools.driver)
    subprocess.run(["umount", mount], capture_output=True, check=False)


async def test_an_image_that_buildah_committed_is_found_and_verified(tools: Tools) -> None:
    (image_id,) = tools.names()
    inspected = tools.inspect(NAME)
    async with ImageStore(tools.image_store, read_only=True) as store:
        image = await store.get(NAME)
        assert image.id == image_id
        assert image.names == (NAME,)
        assert image.digest == inspected["Digest"]
        assert await store.get(image_id) == image
        assert await store.get(image_id[:12]) == image
        assert await store.by_digest(image.digest) == [image]
        for key in image.big_data_names:
            async with store.open_big_data(image.id, key, verify=True) as reader:
                assert len(await reader.read()) == image.big_data_sizes[key]
        manifest = json.loads(await store.big_data(NAME, "manifest"))
        config_digest = manifest["config"]["digest"]
        config = await store.big_data(NAME, config_digest)
    assert config_digest == f"sha256:{image_id}"
    assert hashlib.sha256(config).hexdigest() == image_id
    assert json.loads(config)["rootfs"]["diff_ids"] == inspected["RootFS"]["Layers"]
    layers = tools.graph / f"{tools.driver}-layers" / "layers.json"
    assert image.top_layer in {layer["id"] for layer in json.loads(layers.read_text())}


async def test_names_changed_here_are_seen_by_podman_and_back(tools: Tools) -> None:
    first = tools.inspect(NAME)["Id"]
    second = tools.commit("localhost/other:1", "other")
    async with ImageStore(tools.image_store) as store:
        await store.add_names(NAME, ["localhost/added:1", "localhost/added:2"])
        assert tools.names()[first] == ["localhost/added:1", "localhost/added:2", NAME]
        assert tools.inspect("localhost/added:2")["Id"] == first

        await store.add_names(second, ["localhost/added:2"])
        assert tools.inspect("localhost/added:2")["Id"] == second
        assert tools.names() == {
            first: ["localhost/added:1", NAME],
            second: ["localhost/added:2", "localhost/other:1"],
        }

        await store.remove_names(first, ["localhost/added:1"])
        assert tools.inspect(first)["RepoTags"] == [NAME]
        await store.set_names(second, ["localhost/new:1"])
        assert tools.inspect(second)["RepoTags"] == ["localhost/new:1"]
        assert tools.inspect(second)["NamesHistory"] == list(
            (await store.get(second)).names_history
        )

        tools.podman("tag", second, "localhost/tagged:1")
        assert await store.lookup("localhost/tagged:1") == second
        tools.podman("untag", second, "localhost/new:1")
        assert (await store.get(second)).names == ("localhost/tagged:1",)


async def test_podman_and_this_library_see_each_others_deletions(tools: Tools) -> None:
    first = tools.inspect(NAME)["Id"]
    second = tools.commit("localhost/other:1", "other")
    async with ImageStore(tools.image_store) as store:
        await store.delete(first)
        assert list(tools.names()) == [second]
        tools.podman("rmi", second)
        assert await store.images() == []
        with pytest.raises(ImageUnknownError):
            await store.get(second)
    assert tools.names() == {}
    assert sorted(path.name for path in tools.image_store.iterdir()) == [
        "images.json",
        "images.lock",
    ]


async def test_skopeo_copies_an_image_that_was_changed_here(tools: Tools, tmp_path: Path) -> None:
    async with ImageStore(tools.image_store) as store:
        image = await store.get(NAME)
        await store.set_metadata(image.id, image.metadata + " ")
        await store.set_flag(image.id, "checked", {"by": ["us", 1.5]})
        await store.set_big_data(image.id, "note", b"of ours")
        await store.set_names(image.id, ["localhost/renamed:1", "localhost/renamed:2"])
        manifest = await store.big_data(image.id, "manifest")
        await store.set_big_data(image.id, "manifest", manifest)
        config = await store.big_data(image.id, f"sha256:{image.id}")
    source = f"{tools.reference}localhost/renamed:2"
    run("skopeo", "copy", "--quiet", source, f"dir:{tmp_path / 'dir'}")
    assert (tmp_path / "dir" / "manifest.json").read_bytes() == manifest
    assert (tmp_path / "dir" / image.id).read_bytes() == config
    run("skopeo", "copy", "--quiet", source, f"oci:{tmp_path / 'oci'}:renamed")
    assert (tmp_path / "oci" / "blobs" / "sha256" / image.id).read_bytes() == config
    # And back into the store, where only the name is new.
    run(
        "skopeo", "copy", "--quiet", f"dir:{tmp_path / 'dir'}", f"{tools.reference}localhost/back:1"
    )
    async with ImageStore(tools.image_store) as store:
        back = await store.get("localhost/back:1")
        assert back.id == image.id
        assert back.flags == {"checked": {"by": ["us", 1.5]}}
        assert await store.big_data(back.id, "note") == b"of ours"


async def test_an_image_created_here_is_listed_and_mounted_by_the_tools(tools: Tools) -> None:
    require("containers-storage")
    async with ImageStore(tools.image_store) as store:
        image = await store.get(NAME)
        items = {key: await store.big_data(NAME, key) for key in image.big_data_names}
        await store.delete(NAME)
        await store.create(
            image.id,
            names=["localhost/again:1"],
            top_layer=image.top_layer,
            metadata=image.metadata,
            created=image.created,
            big_data=items,
        )
    assert image.id in tools.containers_storage("images")
    assert tools.names() == {image.id: ["localhost/again:1"]}
    container = tools.buildah("from", "localhost/again:1")
    assert tools.buildah("mount", container)
    tools.buildah("rm", container)
