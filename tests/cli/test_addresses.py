"""Commands like podman's and skopeo's: ``load``, ``save``, and ``copy`` with addresses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from aimagestore._cli.addresses import LayoutAddress, StoreAddress, parse_address
from aimagestore._cli.exits import CommandError

from ..peers.tools import require, run
from ..support.layouts import DockerArchive, Maker, digest_of, files_of, hello
from .conftest import Cli, program

ID = "ab" * 32


@pytest.fixture
def image(cli: Cli, tmp_path: Path) -> Cli:
    """A store with one image."""
    rootfs = {"type": "layers", "diff_ids": [digest_of(b"layer")]}
    maker = hello(config={"rootfs": rootfs})
    cli("import", maker.write(tmp_path / "hello"), "--name", "localhost/x:1")
    return cli


def names(layout: Path) -> list[Any]:
    """The names of the images in a layout."""
    entries = json.loads(files_of(layout)["index.json"])["manifests"]
    return [
        entry.get("annotations", {}).get("org.opencontainers.image.ref.name") for entry in entries
    ]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("images", StoreAddress("images")),
        ("./oci:x", StoreAddress("./oci:x")),
        ("a:b", StoreAddress("a:b")),
        ("oci:a/b", LayoutAddress("oci", "a/b", None)),
        ("oci:a:x:1", LayoutAddress("oci", "a", "x:1")),
        ("oci-archive:a.tar:x", LayoutAddress("oci-archive", "a.tar", "x")),
        ("docker-archive:a.tar:b/x:1", LayoutAddress("docker-archive", "a.tar", "b/x:1")),
        ("dir:a:b", LayoutAddress("dir", "a:b", None)),
        ("containers-storage:x:1", StoreAddress(None, "x:1")),
        ("containers-storage:", StoreAddress(None)),
        ("containers-storage:@" + ID, StoreAddress(None, ID)),
        ("containers-storage:x:1@" + ID, StoreAddress(None, ID)),
        ("containers-storage:[/g]x", StoreAddress("/g", "x")),
        ("containers-storage:[vfs@/g]x", StoreAddress("/g/vfs-images", "x")),
        ("containers-storage:[vfs@/g+/run:a.b=c,d]x:1", StoreAddress("/g/vfs-images", "x:1")),
        ("containers-storage:x@sha256:" + ID, StoreAddress(None, "x@sha256:" + ID)),
    ],
)
def test_addresses(text: str, address: StoreAddress | LayoutAddress) -> None:
    assert parse_address(text) == address


def test_nothing_is_copied_to_a_name_that_images_cannot_have(image: Cli, tmp_path: Path) -> None:
    other = Cli(tmp_path / "other")
    other("create", "--id", "own")
    destination = f"containers-storage:[{other.root}]Capitals"
    image("copy", image.root, destination, "localhost/x:1", code=2)
    assert other("images", "-q").lines == ["own"]


def test_only_the_source_may_be_given_by_its_position(image: Cli, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    image("copy", "containers-storage:x:1", f"oci:{layout}:@0", code=2)
    image("copy", f"oci:{tmp_path / 'hello'}:@0", f"oci:{layout}")
    assert names(layout) == ["hello:1"]


def test_the_digest_in_an_address_must_be_that_of_the_image(image: Cli, tmp_path: Path) -> None:
    layout = f"oci:{tmp_path / 'layout'}"
    digest = image("images", "--json").json[0]["digest"]
    image("copy", f"containers-storage:x:1@{digest}", layout)
    image("copy", f"containers-storage:x:1@sha256:{ID}", layout, code=3)
    named_by_digest = f"docker-archive:{tmp_path / 'a.tar'}:x:1@{digest}"
    image("copy", "containers-storage:x:1", named_by_digest, code=2)
    assert not (tmp_path / "a.tar").exists()


@pytest.mark.parametrize("text", ["oci:hello", "dir:hello", "Docker-Archive:a.tar", "docker://a"])
def test_only_copy_takes_addresses(image: Cli, text: str) -> None:
    for command in (
        ("import", text),
        ("load", "-i", text),
        ("export", "localhost/x:1", text),
        ("save", "-o", text, "localhost/x:1"),
    ):
        assert "use copy, or put ./ before" in image(*command, code=2).errors


@pytest.mark.parametrize(
    "text", ["oci:", "oci::x", "docker://alpine", "containers-storage:[x", "OCI:x"]
)
def test_invalid_addresses_are_refused(text: str) -> None:
    with pytest.raises(CommandError):
        parse_address(text)


def test_exists(image: Cli, tmp_path: Path) -> None:
    assert image("exists", "localhost/x:1").output == ""
    missing = image("exists", "localhost/y:1", code=3)
    assert (missing.output, missing.errors) == ("", "")


# load and save


@pytest.mark.parametrize("arguments", [["-o", "{}"], ["--output={}"]])
@pytest.mark.parametrize("name", ["new.tar", "new"])
def test_save_and_load(image: Cli, tmp_path: Path, name: str, arguments: list[str]) -> None:
    """The name of the file does not matter: ``load`` detects its format."""
    path = tmp_path / name
    given = [part.replace("{}", str(path)) for part in arguments]
    assert image("save", "localhost/x:1", *given).output == ""
    assert {"index.json", "manifest.json"} <= set(files_of(path))
    other = Cli(tmp_path / "other")
    for loaded in (["-i", path], [f"--input={path}"], [path]):
        (image_id,) = other("load", *loaded).lines
    assert other("inspect", image_id, "--json").json[0]["names"] == ["localhost/x:1"]


def test_save_and_load_through_standard_streams(image: Cli, tmp_path: Path) -> None:
    saved = program("save", "localhost/x:1", "--root", image.root).stdout
    loaded = program("load", "--root", tmp_path / "other", data=saved).stdout
    assert loaded.decode().split() == image("images", "-q", "--no-trunc").lines


@pytest.mark.parametrize(
    ("form", "is_directory"),
    [("oci-archive", False), ("docker-archive", False), ("oci-dir", True)],
)
def test_formats_of_save(image: Cli, tmp_path: Path, form: str, is_directory: bool) -> None:
    image("save", "localhost/x:1", "-o", tmp_path / "new", "--format", form)
    assert (tmp_path / "new").is_dir() == is_directory
    assert names(tmp_path / "new") == ["localhost/x:1"]
    image("save", "localhost/x:1", "-o", tmp_path / "new", "--format", "docker-dir", code=2)


def test_save_adds_to_a_directory(image: Cli, tmp_path: Path) -> None:
    image("save", "localhost/x:1", "-o", tmp_path / "hello", "--name", "again:1")
    assert names(tmp_path / "hello") == ["hello:1", "again:1"]


@pytest.mark.parametrize("form", [None, "oci-archive", "docker-archive", "oci-dir"])
def test_several_images_are_saved_together(image: Cli, tmp_path: Path, form: str | None) -> None:
    archive = DockerArchive()
    other_id = archive.image(b"other", tags=["localhost/other:2"])
    image("load", "-i", archive.write(tmp_path / "other.tar"))
    image("tag", "localhost/x:1", "localhost/y:1")
    refs = ["localhost/y:1", other_id[:12], "localhost/x:1"]
    options = [] if form is None else ["--format", form]
    image("save", "-m", "-o", tmp_path / "new", *refs, *options)
    assert names(tmp_path / "new") == ["localhost/y:1", "localhost/x:1", "localhost/other:2"]
    if form != "oci-dir":
        items = json.loads(files_of(tmp_path / "new")["manifest.json"])
        assert [item["RepoTags"] for item in items] == [
            ["localhost/y:1", "localhost/x:1"],
            ["localhost/other:2"],
        ]
    again = Cli(tmp_path / "again")
    assert again("load", tmp_path / "new").lines == image("images", "-q", "--no-trunc").lines


def test_misuses_of_load_and_save_are_refused(image: Cli, tmp_path: Path) -> None:
    image("save", "localhost/x:1", "localhost/missing:1", "-o", tmp_path / "new", code=3)
    image("save", "localhost/x:1", "localhost/x:1", "--name", "y", "-o", tmp_path / "new", code=2)
    image("save", "localhost/x:1", "--format", "oci-dir", code=2)
    image("load", "a.tar", "-i", "b.tar", code=2)
    assert sorted(os.listdir(tmp_path)) == ["hello", "store"]


def test_an_image_that_docker_cannot_load_is_not_saved_as_a_docker_archive(
    cli: Cli, tmp_path: Path
) -> None:
    maker = Maker()
    platforms = [
        maker.image(
            name.encode(),
            config={"architecture": name},
            platform={"os": "linux", "architecture": name},
        )
        for name in ("amd64", "arm64")
    ]
    maker.enter(maker.index(*platforms), "many:1")
    cli("import", maker.write(tmp_path / "many"))
    out = tmp_path / "new.tar"
    errors = cli("save", "localhost/many:1", "-o", out, "--format=docker-archive", code=1).errors
    assert "docker load" in errors
    cli("copy", "containers-storage:localhost/many:1", f"docker-archive:{out}", code=1)
    assert not out.exists()
    cli("save", "localhost/many:1", "-o", out)


# copy


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
def test_out_of_a_store_and_back(image: Cli, tmp_path: Path, transport: str) -> None:
    out = tmp_path / "new"
    address = f"{transport}:{out}:localhost/y:1"
    (line,) = image("copy", "containers-storage:localhost/x:1", address).lines
    assert line.startswith("1 copied, ")
    assert names(out) == ["localhost/y:1"]
    other = Cli(tmp_path / "other")
    copied = other("copy", address, "containers-storage:localhost/z:1", "--json").json
    assert (copied["images"], copied["present"]) == (1, 0)
    (found,) = other("images", "--json").json
    assert found["names"] == ["localhost/z:1"]
    assert found["id"] == image("images", "--json").json[0]["id"]
    assert other("copy", address, "containers-storage:localhost/z:1", "--json").json["present"] == 1


@pytest.mark.parametrize("source", ["oci", "oci-archive", "docker-archive", "dir"])
@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive", "dir"])
def test_from_layout_to_layout(image: Cli, tmp_path: Path, source: str, transport: str) -> None:
    place, out = f"{source}:{tmp_path / 'in'}", f"{transport}:{tmp_path / 'out'}"
    image("copy", "containers-storage:localhost/x:1", place)
    name = "" if transport == "dir" else ":localhost/y:1"
    assert image("copy", place, out + name, "--json").json["images"] == 1
    if transport != "dir":
        assert names(tmp_path / "out") == ["localhost/y:1"]
    other = Cli(tmp_path / "other")
    other("copy", out, "containers-storage:localhost/z:1")
    assert other("images", "-q", "--no-trunc").lines == image("images", "-q", "--no-trunc").lines


def test_copy_through_standard_streams(image: Cli, tmp_path: Path) -> None:
    """Standard output gets the archive only."""
    source = "containers-storage:localhost/x:1"
    for there in (source, f"oci:{tmp_path / 'hello'}"):
        saved = program("copy", there, "oci-archive:-:y:1", "--root", image.root).stdout
        (tmp_path / "a.tar").write_bytes(saved)
        assert names(tmp_path / "a.tar") == ["y:1"]
        assert saved.endswith(bytes(1024))
    arguments = ["copy", "oci-archive:-", "containers-storage:z:1", "--root", tmp_path / "other"]
    program(*arguments, data=saved)
    assert Cli(tmp_path / "other")("exists", "docker.io/library/z:1").output == ""


def test_stores_by_their_roots(image: Cli, tmp_path: Path) -> None:
    image("copy", image.root, f"oci:{tmp_path / 'new'}", "localhost/x:1")
    assert names(tmp_path / "new") == ["localhost/x:1"]
    image("copy", f"oci:{tmp_path / 'new'}", tmp_path / "other")
    assert Cli(tmp_path / "other")("images", "--json").json[0]["names"] == ["localhost/x:1"]
    graph = tmp_path / "graph"
    address = f"containers-storage:[vfs@{graph}]short"
    image("copy", "containers-storage:x:1", address)
    assert os.listdir(graph) == ["vfs-images"]
    (found,) = Cli(graph / "vfs-images")("images", "--json").json
    # Short names are made full as skopeo does it.
    assert set(found["names"]) == {"localhost/x:1", "docker.io/library/short:latest"}
    image("copy", address, f"oci:{tmp_path / 'short'}")


def test_archives_of_others(cli: Cli, tmp_path: Path) -> None:
    archive = DockerArchive()
    image_id = archive.image(b"layer", tags=["localhost/x:1"])
    path = archive.write(tmp_path / "docker.tar")
    cli("copy", f"docker-archive:{path}:localhost/x:1", "containers-storage:localhost/y:1")
    assert cli("images", "--json").json[0]["id"] == image_id
    cli("copy", f"docker-archive:{path}:nothing", "containers-storage:", code=3)


@pytest.mark.parametrize(
    "arguments",
    [
        ["oci:{}/hello", "{}/new", "x:1"],
        ["containers-storage:x:1", "{}/new", "x:1"],
        ["{}/store", "dir:{}/new", "x:1", "y:1"],
        ["docker://alpine", "{}/new"],
        ["{}/store", "oci:{}/new"],
        ["{}/store", "oci-archive:{}/new:y", "x:1", "x:1"],
        ["{}/store", "containers-storage:[{}/new]y:1"],
        ["oci:{}/hello", "containers-storage:UPPER"],
    ],
)
def test_misuses_of_copy_are_refused(image: Cli, tmp_path: Path, arguments: list[str]) -> None:
    parts = [part.replace("{}", str(tmp_path)) for part in arguments]
    errors = image("copy", *parts, code=2).errors
    assert errors.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["hello", "store"]


@pytest.mark.peers
@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
def test_skopeo_and_copy_read_what_the_other_writes(
    image: Cli, tmp_path: Path, transport: str
) -> None:
    require("skopeo")
    (image_id,) = image("images", "-q", "--no-trunc").lines
    ours, theirs = (f"{transport}:{tmp_path / name}:localhost/y:1" for name in ("ours", "theirs"))
    image("copy", "containers-storage:localhost/x:1", ours)
    run("skopeo", "--insecure-policy", "copy", ours, theirs)
    other = Cli(tmp_path / "other")
    other("copy", theirs, "containers-storage:localhost/y:1")
    assert other("images", "-q", "--no-trunc").lines == [image_id]
    run("skopeo", "--insecure-policy", "copy", ours, f"dir:{tmp_path / 'dir'}")
    other("copy", f"dir:{tmp_path / 'dir'}", "containers-storage:localhost/dir:1")
    other("exists", "localhost/dir:1")
