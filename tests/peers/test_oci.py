"""Image layouts between the tools and stores: what one writes the other reads, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aimagestore import ImageStore, oci

from ..support.layouts import files_of
from .tools import Tools, require, run

pytestmark = pytest.mark.peers

NAME = "localhost/hello:1"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Two loops are enough for what the tools are needed for."""
    return str(request.param)


@pytest.fixture
def tools(short_path: Path) -> Tools:
    """The tools, with an image of buildah's."""
    require("podman", "buildah", "skopeo")
    tools = Tools(short_path)
    tools.commit(NAME, "hello")
    return tools


def blobs_of(layout: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(layout).items() if name.startswith("blobs/")}


def copied(source: str, target: Path, *options: str) -> dict[str, bytes]:
    """The files that skopeo makes of an image as a plain directory, by their digests."""
    run("skopeo", "copy", "--quiet", *options, source, f"dir:{target}")
    return files_of(target)


def skopeos(tools: Tools, layout: Path) -> str:
    run("skopeo", "copy", "--quiet", f"{tools.reference}{NAME}", f"oci:{layout}:hello:1")
    return f"oci:{layout}:hello:1"


def buildahs(tools: Tools, layout: Path) -> str:
    tools.buildah("push", "--quiet", NAME, f"oci-archive:{layout}:hello:1")
    return f"oci-archive:{layout}:hello:1"


@pytest.mark.parametrize("write", [skopeos, buildahs])
@pytest.mark.parametrize("name", ["out", "out.tar"])
async def test_there_and_back(tools: Tools, tmp_path: Path, write: Any, name: str) -> None:
    layout = tmp_path / "layout"
    source = write(tools, layout)
    async with ImageStore(tmp_path / "store") as store:
        (imported,) = await oci.import_layout(store, layout)
        await oci.export_layout(store, NAME, tmp_path / name)
    image = imported.image
    assert image.id == tools.inspect(NAME)["Id"]
    assert image.names == (NAME,)
    assert blobs_of(tmp_path / name) == blobs_of(layout)

    transport = "oci-archive" if name.endswith(".tar") else "oci"
    exported = f"{transport}:{tmp_path / name}:{NAME}"
    inspected = json.loads(run("skopeo", "inspect", exported))
    assert inspected["Digest"] == image.digest
    assert inspected == json.loads(run("skopeo", "inspect", source))
    assert copied(exported, tmp_path / "one") == copied(source, tmp_path / "two")

    other = Tools(tools.root / "other")
    if name.endswith(".tar"):
        other.podman("load", "--quiet", "--input", str(tmp_path / name))
        assert other.names() == {image.id: [NAME]}
    else:
        other.podman("pull", "--quiet", exported)
    assert other.inspect(image.id)["RootFS"] == tools.inspect(NAME)["RootFS"]
    container = other.buildah("from", image.id)
    root = Path(other.buildah("mount", container))
    assert (root / "hello.txt").read_text() == "hello"
    other.buildah("rm", container)


async def test_all_platforms_there_and_back(tools: Tools, tmp_path: Path) -> None:
    tools.buildah("manifest", "create", "all")
    ids = set()
    for architecture in ("amd64", "arm64"):
        container = tools.buildah("from", "--arch", architecture, "scratch")
        tools.buildah("copy", container, str(tools.root / "hello.txt"), f"/{architecture}")
        tools.buildah("config", "--arch", architecture, container)
        name = f"localhost/{architecture}:1"
        ids.add(tools.buildah("commit", "--quiet", container, name))
        tools.buildah("rm", container)
        tools.buildah("manifest", "add", "--arch", architecture, "all", name)
    layout = tmp_path / "layout"
    tools.buildah("manifest", "push", "--all", "--quiet", "all", f"oci:{layout}:all:1")
    async with ImageStore(tmp_path / "store") as store:
        (imported,) = await oci.import_layout(store, layout)
        assert imported.image.names == ("localhost/all:1",)
        for name in ("out", "out.tar"):
            await oci.export_layout(store, "localhost/all:1", tmp_path / name, name="all:1")
            assert blobs_of(tmp_path / name) == blobs_of(layout)
        found = set()
        for architecture in ("amd64", "arm64"):
            (picked,) = await oci.import_layout(
                store, layout, platform=f"linux/{architecture}", names=[architecture]
            )
            found.add(picked.image.id)
            await oci.export_layout(store, architecture, tmp_path / architecture)
            said = json.loads(run("skopeo", "inspect", f"oci:{tmp_path / architecture}"))
            assert (said["Architecture"], said["Digest"]) == (architecture, picked.image.digest)
    assert found == ids
    expected = copied(f"oci:{layout}:all:1", tmp_path / "one", "--all")
    assert len(expected) > 6
    for name, transport in (("out", "oci"), ("out.tar", "oci-archive")):
        source = f"{transport}:{tmp_path / name}:all:1"
        assert run("skopeo", "inspect", "--raw", source).encode() == expected["manifest.json"]
        assert copied(source, tmp_path / f"copy-{name}", "--all") == expected


async def test_skopeo_adds_to_an_export_and_an_export_to_skopeos(
    tools: Tools, tmp_path: Path
) -> None:
    skopeos(tools, tmp_path / "layout")
    async with ImageStore(tmp_path / "store") as store:
        (imported,) = await oci.import_layout(store, tmp_path / "layout")
        exported = await oci.export_layout(store, NAME, tmp_path / "layout", name="again")
        assert exported.written == 0
        await oci.export_layout(store, NAME, tmp_path / "out", name="first")
    tools.commit("localhost/other:1", "other")
    run(
        *("skopeo", "copy", "--quiet", f"{tools.reference}localhost/other:1"),
        f"oci:{tmp_path / 'out'}:second",
    )
    for source, digest in [
        (f"oci:{tmp_path / 'layout'}:hello:1", imported.image.digest),
        (f"oci:{tmp_path / 'layout'}:again", imported.image.digest),
        (f"oci:{tmp_path / 'out'}:first", imported.image.digest),
    ]:
        assert json.loads(run("skopeo", "inspect", source))["Digest"] == digest
    async with ImageStore(tmp_path / "store") as store:
        first, second = await oci.import_layout(store, tmp_path / "out")
    assert (first.stored, first.image.id) == (0, imported.image.id)
    assert second.image.names == ("localhost/second:latest",)


async def test_an_image_of_podmans_own_gets_names_and_manifests(
    tools: Tools, tmp_path: Path
) -> None:
    skopeos(tools, tmp_path / "layout")
    before = tools.inspect(NAME)
    async with ImageStore(tools.image_store) as store:
        (imported,) = await oci.import_layout(store, tmp_path / "layout", names=["localhost/a:1"])
        assert not imported.is_new
        assert imported.layers_left_out == 1
        assert imported.image.top_layer
    after = tools.inspect("localhost/a:1")
    assert after["Id"] == before["Id"]
    assert after["RepoTags"] == ["localhost/a:1", NAME]
    source = f"{tools.reference}localhost/a:1"
    run("skopeo", "copy", "--quiet", source, f"oci:{tmp_path / 'again'}:a")
    assert blobs_of(tmp_path / "again") == blobs_of(tmp_path / "layout")


async def test_podman_lists_and_removes_what_was_imported_without_layers(
    tools: Tools, tmp_path: Path
) -> None:
    other = Tools(tools.root / "other")
    other.commit("localhost/kept:1", "kept")
    skopeos(tools, tmp_path / "layout")
    tools.buildah("manifest", "create", "all")
    tools.buildah("manifest", "add", "all", NAME)
    index = f"oci:{tmp_path / 'index'}:all:1"
    tools.buildah("manifest", "push", "--all", "--quiet", "all", index)
    async with ImageStore(other.image_store) as store:
        (image,) = await oci.import_layout(store, tmp_path / "layout")
        (several,) = await oci.import_layout(store, tmp_path / "index")
    kept = other.inspect("localhost/kept:1")["Id"]
    assert other.names() == {
        several.image.id: ["localhost/all:1"],
        image.image.id: [NAME],
        kept: ["localhost/kept:1"],
    }
    assert image.image.id in other.containers_storage("images")
    other.podman("manifest", "inspect", "localhost/all:1")
    other.podman("manifest", "rm", "localhost/all:1")
    other.podman("rmi", NAME)
    assert other.names() == {kept: ["localhost/kept:1"]}


@pytest.mark.parametrize("ref", ["1.0", "hello:1", "a/b:2", "quay.io/podman/hello", "docker.io/x"])
async def test_names_are_what_podman_makes_of_them(tools: Tools, tmp_path: Path, ref: str) -> None:
    archive = tmp_path / "archive"
    tools.buildah("push", "--quiet", NAME, f"oci-archive:{archive}:{ref}")
    tools.podman("rmi", "--all", "--force")
    tools.podman("load", "--quiet", "--input", str(archive))
    async with ImageStore(tmp_path / "store") as store:
        (imported,) = await oci.import_layout(store, archive)
    assert tools.names() == {imported.image.id: list(imported.image.names)}
