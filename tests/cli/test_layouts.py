"""Commands about OCI image layouts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from ..support.layouts import Maker, files_of, hello
from .conftest import Cli, program
from .test_program import start


@pytest.mark.parametrize("place", ["layout", "layout.tar"])
def test_in_and_out_again(cli: Cli, tmp_path: Path, place: str) -> None:
    layout = hello().write(tmp_path / place)
    (image_id,) = cli("import", layout, "--name", "a:1", "--name", "b:1").lines
    (image,) = cli("images", "--json").json
    assert image["id"] == image_id
    assert image["names"] == ["a:1", "b:1"]
    (imported,) = cli("import", layout, "--name", "c:1", "--json").json
    assert imported["image"]["id"] == image_id
    assert not imported["is_new"]
    assert imported["stored"] == imported["layers_left_out"] == 0

    for again in (tmp_path / "again", tmp_path / "again.tar"):
        assert cli("export", "a:1", again, "--name", "hello:1").output == ""
        exported = files_of(again)
        blobs = {name for name in files_of(layout) if name.startswith("blobs/")}
        assert {name for name in exported if name.startswith("blobs/")} == blobs
        (entry,) = json.loads(exported["index.json"])["manifests"]
        assert entry["annotations"] == {"org.opencontainers.image.ref.name": "hello:1"}


def test_one_of_several(cli: Cli, tmp_path: Path) -> None:
    maker = hello()
    maker.enter(maker.image(b"other", config={"author": "other"}), "other:1")
    layout = maker.write(tmp_path / "layout")
    assert cli("import", layout, "--name", "a:1", code=1).errors.count("\n") == 1
    assert len(cli("import", layout, "--ref", "other:1").lines) == 1
    cli("import", layout, "--ref", "nothing", code=3)
    cli("import", layout, "--platform", "nonsense", code=2)
    assert len(cli("import", layout).lines) == 2


@pytest.mark.parametrize("is_file", [False, True])
def test_through_standard_streams(path: Path, tmp_path: Path, is_file: bool) -> None:
    layout = hello().write(tmp_path / "layout.tar")
    arguments = ("--root", path, "import", "-", "--name", "a:1")
    if is_file:
        with layout.open("rb") as stream:
            program(*arguments, stdin=stream)
    else:
        program(*arguments, data=layout.read_bytes())
    exported = program("--root", path, "export", "a:1", "-").stdout
    (tmp_path / "again.tar").write_bytes(exported)
    before, after = files_of(layout), files_of(tmp_path / "again.tar")
    assert before.items() & after.items() == {
        (name, data) for name, data in before.items() if name != "index.json"
    }


def test_paths_that_are_not_layouts_are_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "no.tar").write_bytes(b"nothing")
    cli("import", tmp_path / "no.tar", code=1)
    cli("import", tmp_path / "missing", code=1)
    cli("export", "nobody", tmp_path / "layout", code=3)
    assert cli("images", "--json").json == []


def test_a_missing_layout_makes_no_store(cli: Cli, tmp_path: Path) -> None:
    for path in (tmp_path / "missing", ""):
        assert cli("import", path, code=1).errors.count("\n") == 1
        cli("copy", f"oci:{tmp_path / 'missing'}", f"containers-storage:[{cli.root}]x", code=1)
        assert not cli.root.exists()
    assert "aimagestore: '': No such file" in cli("import", "", code=1).errors


def test_pipes_and_devices_at_paths_are_read_and_written(cli: Cli, tmp_path: Path) -> None:
    (image_id,) = cli("import", hello().write(tmp_path / "layout")).lines
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with start(cli.root, "export", image_id, pipe) as process:
        archive = pipe.read_bytes()
        assert process.wait(30) == 0
    for command in (["import", pipe], ["copy", f"oci-archive:{pipe}", tmp_path / "copy"]):
        with start(tmp_path / "other", *command) as process:
            pipe.write_bytes(archive)
            assert process.wait(30) == 0
    with start(tmp_path / "other", "export", image_id, "/dev/full") as process:
        assert process.wait(30) == 1
        assert process.stderr is not None
        assert process.stderr.read() == b"aimagestore: /dev/full: No space left on device\n"


def test_layers_that_podman_keeps_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "graph" / "vfs-layers").mkdir(parents=True)
    (tmp_path / "graph" / "vfs-images").mkdir()
    layout = hello().write(tmp_path / "layout")
    done = program("--root", tmp_path / "graph", "import", layout, "--json")
    assert b"left out" in done.stderr
    (imported,) = json.loads(done.stdout)
    assert imported["is_new"]
    assert imported["layers_left_out"] == 1


def test_images_that_podman_cannot_read_are_imported_by_force(tmp_path: Path) -> None:
    (tmp_path / "graph" / "vfs-layers").mkdir(parents=True)
    podmans, plain = Cli(tmp_path / "graph" / "vfs-images"), Cli(tmp_path / "plain")
    maker = Maker()
    config = maker.document({}, "application/x")
    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": []}
    maker.enter(maker.document(manifest, media_type), "note:1")
    layout = maker.write(tmp_path / "layout")
    (copied,) = plain("create", "--layer", "top").lines
    for command in (
        ("import", layout),
        ("create", "--name", "localhost/bare:1"),
        ("copy", plain.root, podmans.root),
    ):
        podmans(*command, code=1)
        assert podmans("images", "--quiet").lines == []
        podmans(*command, "--force")
        (shown,) = podmans("images", "--quiet").lines
        assert command[0] != "copy" or copied.startswith(shown)
        layers = tmp_path / "graph" / "vfs-layers"
        has_layers = f"layers stay in {layers}: podman rmi" in podmans("rm", shown).errors
        assert has_layers == (command[0] == "copy")


def test_a_signal_while_nobody_reads(cli: Cli, tmp_path: Path) -> None:
    maker = hello()
    maker.enter(maker.image(bytes(5_000_000), config={"author": "large"}), "large:1")
    (image_id,) = cli("import", maker.write(tmp_path / "layout"), "--ref", "large:1").lines
    with start(cli.root, "export", image_id, "-", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_an_archive_whose_reader_has_closed_its_pipe(cli: Cli, tmp_path: Path) -> None:
    (image_id,) = cli("import", hello().write(tmp_path / "layout")).lines
    reader, writer = os.pipe()
    os.close(reader)
    with start(cli.root, "export", image_id, "-", stdout=writer) as process:
        os.close(writer)
        assert process.wait(30) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_an_archive_that_finds_no_room(cli: Cli, tmp_path: Path) -> None:
    (image_id,) = cli("import", hello().write(tmp_path / "layout")).lines
    with (
        Path("/dev/full").open("wb") as full,
        start(cli.root, "export", image_id, "-", stdout=full) as process,
    ):
        assert process.wait(30) == 1
        assert process.stderr is not None
        assert b"No space left" in process.stderr.read()


def test_a_signal_in_the_middle_of_an_import(path: Path) -> None:
    with start(path, "import", "-", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(bytes(1_000_000))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    assert set(os.listdir(path)) <= {"images.lock"}


@pytest.mark.damage
def test_a_damaged_image_is_not_exported(cli: Cli, tmp_path: Path) -> None:
    (image_id,) = cli("import", hello().write(tmp_path / "layout")).lines
    config = next(
        file for file in (cli.root / image_id).iterdir() if b"architecture" in file.read_bytes()
    )
    config.write_bytes(config.read_bytes().replace(b"amd64", b"AMD64"))
    cli("export", image_id, tmp_path / "again", code=4)


def test_from_one_store_into_another(cli: Cli, tmp_path: Path) -> None:
    cli("import", hello().write(tmp_path / "layout"), "--name", "a:1")
    cli("create", "--name", "b:1")
    source, destination = cli.root, tmp_path / "destination"
    assert cli("copy", source, destination, "a:1", "--json").json["images"] == 1
    (line,) = cli("copy", source, destination).lines
    assert line == "1 copied, 0 B of big data; 1 present already"
    cli("copy", source, destination, "nobody", code=3)
    cli("copy", "postgresql://host/database", destination, code=2)
