"""Layers, sizes and containers are those that podman and buildah report."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import anyio
import pytest

from aimagestore import FindingKind, ImageInUseError, ImageStore, check, podman
from aimagestore._directory.index_file import IndexFile

from .generation import BEHAVIOUR, ROOT
from .tools import PreparedStores, Tools, require, run

pytestmark = [pytest.mark.peers, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


def make_three(tools: Tools) -> None:
    tools.build("localhost/base:1", "scratch", "a", "b")
    tools.build("localhost/app:1", "localhost/base:1", "c")
    tools.commit("localhost/other:1", "hello")


@pytest.fixture
def tools(short_path: Path, prepared: PreparedStores) -> Tools:
    """podman, with an image of two layers, one that adds a layer to it, and an unrelated one."""
    require("podman", "buildah")
    return prepared.copy(make_three, short_path)


async def test_layers_and_sizes_are_those_of_podman(tools: Tools) -> None:
    listed = json.loads(tools.podman("images", "--all", "--format", "json"))
    async with ImageStore(tools.image_store, read_only=True) as store:
        now = await podman.snapshot(store)
    assert len(listed) == len(now.images) == 4
    for image in listed:
        assert now.size_of(image["Id"]) == image["Size"]
        found = tools.inspect(image["Id"])
        assert found["Size"] == image["Size"]
        layers = now.layers_of(image["Id"])
        assert [layer.diff_digest for layer in layers] == found["RootFS"]["Layers"]
    base, app = now.layers_of("localhost/base:1"), now.layers_of("localhost/app:1")
    assert app[:2] == base
    assert len(now.images_with(base[0].id)) == 3
    assert now.images_with(app[2].id) == (now.images.lookup("localhost/app:1"),)


async def test_images_that_containers_use_cannot_be_deleted(tools: Tools) -> None:
    tools.podman("create", "--name", "kept", "localhost/app:1", "/x")
    tools.podman("create", "--name", "short-lived", "--rm", "localhost/base:1", "/x")
    working = tools.buildah("from", "localhost/other:1")
    async with ImageStore(tools.image_store) as store:
        for name, user in (("app", "kept"), ("base", "short-lived"), ("other", working)):
            ref = f"localhost/{name}:1"
            now = await podman.snapshot(store)
            assert [container.name for container in now.containers_of(ref)] == [user]
            with pytest.raises(ImageInUseError) as caught:
                await store.delete(ref)
            assert caught.value.containers == (user,)
        tools.buildah("rm", working)
        await store.delete("localhost/other:1")
        tools.podman("rm", "kept", "short-lived")
        await store.delete("localhost/app:1")
    assert len(tools.names()) == 1


async def test_reading_beside_podman_finds_every_layer(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """podman adds and removes images and their layers, while they are read again and again."""
    done = threading.Event()
    read_images = IndexFile.snapshot

    def slowly(reader: IndexFile) -> object:
        time.sleep(0.3)  # between layers and images, so that podman has time for a change
        return read_images(reader)

    monkeypatch.setattr(IndexFile, "snapshot", slowly)

    def work() -> None:
        try:
            for content in ("d", "e", "f"):
                tools.build("localhost/new:1", "localhost/base:1", content, f"{content}2")
                tools.podman("rmi", "localhost/new:1")
        finally:
            done.set()

    seen = set()
    async with (
        ImageStore(tools.image_store, read_only=True) as store,
        anyio.create_task_group() as group,
    ):
        group.start_soon(anyio.to_thread.run_sync, work)
        while not done.is_set():
            now = await podman.snapshot(store)
            for image in now.images:
                seen.add(image.id)
                assert now.layers_of(image.id)
    assert len(seen) > 4


async def test_the_advice_of_each_finding_repairs_it(tools: Tools) -> None:
    assert (await check(tools.image_store)).ok
    async with ImageStore(tools.image_store) as store:
        app = await store.get("localhost/app:1")
        lowest = (await podman.snapshot(store)).layers_of(app.id)[0].id
    tools.podman("create", "--name", "left", "localhost/other:1", "/x")
    async with ImageStore(tools.image_store) as store:
        await store.delete("localhost/other:1", force=True)
    (finding,) = (await check(tools.image_store)).findings
    assert finding.kind is FindingKind.IMAGE_MISSING
    assert "podman rm --force left removes" in finding.detail
    tools.podman("rm", "--force", "left")
    assert (await check(tools.image_store)).ok
    forget_layer(tools, lowest)
    async with ImageStore(tools.image_store) as store:
        broken = [image.id for image in await store.images()]
    found = (await check(tools.image_store)).findings
    assert {f.id for f in found if f.kind is FindingKind.LAYER_MISSING} == {*broken} - {
        f.id for f in found if f.kind is FindingKind.PODMAN_FAILS
    }
    for image_id in broken:
        tools.podman("rmi", "--force", "--ignore", image_id)
    assert (await check(tools.image_store)).ok
    assert tools.names() == {}


def forget_layer(tools: Tools, layer_id: str) -> None:
    """Remove a layer from podman's list, and make podman read the list again."""
    file = tools.graph / f"{tools.driver}-layers" / "layers.json"
    records = [record for record in json.loads(file.read_bytes()) if record["id"] != layer_id]
    file.write_text(json.dumps(records))
    (file.parent / "layers.lock").write_bytes(os.urandom(64))


@pytest.mark.skipif(not BEHAVIOUR.keeps_trees, reason="this podman has neither option")
@pytest.mark.parametrize("option", ['imagestore = "{base}/images"', "transient_store = true"])
async def test_containers_are_known_wherever_podman_keeps_them(
    short_path: Path, option: str
) -> None:
    require("podman")
    configuration = short_path / "storage.conf"
    configuration.write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{short_path}/graph"\n'
        f'runroot = "{short_path}/run"\n{option.format(base=short_path)}\n'
    )

    def run_podman(*arguments: str) -> str:
        return run("env", f"CONTAINERS_STORAGE_CONF={configuration}", "podman", *arguments)

    (short_path / "Containerfile").write_text("FROM scratch\nCOPY Containerfile /\n")
    run_podman("build", "--quiet", "--tag", "localhost/hello:1", str(short_path))
    run_podman("create", "--name", "web", "localhost/hello:1", "/x")
    programs = os.pathsep.join(f"{ROOT}/{part}" for part in ("usr/bin", "bin"))
    environ = {"PATH": programs, "HOME": "/root", "CONTAINERS_STORAGE_CONF": str(configuration)}
    async with podman.open_store(read_only=False, environ=environ) as store:
        assert store.layer_store is not None
        now = await podman.snapshot(store)
        assert (
            now.size_of("localhost/hello:1")
            == json.loads(run_podman("image", "inspect", "localhost/hello:1"))[0]["Size"]
        )
        with pytest.raises(ImageInUseError) as caught:
            await store.delete("localhost/hello:1")
        assert caught.value.containers == ("web",)
        run_podman("rm", "web")
        await store.delete("localhost/hello:1")
