"""A watch yields the changes of other programs."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from aimagestore import ImageStore

from ..support.watching import kinds, meanwhile, replay, take
from .peer import Peer, image_store
from .tools import Tools, require

pytestmark = pytest.mark.peers

TIMEOUT = 120
"""Seconds; on a slow machine, podman takes several for one command."""


async def test_changes_by_containers_storage_are_watched(peer: Peer, short_path: Path) -> None:
    peer.ask("create", short_path, id="image")
    path = image_store(short_path)

    async def ask(op: str, **fields: object) -> None:
        await anyio.to_thread.run_sync(lambda: peer.ask(op, short_path, **fields))

    async with ImageStore(path, read_only=True) as store, store.watch() as changes:
        for number in range(100):
            _, change = await meanwhile(
                changes, ask("set_metadata", ref="image", metadata=f"{number:03}")
            )
            assert change.kind == "changed"
            assert change.image is not None
            assert change.image.metadata == f"{number:03}"
        # Changes that come faster than they are taken add up to the final state.
        images = {image.id: image for image in await store.images()}
        for number in range(20):
            await ask("create", id=f"image{number}")
            await ask("delete", ref=f"image{number}")
            await ask("set_metadata", ref="image", metadata=str(number))
        with anyio.move_on_after(TIMEOUT):
            while images["image"].metadata != "19" or len(images) > 1:
                replay(images, await take(changes, 1))
        assert images == {image.id: image for image in await store.images()}
    peer.ask("close", short_path)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_changes_by_podman_are_watched(short_path: Path) -> None:
    require("podman", "buildah")
    tools = Tools(short_path)
    first = tools.commit("localhost/hello:1", "hello")

    async def podman(*arguments: str) -> None:
        await anyio.to_thread.run_sync(tools.podman, *arguments)

    async with ImageStore(tools.image_store, read_only=True) as store, store.watch() as changes:
        _, change = await meanwhile(changes, podman("tag", first, "localhost/other:1"))
        assert change.image is not None
        assert set(change.image.names) == {"localhost/other:1", "localhost/hello:1"}
        second = await anyio.to_thread.run_sync(tools.commit, "localhost/second:1", "second")
        images = {first: change.image}
        with anyio.fail_after(TIMEOUT):
            while second not in images or not images[second].names:
                replay(images, await take(changes, 1))
        _, change = await meanwhile(changes, podman("rmi", first, "--force"))
        while change.kind != "deleted":  # podman removes the names one by one before
            (change,) = await take(changes, 1)
        assert kinds([change]) == [("deleted", first)]
