"""The next call, here or in another program, sees each change, on every local file system."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, product
from pathlib import Path

import pytest

from aimagestore import ImageStore

from ..support.loops import EXTENTS, NIGHTLY, OPTIONS
from .mounts import file_system
from .peer import Peer, image_store
from .tools import PreparedStores, Tools, require

pytestmark = pytest.mark.peers


def rounds(*, whole: bool) -> int:
    """Return how many changes each side makes; a usual run makes fewer."""
    return 100 if whole else 20


FILE_SYSTEMS = ["ext4", "xfs", "btrfs", "tmpfs"]
# Each file system with one of the event loops, or in a nightly run with each.
on_each_file_system = pytest.mark.parametrize(
    ("directory", "anyio_backend"),
    list(
        product(FILE_SYSTEMS, OPTIONS.values())
        if NIGHTLY
        else zip(FILE_SYSTEMS, cycle(OPTIONS.values()), strict=False)
    ),
    indirect=["directory"],
)


@pytest.fixture(params=FILE_SYSTEMS)
def directory(request: pytest.FixtureRequest, short_path: Path) -> Iterator[Path]:
    """A directory on a file system of its own."""
    with file_system(request.param, short_path) as mount_point:
        yield mount_point / "store"


@pytest.mark.parametrize("whole", EXTENTS)
@on_each_file_system
async def test_a_change_by_containers_storage_is_seen_here(
    peer: Peer, directory: Path, *, whole: bool
) -> None:
    peer.ask("create", directory, id="image", names=["name-000"])
    path = image_store(directory)
    async with ImageStore(path) as store, ImageStore(path, read_only=True) as reader:
        for number in range(rounds(whole=whole)):
            # The changes keep the length of the file, and follow each other without a pause.
            text, name = f"text {number:03}", f"name-{number:03}"
            peer.ask("set_metadata", directory, ref="image", metadata=text)
            assert await store.metadata("image") == text
            assert await reader.metadata("image") == text
            peer.ask("set_names", directory, ref="image", names=[name])
            assert await store.modified()
            assert (await reader.snapshot()).lookup(name) == "image"
            assert await store.exists(name)
            assert not await store.exists(f"name-{number - 1:03}")
    peer.ask("close", directory)


@pytest.mark.parametrize("whole", EXTENTS)
@on_each_file_system
async def test_content_replaced_by_containers_storage_is_read_here(
    peer: Peer, directory: Path, *, whole: bool
) -> None:
    peer.ask("create", directory, id="image")
    async with ImageStore(image_store(directory)) as store:
        for number in range(rounds(whole=whole)):
            data = b"content %03d" % number
            peer.ask("set_big_data", directory, ref="image", key="item", data=data)
            assert await store.big_data("image", "item") == data
            async with store.open_big_data("image", "item", verify=True) as reader:
                assert await reader.read() == data
    peer.ask("close", directory)


@pytest.mark.parametrize("whole", EXTENTS)
@on_each_file_system
async def test_a_change_here_is_seen_by_containers_storage(
    peer: Peer, directory: Path, *, whole: bool
) -> None:
    peer.ask("open", directory)
    async with ImageStore(image_store(directory)) as store:
        await store.create("image", names=["name-000"], force=True)
        for number in range(rounds(whole=whole)):
            text, name = f"text {number:03}", f"name-{number:03}"
            await store.set_metadata("image", text)
            assert peer.ask("metadata", directory, ref="image") == text
            await store.set_names("image", [name])
            assert peer.ask("lookup", directory, ref=name) == "image"
            assert peer.ask("exists", directory, ref=f"name-{number - 1:03}") is False
            await store.set_big_data("image", "item", text.encode())
            assert peer.ask("big_data", directory, ref="image", key="item") == text.encode()
            assert peer.ask("big_data_size", directory, ref="image", key="item") == 8
    peer.ask("close", directory)


@pytest.mark.parametrize("whole", EXTENTS)
@on_each_file_system
async def test_alternating_changes_build_on_each_other(
    peer: Peer, directory: Path, *, whole: bool
) -> None:
    peer.ask("create", directory, id="image")
    async with ImageStore(image_store(directory)) as store:
        for number in range(rounds(whole=whole)):
            peer.ask("add_names", directory, ref="image", names=[f"theirs-{number}"])
            await store.add_names("image", [f"ours-{number}"])
            peer.ask("remove_names", directory, ref="image", names=[f"theirs-{number - 3}"])
            await store.remove_names("image", [f"ours-{number - 3}"])
        last = rounds(whole=whole) - 1
        expected = [
            f"{whose}-{n}" for n in (last, last - 1, last - 2) for whose in ("ours", "theirs")
        ]
        assert list((await store.get("image")).names) == expected
    assert peer.ask("get", directory, ref="image")["names"] == expected
    peer.ask("close", directory)


def make_hello(tools: Tools) -> None:
    tools.commit("localhost/hello:1", "hello")


@pytest.mark.parametrize("whole", EXTENTS)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_podman_and_this_library_see_each_other(
    directory: Path, prepared: PreparedStores, *, whole: bool
) -> None:
    require("podman", "buildah")
    tools = prepared.copy(make_hello, directory)
    (image_id,) = tools.names()
    async with ImageStore(tools.image_store) as store:
        for number in range(25 if whole else 2):
            tools.podman("tag", image_id, f"localhost/theirs:{number:02}")
            assert await store.lookup(f"localhost/theirs:{number:02}") == image_id
            await store.remove_names(image_id, [f"localhost/theirs:{number:02}"])
            await store.add_names(image_id, [f"localhost/ours:{number:02}"])
            assert tools.podman("image", "exists", f"localhost/ours:{number:02}") == ""
            assert tools.names()[image_id] == list((await store.get(image_id)).names)
