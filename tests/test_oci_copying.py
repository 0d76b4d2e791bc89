"""Images from layout to layout, and several at once from a store."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from aimagestore import (
    AmbiguousImageError,
    DigestMismatchError,
    ImageStore,
    ImageUnknownError,
    InvalidLayoutError,
    oci,
)
from aimagestore.oci import Transport

from .support.faults import Faults
from .support.layouts import (
    IMAGE_NAME,
    INDEX,
    MANIFEST,
    REF_NAME,
    DockerArchive,
    Maker,
    entries_of,
    files_of,
    hello,
    hex_of,
    write_dir,
)
from .support.stores import tree


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """What runs on both loops is tested elsewhere."""
    return str(request.param)


def several() -> Maker:
    """A layout of two images, one of which it lists under two names."""
    maker = Maker()
    one = maker.image(b"shared", b"1", config={"n": 1})
    two = maker.image(b"shared", b"2", config={"n": 2})
    named = {IMAGE_NAME: "docker.io/library/one:1"}
    maker.entries = [
        one | {"annotations": named | {REF_NAME: "1", "vendor": "x"}},
        one | {"annotations": {REF_NAME: "again:1"}},
        two
        | {"artifactType": "application/x", "platform": {"architecture": "amd64", "os": "linux"}},
    ]
    return maker


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
async def test_everything_is_copied_unchanged(tmp_path: Path, transport: Transport) -> None:
    layout = several().write(tmp_path / "layout")
    copied = await oci.copy_layout(layout, tmp_path / "out", transport=transport)
    assert [each.name for each in copied] == ["docker.io/library/one:1", "again:1", ""]
    assert entries_of(tmp_path / "out") == several().entries
    blobs = {n: d for n, d in files_of(tmp_path / "out").items() if n.startswith("blobs/")}
    assert blobs == {n: d for n, d in files_of(layout).items() if n.startswith("blobs/")}
    assert sum(each.written for each in copied) == sum(map(len, blobs.values()))


async def test_one_image_is_selected_and_named(tmp_path: Path) -> None:
    layout = several().write(tmp_path / "layout.tar")
    (copied,) = await oci.copy_layout(layout, tmp_path / "out", ref="one:1", name="new:2")
    assert copied.name == "new:2"
    (entry,) = entries_of(tmp_path / "out")
    assert entry["annotations"] == {REF_NAME: "new:2", "vendor": "x"}
    await oci.copy_layout(layout, tmp_path / "out", ref="again:1", name="")
    renamed, unnamed = entries_of(tmp_path / "out")
    assert renamed == entry
    assert "annotations" not in unnamed
    with pytest.raises(ImageUnknownError, match="has no image 'absent'"):
        await oci.copy_layout(layout, tmp_path / "out", ref="absent")


async def test_several_images_are_refused_where_one_is_expected(tmp_path: Path) -> None:
    layout = several().write(tmp_path / "layout")
    with pytest.raises(ValueError, match="3 images, and a name is for one"):
        await oci.copy_layout(layout, tmp_path / "out", name="a:1")
    with pytest.raises(ValueError, match="dir: takes one image, not 3"):
        await oci.copy_layout(layout, tmp_path / "out", transport="dir")
    with pytest.raises(ValueError, match="'tape' is none of"):
        await oci.copy_layout(layout, tmp_path / "out", transport="tape")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == ["layout"]


async def test_a_copy_takes_all_platforms_or_the_one_selected(tmp_path: Path) -> None:
    maker = Maker()
    images = []
    for name in ("amd64", "arm64"):
        fields = {"os": "linux", "architecture": name}
        images.append(maker.image(name.encode(), config=fields, platform=fields))
    maker.enter(maker.index(*images), "all:1")
    layout = maker.write(tmp_path / "layout")
    await oci.copy_layout(layout, tmp_path / "all")
    assert entries_of(tmp_path / "all") == maker.entries
    await oci.copy_layout(layout, tmp_path / "one", platform="linux/arm64")
    assert entries_of(tmp_path / "one") == [images[1] | {"annotations": {REF_NAME: "all:1"}}]
    assert len(files_of(tmp_path / "one")) == 5
    # Of a sparse layout, the only platform that is there.
    (layout / "blobs" / "sha256" / hex_of(b"arm64")).unlink()
    await oci.copy_layout(layout, tmp_path / "sparse")
    assert entries_of(tmp_path / "sparse") == [images[0] | {"annotations": {REF_NAME: "all:1"}}]
    with pytest.raises(InvalidLayoutError, match="missing"):
        await oci.copy_layout(layout, tmp_path / "no", platform="linux/arm64")


async def test_one_name_of_two_images_is_ambiguous(tmp_path: Path) -> None:
    maker = Maker()
    for n in (1, 2):
        maker.enter(maker.image(b"layer", config={"n": n}), "a:1")
    with pytest.raises(AmbiguousImageError):
        await oci.copy_layout(maker.write(tmp_path / "layout"), tmp_path / "out")
    assert os.listdir(tmp_path) == ["layout"]


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive", "dir"])
async def test_altered_content_is_not_copied(tmp_path: Path, transport: Transport) -> None:
    layout = hello().write(tmp_path / "layout")
    (layout / "blobs" / "sha256" / hex_of(b"layer")).write_bytes(b"LAYER")
    with pytest.raises(DigestMismatchError):
        await oci.copy_layout(layout, tmp_path / "out", transport=transport)
    assert os.listdir(tmp_path) == ["layout"]


async def test_an_archive_of_docker_gets_manifests_of_oci(tmp_path: Path) -> None:
    """skopeo finds no others by their names in a layout."""
    saved = DockerArchive()
    image_id = saved.image(b"one", tags=["quay.io/a:1", "quay.io/a:2"])
    saved.write(tmp_path / "in.tar")
    await oci.copy_layout(tmp_path / "in.tar", tmp_path / "out")
    assert [(e["mediaType"], e["annotations"][REF_NAME]) for e in entries_of(tmp_path / "out")] == [
        (MANIFEST, "quay.io/a:1"),
        (MANIFEST, "quay.io/a:2"),
    ]
    assert f"blobs/sha256/{image_id}" in files_of(tmp_path / "out")
    await oci.copy_layout(tmp_path / "in.tar", tmp_path / "dir", ref="quay.io/a:1", transport="dir")
    assert "docker" in json.loads(files_of(tmp_path / "dir")["manifest.json"])["mediaType"]


# dir:


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_a_dir_is_written(tmp_path: Path, algorithm: str) -> None:
    maker = Maker(algorithm)
    maker.enter(maker.image(b"layer"), "hello:1")
    expected = files_of(write_dir(tmp_path / "expected", maker))
    expected = {n: d for n, d in expected.items() if not n.endswith(".manifest.json")}
    await oci.copy_layout(maker.write(tmp_path / "layout"), tmp_path / "out", transport="dir")
    assert files_of(tmp_path / "out") == expected
    await oci.copy_layout(tmp_path / "out", tmp_path / "back", name="hello:1")
    # A dir: does not keep by which digest its manifest was known.
    assert algorithm != "sha256" or entries_of(tmp_path / "back") == maker.entries
    assert entries_of(tmp_path / "back")[0]["size"] == maker.entries[0]["size"]


async def test_an_image_in_a_dir_is_replaced(store: ImageStore, tmp_path: Path) -> None:
    maker = Maker()
    maker.enter(maker.index(maker.image(b"1"), maker.image(b"2", config={"n": 2})))
    out = tmp_path / "out"
    await oci.copy_layout(maker.write(tmp_path / "several"), out, transport="dir")
    (out / "signature-1").write_bytes(b"of the other")
    (out / "notes").write_bytes(b"mine")
    (imported,) = await oci.import_layout(store, hello().write(tmp_path / "layout"))
    await oci.export_layout(store, imported.image.id, out, transport="dir")
    assert (out / "notes").read_bytes() == b"mine"
    (out / "notes").unlink()
    await oci.export_layout(store, imported.image.id, tmp_path / "new", transport="dir")
    assert files_of(out) == files_of(tmp_path / "new")


@pytest.mark.parametrize("call", ["rename", "fsync", "link", "unlink"])
async def test_a_dir_stays_readable_when_an_export_fails(
    tmp_path: Path, faults: Faults, call: str
) -> None:
    other = Maker()
    other.enter(other.image(b"other", config={"n": 1}))
    layout = hello().write(tmp_path / "layout")
    for when in range(1, 30):
        out = write_dir(tmp_path / f"out{when}", other)
        with faults.fail(call, errno.EIO, when.__eq__) as calls, suppress(OSError):
            await oci.copy_layout(layout, out, transport="dir")
        (found,) = await oci.copy_layout(out, tmp_path / f"found{when}")
        if len(calls) < when:
            assert found.digest == hello().entries[0]["digest"]
            return
        assert found.digest in {hello().entries[0]["digest"], other.entries[0]["digest"]}
    raise AssertionError("it never succeeded")


async def test_a_directory_of_something_else_is_not_written_as_a_dir(tmp_path: Path) -> None:
    layout = hello().write(tmp_path / "layout")
    before = tree(layout)
    with pytest.raises(InvalidLayoutError, match="no file 'version'"):
        await oci.copy_layout(layout, layout, transport="dir")
    write_dir(tmp_path / "dir", hello())
    with pytest.raises(InvalidLayoutError, match="not an OCI image layout"):
        await oci.copy_layout(layout, tmp_path / "dir", transport="oci")
    assert tree(layout) == before


@pytest.mark.parametrize("transport", ["oci", "dir"])
async def test_copying_to_a_dangling_link_creates_its_target(
    tmp_path: Path, transport: Transport
) -> None:
    (tmp_path / "link").symlink_to("out")
    layout = hello().write(tmp_path / "layout")
    await oci.copy_layout(layout, tmp_path / "link", transport=transport)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "out").is_dir()
    await oci.copy_layout(layout, tmp_path / "link", transport=transport)
    assert sorted(os.listdir(tmp_path)) == ["layout", "link", "out"]


# Several images of a store


async def test_several_images_are_exported_or_none(store: ImageStore, tmp_path: Path) -> None:
    maker = Maker()
    maker.enter(maker.image(b"shared", b"1", config={"n": 1}), "localhost/one:1")
    maker.enter(maker.image(b"shared", b"2", config={"n": 2}), "localhost/two:1")
    one, two = (
        each.image.id for each in await oci.import_layout(store, maker.write(tmp_path / "layout"))
    )
    await store.add_names(one, ["localhost/other:1"])
    done = await oci.export_images(store, ["localhost/one:1", two[:20], two], tmp_path / "a.tar")
    assert [each.image.id for each in done] == [one, two]
    assert [e["annotations"][REF_NAME] for e in entries_of(tmp_path / "a.tar")] == [
        "localhost/one:1",
        "localhost/two:1",
    ]
    written = sum(len(d) for n, d in files_of(tmp_path / "a.tar").items() if n.startswith("blobs"))
    assert sum(each.written for each in done) == written
    with pytest.raises(ImageUnknownError):
        await oci.export_images(store, [one, "absent"], tmp_path / "b.tar")
    with pytest.raises(ValueError, match="no image"):
        await oci.export_images(store, [], tmp_path / "b.tar")
    with pytest.raises(TypeError, match="is a directory"):
        await oci.export_images(store, [one], io.BytesIO(), transport="oci")
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "layout", "store"]


async def test_an_archive_lists_all_of_its_images_for_docker_or_none(
    store: ImageStore, tmp_path: Path
) -> None:
    maker = hello()
    maker.enter(maker.index(maker.image(b"2", config={"n": 2})), "index:1")
    await oci.import_layout(store, maker.write(tmp_path / "layout"))
    names = ["localhost/hello:1", "localhost/index:1"]
    await oci.export_images(store, names, tmp_path / "a.tar")
    assert "manifest.json" not in files_of(tmp_path / "a.tar")
    with pytest.raises(InvalidLayoutError, match="docker load cannot read"):
        await oci.export_images(store, names, tmp_path / "b.tar", transport="docker-archive")
    assert INDEX in {entry["mediaType"] for entry in entries_of(tmp_path / "a.tar")}


_COPY = """
import resource, sys, anyio
from aimagestore import oci

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
anyio.run(lambda: oci.copy_layout(sys.argv[1], sys.argv[2]))
"""


async def test_any_number_of_images_needs_few_open_files(tmp_path: Path) -> None:
    maker = Maker()
    for n in range(100):
        maker.enter(maker.image(b"%d" % n, config={"n": n}), f"image:{n}")
    layout = maker.write(tmp_path / "layout")
    command = [sys.executable, "-c", _COPY, str(layout), str(tmp_path / "out")]
    result = await anyio.to_thread.run_sync(lambda: subprocess.run(command, check=False))
    assert result.returncode == 0
    assert files_of(tmp_path / "out").keys() == files_of(layout).keys()
