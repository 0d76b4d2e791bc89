"""Which store is meant."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from aimagestore._cli import configuration
from aimagestore._cli.configuration import podman_configuration
from aimagestore._cli.exits import CommandError
from aimagestore._cli.roots import given_store

from ..peers.tools import require, run
from .conftest import Cli, program


@pytest.fixture(autouse=True)
def _no_system_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Files of this test instead of the machine's."""
    files = (str(tmp_path / "etc.conf"), str(tmp_path / "share.conf"))
    monkeypatch.setattr(configuration, "SYSTEM_FILES", files)
    for name in list(os.environ):
        if name.startswith(("XDG_", "CONTAINERS_", "STORAGE_", "AIMAGESTORE_")):
            monkeypatch.delenv(name)


def storage(file: Path, **settings: str) -> str:
    """Write a storage.conf."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    file.write_text(f"[storage]\n{lines}[storage.options]\nignored = 1\n")
    return str(file)


# A directory that was given


def test_an_image_store_is_itself(tmp_path: Path) -> None:
    assert given_store(str(tmp_path / "new")) == str(tmp_path / "new")
    (tmp_path / "images.lock").touch()
    (tmp_path / "vfs-images").mkdir()
    assert given_store(str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize(
    ("names", "store"),
    [
        (["vfs-images"], "vfs-images"),
        (["vfs-images", "overlay-layers", "storage.lock"], "vfs-images"),
        (["vfs-layers"], "vfs-images"),
        (["storage.lock"], "overlay-images"),
        (["vfs-images", "overlay-images"], "overlay-images"),
    ],
)
def test_a_graph_root_has_its_store_in_it(tmp_path: Path, names: list[str], store: str) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    assert given_store(str(tmp_path)) == str(tmp_path / store)


def test_one_of_several_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for driver in ("vfs", "btrfs", "zfs"):
        (tmp_path / f"{driver}-images").mkdir()
    with pytest.raises(CommandError, match="btrfs-images, vfs-images, zfs-images"):
        given_store(str(tmp_path))
    storage(tmp_path / "etc.conf", driver="zfs")
    if os.geteuid() == 0:
        assert given_store(str(tmp_path)) == str(tmp_path / "zfs-images")
    monkeypatch.setenv("STORAGE_DRIVER", "btrfs")
    assert given_store(str(tmp_path)) == str(tmp_path / "btrfs-images")


def test_the_store_of_a_graph_root_is_used(tmp_path: Path) -> None:
    cli = Cli(tmp_path / "graph")
    (cli.root / "vfs-layers").mkdir(parents=True)
    cli("create", "--id", "one")
    assert sorted(os.listdir(cli.root)) == ["vfs-images", "vfs-layers"]
    assert cli("images", "-q").lines == ["one"]
    (cli.root / "vfs-layers").rmdir()
    for driver in ("btrfs", "zfs"):
        (cli.root / f"{driver}-images").mkdir()
    assert "STORAGE_DRIVER" in cli("images", code=2).errors


# Podman's own


def found(user: int, **environment: str) -> tuple[str, str]:
    result = podman_configuration(environment, user)
    return result.driver, result.graph_root


def test_where_nothing_is_configured(tmp_path: Path) -> None:
    home = str(tmp_path)
    assert found(0, HOME=home) == ("", "/var/lib/containers/storage")
    assert found(1000, HOME=home) == ("vfs", f"{home}/.local/share/containers/storage")
    assert found(1000, HOME=home, XDG_DATA_HOME=f"{home}/data") == (
        "vfs",
        f"{home}/data/containers/storage",
    )
    assert found(0, HOME=home, STORAGE_DRIVER="overlay2")[0] == "overlay"


def test_files_of_the_system(tmp_path: Path) -> None:
    storage(tmp_path / "share.conf", driver="overlay", graphroot="/share")
    assert found(0) == ("overlay", "/share")
    storage(tmp_path / "etc.conf", driver="zfs", rootless_storage_path="$HOME/${USER}-$UID$NO")
    assert found(0) == ("zfs", "/var/lib/containers/storage")
    # A driver that only root can use is not theirs.
    home = str(tmp_path)
    assert found(1000, HOME=home, USER="me") == ("vfs", f"{home}/me-1000")
    assert found(1000, HOME=home, USER="me", STORAGE_DRIVER="overlay")[0] == "overlay"


def test_files_of_a_user(tmp_path: Path) -> None:
    home = tmp_path / "home"
    storage(tmp_path / "etc.conf", driver="overlay", graphroot="/etc", rootless_storage_path="/own")
    storage(home / ".config/containers/storage.conf", driver="btrfs")
    assert found(1000, HOME=str(home)) == ("btrfs", "/own")
    assert found(0, HOME=str(home)) == ("overlay", "/etc")
    storage(home / ".config/containers/storage.conf", driver="vfs", rootless_storage_path="/mine")
    assert found(1000, HOME=str(home)) == ("vfs", "/mine")
    storage(home / "xdg/containers/storage.conf", driver="vfs", graphroot="/xdg")
    # Root's podman looks there too, where the variable is set.
    for user in (0, 1000):
        assert found(user, HOME=str(home), XDG_CONFIG_HOME=f"{home}/xdg") == ("vfs", "/xdg")


@pytest.mark.parametrize("user", [0, 1000])
def test_a_file_that_is_named(tmp_path: Path, user: int) -> None:
    storage(tmp_path / "etc.conf", driver="overlay", graphroot="/etc")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    file = storage(tmp_path / "own.conf", driver="vfs", graphroot=f"{tmp_path}/link/../link/g")
    assert found(user, HOME="/h", CONTAINERS_STORAGE_CONF=file) == ("vfs", f"{tmp_path}/real/g")
    with pytest.raises(CommandError, match="No such file"):
        found(user, HOME="/h", CONTAINERS_STORAGE_CONF=f"{tmp_path}/missing")


@pytest.mark.parametrize("text", ["[storage", "[storage]\ndriver = 1", "storage = 1", "a = '\xff'"])
def test_a_file_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.conf").write_bytes(text.encode("latin-1"))
    with pytest.raises(CommandError, match=r"bad\.conf"):
        found(0, CONTAINERS_STORAGE_CONF=f"{tmp_path}/bad.conf")


def test_podmans_own_store_is_only_looked_at(tmp_path: Path) -> None:
    graph = tmp_path / "graph"
    config = tmp_path / "config"
    storage(config / "containers/storage.conf", driver="vfs", graphroot=str(graph))
    variables = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(config)}
    missing = program("images", code=1, variables=variables).stderr.decode()
    assert f"{graph}/vfs-images" in missing
    program("--write", "create", code=1, variables=variables)
    assert not graph.exists()

    Cli(graph / "vfs-images")("create", "--id", "one")
    before = {file.name: file.stat().st_mtime_ns for file in (graph / "vfs-images").iterdir()}
    assert program("images", "-q", variables=variables).stdout == b"one\n"
    for arguments in (
        ["create"],
        ["tag", "one", "a:1"],
        ["untag", "one"],
        ["rm", "one"],
        ["put", "one", "k", "/dev/null"],
        ["flag", "one", "f", "1"],
        ["flag", "one", "f", "--clear"],
        ["repair"],
        ["gc"],
    ):
        refused = program(*arguments, code=2, variables=variables).stderr.decode()
        assert "give --write" in refused
    for arguments in (["inspect", "one"], ["flag", "one"], ["check"]):
        program(*arguments, variables=variables)
    assert before == {f.name: f.stat().st_mtime_ns for f in (graph / "vfs-images").iterdir()}
    program("--write", "tag", "one", "a:1", variables=variables)
    variables = {"CONTAINERS_STORAGE_CONF": str(config / "containers/storage.conf")}
    assert b"a" in program("images", variables=variables).stdout


@pytest.mark.peers
def test_podman_looks_in_the_same_place(short_path: Path) -> None:
    require("podman")
    settings = {"driver": "vfs", "runroot": f"{short_path}/run"}
    own = storage(short_path / "own.conf", graphroot=f"{short_path}/$OWN/own", **settings)
    config = short_path / "config"
    storage(config / "containers/storage.conf", graphroot=f"{short_path}/user", **settings)
    for variables in (
        {"CONTAINERS_STORAGE_CONF": own, "OWN": "x"},
        {"CONTAINERS_STORAGE_CONF": own, "XDG_CONFIG_HOME": str(config)},
        {"XDG_CONFIG_HOME": str(config)},
    ):
        where = [f"{name}={value}" for name, value in variables.items()]
        shown = run(
            *("env", *where, "podman", "info", "--format"),
            "{{.Store.GraphDriverName}} {{.Store.GraphRoot}}",
        )
        assert shown == " ".join(found(0, **variables))
