"""skopeo and podman read layouts that were copied here, and layouts of several images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aimagestore import ImageStore, oci
from aimagestore.oci import Transport

from ..support.layouts import Maker, encode, files_of
from ..support.loops import EXTENTS
from .test_oci import copied, layer, write_with_skopeo
from .tools import PreparedStores, Tools, require, run

pytestmark = pytest.mark.peers

NAME = "localhost/hello:1"
OTHER = "quay.io/other/other:2"
TRANSPORTS: list[Transport] = ["oci", "oci-archive", "docker-archive", "dir"]


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """One loop is enough to try what other programs read."""
    return str(request.param)


def make_two(tools: Tools) -> None:
    tools.commit(NAME, "hello")
    tools.commit(OTHER, "other")


@pytest.fixture
def tools(short_path: Path, prepared: PreparedStores) -> Tools:
    """The tools, with two images that buildah has committed."""
    require("podman", "buildah", "skopeo")
    return prepared.copy(make_two, short_path)


def address(transport: str, path: Path, name: str = NAME) -> str:
    return f"{transport}:{path}" if transport == "dir" else f"{transport}:{path}:{name}"


@pytest.mark.parametrize("whole", EXTENTS)
@pytest.mark.parametrize("source", TRANSPORTS)
async def test_skopeo_reads_a_copy_of_what_skopeo_has_written(
    tools: Tools, tmp_path: Path, source: Transport, *, whole: bool
) -> None:
    """A usual run copies from each transport to two others, so that each is copied to twice."""
    theirs = tmp_path / "theirs"
    run("skopeo", "copy", "--quiet", f"{tools.reference}{NAME}", address(source, theirs))
    expected = json.loads(run("skopeo", "inspect", address(source, theirs)))
    original = tools.inspect(NAME)
    number = TRANSPORTS.index(source)
    for transport in TRANSPORTS if whole else (source, TRANSPORTS[number - 1]):
        ours = tmp_path / transport
        (result,) = await oci.copy_layout(theirs, ours, name=NAME, transport=transport)
        assert result.name == NAME
        inspected = json.loads(run("skopeo", "inspect", address(transport, ours)))
        for field in ("Created", "Architecture", "Labels"):
            assert inspected[field] == expected[field]
        other = Tools(tools.root / transport)
        run("skopeo", "copy", "--quiet", address(transport, ours), f"{other.reference}{NAME}")
        found = other.inspect(NAME)
        assert (found["Id"], found["RootFS"]) == (original["Id"], original["RootFS"])
        if transport != "docker-archive":  # for which skopeo makes a manifest
            assert inspected["Digest"] == result.digest
    # A copy without a name is the same as one with it.
    named, again = tmp_path / "named", tmp_path / "again"
    await oci.copy_layout(theirs, named, name=NAME, transport="dir")
    await oci.copy_layout(theirs, again, transport="dir")
    assert files_of(again) == files_of(named)
    if source == "dir":
        assert files_of(again) == files_of(theirs)


async def test_a_dir_of_all_platforms_is_as_skopeo_writes_it(tools: Tools, tmp_path: Path) -> None:
    maker = Maker()
    images = []
    for name in ("amd64", "arm64"):
        fields = {"os": "linux", "architecture": name}
        images.append(maker.image(layer(encode(fields)), config=fields, platform=fields))
    maker.enter(maker.index(*images), "all:1")
    layout = maker.write(tmp_path / "layout")
    await oci.copy_layout(layout, tmp_path / "ours", transport="dir")
    assert files_of(tmp_path / "ours") == copied(f"oci:{layout}:all:1", tmp_path / "one", "--all")
    assert copied(f"dir:{tmp_path / 'ours'}", tmp_path / "two", "--all") == files_of(
        tmp_path / "ours"
    )
    # A single image replaces them.
    write_with_skopeo(tools, tmp_path / "single")
    await oci.copy_layout(tmp_path / "single", tmp_path / "ours", transport="dir")
    assert files_of(tmp_path / "ours") == copied(f"oci:{tmp_path / 'single'}", tmp_path / "three")


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
async def test_several_images_in_one_layout_are_read(
    tools: Tools, tmp_path: Path, transport: Transport
) -> None:
    for number, name in enumerate((NAME, OTHER)):
        run(
            "skopeo", "copy", "--quiet", f"{tools.reference}{name}", f"oci:{tmp_path / 'in'}:{name}"
        )
        assert len(json.loads((tmp_path / "in" / "index.json").read_bytes())["manifests"]) > number
    out, copy = tmp_path / "out", tmp_path / "copy"
    async with ImageStore(tmp_path / "store") as store:
        await oci.import_layout(store, tmp_path / "in")
        await store.add_names(NAME, ["localhost/again:3"])
        names = [NAME, OTHER, "localhost/again:3"]
        await oci.export_images(store, names, out, transport=transport)
    await oci.copy_layout(out, copy, transport=transport)
    ids = {name: image_id for image_id, (name,) in tools.names().items()}
    ids["localhost/again:3"] = ids[NAME]
    for path in (out, copy):
        other = Tools(tools.root / path.name)
        for name in names:
            source = address(transport, path, name)
            run("skopeo", "copy", "--quiet", source, other.reference + name)
        found = other.names().items()
        assert {name: image_id for image_id, each in found for name in each} == ids
        if transport != "oci":  # podman loads all images of an archive
            other = Tools(tools.root / f"loaded-{path.name}")
            other.podman("load", "--quiet", "--input", str(path))
            assert sorted(name for each in other.names().values() for name in each) == sorted(names)
