"""Which store is meant."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from aimagestore._cli.exits import CommandError
from aimagestore._cli.roots import given_store

from .conftest import Cli, call


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_an_image_store_is_itself(tmp_path: Path) -> None:
    assert await given_store(str(tmp_path / "new")) == str(tmp_path / "new")
    (tmp_path / "images.lock").touch()
    (tmp_path / "vfs-images").mkdir()
    assert await given_store(str(tmp_path)) == str(tmp_path)


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
async def test_a_graph_root_has_its_store_in_it(
    tmp_path: Path, names: list[str], store: str
) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    assert await given_store(str(tmp_path)) == str(tmp_path / store)


async def test_one_of_several_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for driver in ("vfs", "btrfs", "zfs"):
        (tmp_path / f"{driver}-images").mkdir()
    own = storage(tmp_path / "own.conf", driver="overlay", graphroot="/no", runroot="/no")
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", own)
    with pytest.raises(CommandError, match="btrfs-images, vfs-images, zfs-images"):
        await given_store(str(tmp_path))
    storage(tmp_path / "own.conf", driver="zfs", graphroot="/no", runroot="/no")
    if os.geteuid() == 0:
        assert await given_store(str(tmp_path)) == str(tmp_path / "zfs-images")
    monkeypatch.setenv("STORAGE_DRIVER", "btrfs")
    assert await given_store(str(tmp_path)) == str(tmp_path / "btrfs-images")


def test_the_store_of_a_graph_root_is_used(tmp_path: Path) -> None:
    cli = Cli(tmp_path / "graph")
    (cli.root / "vfs-layers").mkdir(parents=True)
    cli("create", "--id", "one", "--force")
    assert sorted(os.listdir(cli.root)) == ["vfs-images", "vfs-layers"]
    assert cli("images", "-q").lines == ["one"]
    (cli.root / "vfs-layers").rmdir()
    for driver in ("btrfs", "zfs"):
        (cli.root / f"{driver}-images").mkdir()
    assert "STORAGE_DRIVER" in cli("images", code=2).errors


# Podman's own


def test_podmans_own_store_is_only_looked_at(tmp_path: Path) -> None:
    graph = tmp_path / "graph"
    config = tmp_path / "config"
    storage(config / "containers/storage.conf", driver="vfs", graphroot=str(graph), runroot="/no")
    variables = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(config)}
    missing = call("images", code=1, variables=variables).errors
    assert f"{graph}/vfs-images" in missing
    call("--write", "create", code=1, variables=variables)
    assert not graph.exists()

    Cli(graph / "vfs-images")("create", "--id", "one")
    before = {file.name: file.stat().st_mtime_ns for file in (graph / "vfs-images").iterdir()}
    assert call("images", "-q", variables=variables).output == "one\n"
    for arguments in (
        ["create"],
        ["tag", "one", "a:1"],
        ["untag", "one"],
        ["rm", "one"],
        ["put", "one", "k", "/dev/null"],
        ["flag", "one", "f", "1"],
        ["flag", "one", "f", "--clear"],
        ["repair"],
        ["prune"],
        ["gc"],
    ):
        refused = call(*arguments, code=2, variables=variables).errors
        assert "give --write" in refused
    for arguments in (
        ["inspect", "one"],
        ["flag", "one"],
        ["check"],
        ["df"],
        ["prune", "--dry-run"],
    ):
        call(*arguments, variables=variables)
    assert before == {f.name: f.stat().st_mtime_ns for f in (graph / "vfs-images").iterdir()}
    call("--write", "tag", "one", "a:1", variables=variables)
    variables = {"CONTAINERS_STORAGE_CONF": str(config / "containers/storage.conf")}
    assert "a" in call("images", variables=variables).output
    (config / "containers/storage.conf").write_text("[storage]\ndriver = 1\n")
    refused = call("images", code=1, variables=variables).errors
    assert "storage.conf, line 2: driver is not a string" in refused
