"""podman, buildah, skopeo and this library read each other's image layouts, byte for byte."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aimagestore import ImageStore, ImageUnknownError, oci

from ..support.layouts import DockerArchive, Maker, archive, digest_of, encode, files_of
from .tools import PreparedStores, Tools, require, run

pytestmark = pytest.mark.peers

NAME = "localhost/hello:1"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Two loops are enough to try what other programs read."""
    return str(request.param)


def make_hello(tools: Tools) -> None:
    tools.commit(NAME, "hello")


@pytest.fixture
def tools(short_path: Path, prepared: PreparedStores) -> Tools:
    """The tools, with an image that buildah has committed."""
    require("podman", "buildah", "skopeo")
    return prepared.copy(make_hello, short_path)


def blobs_of(layout: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(layout).items() if name.startswith("blobs/")}


def copied(source: str, target: Path, *options: str) -> dict[str, bytes]:
    """Copy an image with skopeo to a ``dir:`` layout, and return its files by name."""
    overrides = [option for option in options if option != "--all"]
    everything = [option for option in options if option == "--all"]
    run("skopeo", *overrides, "copy", "--quiet", *everything, source, f"dir:{target}")
    return files_of(target)


def write_with_skopeo(tools: Tools, layout: Path) -> str:
    """Write the image as a layout, and return its address."""
    run("skopeo", "copy", "--quiet", f"{tools.reference}{NAME}", f"oci:{layout}:hello:1")
    return f"oci:{layout}:hello:1"


def write_with_buildah(tools: Tools, layout: Path) -> str:
    """Write the image as an archive, and return its address."""
    tools.buildah("push", "--quiet", NAME, f"oci-archive:{layout}:hello:1")
    return f"oci-archive:{layout}:hello:1"


@pytest.mark.parametrize("write", [write_with_skopeo, write_with_buildah])
@pytest.mark.parametrize("name", ["out", "out.tar"])
async def test_an_image_of_skopeo_or_buildah_is_imported_and_exported_unchanged(
    tools: Tools, tmp_path: Path, write: Any, name: str
) -> None:
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
    else:
        # Not with podman 4.3, which derives a name from the path, and refuses its capitals.
        run("skopeo", "copy", "--quiet", exported, f"{other.reference}{NAME}")
    assert other.names() == {image.id: [NAME]}
    assert other.inspect(image.id)["RootFS"] == tools.inspect(NAME)["RootFS"]
    container = other.buildah("from", image.id)
    root = Path(other.buildah("mount", container))
    assert (root / "hello.txt").read_text() == "hello"
    other.buildah("rm", container)


async def test_an_image_of_several_platforms_is_imported_and_exported_unchanged(
    tools: Tools, tmp_path: Path
) -> None:
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
            inspected = json.loads(run("skopeo", "inspect", f"oci:{tmp_path / architecture}"))
            assert (inspected["Architecture"], inspected["Digest"]) == (
                architecture,
                picked.image.digest,
            )
    assert found == ids
    expected = copied(f"oci:{layout}:all:1", tmp_path / "one", "--all")
    assert len(expected) > 6
    for name, transport in (("out", "oci"), ("out.tar", "oci-archive")):
        source = f"{transport}:{tmp_path / name}:all:1"
        assert run("skopeo", "inspect", "--raw", source).encode() == expected["manifest.json"]
        assert copied(source, tmp_path / f"copy-{name}", "--all") == expected


async def test_skopeo_and_this_library_add_images_to_each_others_layouts(
    tools: Tools, tmp_path: Path
) -> None:
    write_with_skopeo(tools, tmp_path / "layout")
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


async def test_importing_an_image_that_podman_has_adds_its_names_and_manifests(
    tools: Tools, tmp_path: Path
) -> None:
    write_with_skopeo(tools, tmp_path / "layout")
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


async def test_podman_lists_and_removes_images_that_were_imported_without_layers(
    tools: Tools, tmp_path: Path
) -> None:
    other = Tools(tools.root / "other")
    other.commit("localhost/kept:1", "kept")
    write_with_skopeo(tools, tmp_path / "layout")
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
async def test_names_are_completed_as_podman_completes_them(
    tools: Tools, tmp_path: Path, ref: str
) -> None:
    archive = tmp_path / "archive"
    tools.buildah("push", "--quiet", NAME, f"oci-archive:{archive}:{ref}")
    tools.podman("rmi", "--all", "--force")
    tools.podman("load", "--quiet", "--input", str(archive))
    async with ImageStore(tmp_path / "store") as store:
        (imported,) = await oci.import_layout(store, archive)
    assert tools.names() == {imported.image.id: list(imported.image.names)}


async def test_the_tag_beside_a_digest_does_not_count_for_podman_either(
    tools: Tools, tmp_path: Path
) -> None:
    files = layer(b"file")
    maker = Maker()
    rootfs = {"type": "layers", "diff_ids": [digest_of(files)]}
    entry = maker.image(files, config={"rootfs": rootfs})
    maker.enter(entry, f"localhost/tagged:3@{entry['digest']}")
    path = maker.write(tmp_path / "a.tar")
    tools.podman("rmi", "--all", "--force")
    tools.podman("load", "--quiet", "--input", str(path))
    async with ImageStore(tmp_path / "store") as store:
        (imported,) = await oci.import_layout(store, path)
    assert imported.image.names == (f"localhost/tagged@{entry['digest']}",)
    assert tools.names() == {imported.image.id: list(imported.image.names)}


# Layouts that other programs write


def layer(content: bytes) -> bytes:
    return archive({"file": content}, tarfile.USTAR_FORMAT)


def saved_by_docker(_: Tools, path: Path) -> None:
    saved = DockerArchive()
    shared = layer(b"shared")
    saved.image(shared, layer(b"1"), tags=["short:1", "docker.io/library/a:2"], n=1)
    saved.image(shared, layer(b"2"), tags=["quay.io/b/c:3"], n=2)
    saved.image(layer(b"3"), n=3)
    saved.write(path)


def saved_with_compressed_layers(_: Tools, path: Path) -> None:
    saved = DockerArchive()
    saved.image(layer(b"1"), layer(b"2"), tags=["a:1"], pack=gzip.compress)
    saved.write(path)


def saved_by_podman(tools: Tools, path: Path) -> None:
    tools.podman("save", "--quiet", "--output", str(path), NAME)


def several_saved_by_podman(tools: Tools, path: Path) -> None:
    tools.podman("tag", NAME, "localhost/second:2")
    tools.commit("quay.io/other/other:1", "other")
    names = [NAME, "localhost/second:2", "quay.io/other/other:1"]
    tools.podman("save", "--quiet", "--multi-image-archive", "--output", str(path), *names)


# One archive with each kind of compression is enough.
@pytest.mark.parametrize(
    ("write", "compress"),
    [
        *((saved_by_docker, compress) for compress in ("", "gzip", "zstd", "xz", "bzip2")),
        (saved_with_compressed_layers, ""),
        (saved_by_podman, ""),
        (several_saved_by_podman, ""),
    ],
)
async def test_docker_archives_are_imported_as_podman_loads_them(
    tools: Tools, tmp_path: Path, write: Callable[[Tools, Path], None], compress: str
) -> None:
    path = tmp_path / "archive.tar"
    write(tools, path)
    other = Tools(tools.root / "other")
    other.podman("load", "--quiet", "--input", str(path))
    if compress:  # only now: podman 4.3 cannot load an archive compressed by gzip
        require(compress)
        path.write_bytes(compressed(compress, path))
    async with ImageStore(tmp_path / "store") as store:
        imported = [each.image for each in await oci.import_layout(store, path)]
        assert {i.id: sorted(i.names) for i in imported} == {
            image_id: sorted(names) for image_id, names in other.names().items()
        }
        async with ImageStore(other.image_store, read_only=True) as podmans:
            for image in imported:
                manifest = await podmans.big_data(image.id, "manifest")
                assert await store.big_data(image.id, "manifest") == manifest


async def test_fields_in_another_case_are_read_as_skopeo_reads_them(tmp_path: Path) -> None:
    require("skopeo")
    maker = Maker()
    entry = maker.image(b"layer")
    capitals = {name.title(): value for name, value in entry.items() if name != "mediaType"}
    capitals["MEDIATYPE"] = entry["mediaType"]
    maker.files["index.json"] = encode({"SchemaVersion": 2, "Manifests": [capitals]})
    layout = maker.write(tmp_path / "layout")
    manifest = copied(f"oci:{layout}", tmp_path / "dir")["manifest.json"]
    async with ImageStore(tmp_path / "store") as store:
        (imported,) = await oci.import_layout(store, layout)
    assert digest_of(manifest) == imported.image.digest == entry["digest"]


@pytest.mark.parametrize("position", [0, 1])
async def test_an_image_is_found_by_its_position_as_skopeo_finds_it(
    tmp_path: Path, position: int
) -> None:
    require("skopeo")
    saved = DockerArchive()
    first = saved.image(layer(b"a"), tags=["a:1", "a:2"])
    second = saved.image(layer(b"b"), tags=["b:1"])
    path = saved.write(tmp_path / "a.tar")
    manifest = copied(f"docker-archive:{path}:@{position}", tmp_path / "dir")["manifest.json"]
    async with ImageStore(tmp_path / "store") as store:
        (imported,) = await oci.import_layout(store, path, ref=f"@{position}")
        assert imported.image.id == (first, second)[position]
    assert json.loads(manifest)["config"]["digest"] == f"sha256:{imported.image.id}"


def compressed(program: str, path: Path) -> bytes:
    if program == "zstd":
        pytest.importorskip("backports.zstd")
    run(program, "--keep", path)
    suffix = {"gzip": "gz", "bzip2": "bz2", "zstd": "zst"}.get(program, program)
    return path.with_name(f"{path.name}.{suffix}").read_bytes()


@pytest.mark.parametrize("program", ["gzip", "zstd"])
async def test_compressed_oci_archives_are_imported(
    tools: Tools, tmp_path: Path, program: str
) -> None:
    require(program)
    source = write_with_buildah(tools, tmp_path / "archive")
    data = compressed(program, tmp_path / "archive")
    (tmp_path / "archive").write_bytes(data)
    digest = json.loads(run("skopeo", "inspect", source))["Digest"]
    async with ImageStore(tmp_path / "store") as store:
        (imported,) = await oci.import_layout(store, tmp_path / "archive")
    assert (imported.image.digest, imported.image.names) == (digest, (NAME,))


async def test_a_dir_layout_is_imported(tools: Tools, tmp_path: Path) -> None:
    run("skopeo", "copy", "--quiet", f"{tools.reference}{NAME}", f"dir:{tmp_path / 'dir'}")
    async with ImageStore(tmp_path / "store") as store:
        (imported,) = await oci.import_layout(store, tmp_path / "dir")
        await oci.export_layout(store, imported.image.id, tmp_path / "out")
    assert imported.image.id == tools.inspect(NAME)["Id"]
    assert copied(f"oci:{tmp_path / 'out'}", tmp_path / "again") == files_of(tmp_path / "dir")


PLATFORMS = [
    ("amd64", ["amd64/v2", "amd64", "amd64/v3"]),
    ("amd64/v3", ["amd64", "amd64/v2", "amd64/v3"]),
    ("amd64/v4", ["amd64/v2", "amd64", "amd64/v3"]),
    ("amd64", ["amd64/v2", "arm64"]),
    ("arm", ["arm/v5", "arm/v7", "arm/v6"]),
    ("arm", ["arm/v7", "arm"]),
    ("arm/v7", ["arm/v5", "arm/v6", "arm/v8"]),
    ("arm/v7", ["arm/v8", "arm"]),
    ("arm/v5", ["arm/v6", "arm/v7"]),
    ("arm64", ["amd64", "arm64/v8"]),
    ("arm64/v8", ["arm64", "amd64"]),
    ("arm64/v9", ["arm64/v8", "arm64"]),
    ("s390x", ["s390x", "amd64"]),
]


@pytest.mark.parametrize(("asked", "present"), PLATFORMS)
async def test_a_platform_is_chosen_as_skopeo_chooses_it(
    tmp_path: Path, asked: str, present: list[str]
) -> None:
    require("skopeo")
    maker = Maker()
    images = []
    for text in present:
        architecture, _, variant = text.partition("/")
        fields = {"os": "linux", "architecture": architecture}
        fields |= {"variant": variant} if variant else {}
        images.append(maker.image(encode(fields), config=fields, platform=fields))
    maker.enter(maker.index(*images), "a:1")
    layout = maker.write(tmp_path / "layout")
    architecture, _, variant = asked.partition("/")
    options = ["--override-arch", architecture]
    options += ["--override-variant", variant] if variant else []
    source = f"oci:{layout}:a:1"
    async with ImageStore(tmp_path / "store") as store:
        try:
            expected = copied(source, tmp_path / "dir", *options)["manifest.json"]
        except AssertionError:
            with pytest.raises(ImageUnknownError, match=present[0]):
                await oci.import_layout(store, layout, platform=f"linux/{asked}")
            return
        (imported,) = await oci.import_layout(store, layout, platform=f"linux/{asked}")
        assert await store.big_data(imported.image.id, "manifest") == expected


async def test_an_exported_oci_archive_is_a_docker_archive_as_well(
    tools: Tools, tmp_path: Path
) -> None:
    write_with_skopeo(tools, tmp_path / "layout")
    out = tmp_path / "out.tar"
    async with ImageStore(tmp_path / "store") as store:
        await oci.import_layout(store, tmp_path / "layout")
        await oci.export_layout(store, NAME, out)
    source = f"docker-archive:{out}:{NAME}"
    assert json.loads(run("skopeo", "inspect", source))["Layers"] == [
        f"sha256:{digest}" for digest in diff_ids(tools)
    ]
    other = Tools(tools.root / "other")
    other.podman("pull", "--quiet", source)
    assert other.names() == {tools.inspect(NAME)["Id"]: [NAME]}


def diff_ids(tools: Tools) -> list[str]:
    return [layer.removeprefix("sha256:") for layer in tools.inspect(NAME)["RootFS"]["Layers"]]
