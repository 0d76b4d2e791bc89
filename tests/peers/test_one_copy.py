"""Items that share a file, beside containers/storage, which does not know that they do."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimagestore import FindingKind, Image, ImageStore, check
from aimagestore._core.names import big_data_file

from ..support.loops import EVERY_LOOP
from ..support.sources import CONTENT, DIGEST
from .peer import Peer, image_store
from .tools import Tools, require, run

pytestmark = [
    pytest.mark.peers,
    # These are tests of what other programs do, which does not depend on the event loop.
    pytest.mark.parametrize("anyio_backend", EVERY_LOOP[:1]),
]

NAME = "localhost/base:1"
LIKE = "e" * 64


def links(path: Path, image_id: str, key: str) -> int:
    """Return the number of hard links to the file of an item."""
    return (path / image_id / big_data_file(key)).stat().st_nlink


async def test_a_change_of_an_item_by_containers_storage_keeps_items_that_shared_its_file(
    peer: Peer, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    path = image_store(root)
    for image in ["one", "two", "three"]:
        peer.ask("create", root, id=image)
    peer.ask("set_big_data", root, ref="one", key="key", data=CONTENT)
    async with ImageStore(path) as store:
        for image in ["two", "three"]:
            await store.set_big_data(image, "key", [b"not read"], expected_digest=DIGEST)
        assert links(path, "one", "key") == 3
        peer.ask("set_big_data", root, ref="two", key="key", data=b"other")
        assert links(path, "one", "key") == 2
        assert await store.big_data("two", "key") == b"other"
        peer.ask("delete", root, ref="one")
        assert await store.big_data("three", "key") == CONTENT
        assert peer.ask("big_data", root, ref="three", key="key") == CONTENT
        assert links(path, "three", "key") == 1
        # A file that containers/storage has written is shared again.
        peer.ask("set_big_data", root, ref="three", key="key", data=CONTENT)
        await store.set_big_data("two", "key", CONTENT)
        assert links(path, "three", "key") == 2
        peer.ask("set_big_data", root, ref="three", key="key", data=CONTENT)
        assert links(path, "two", "key") == 1
    # podman would need manifests, which these images lack.
    kinds = {finding.kind for finding in (await check(path, verify=True)).findings}
    assert kinds <= {FindingKind.PODMAN_FAILS}


@pytest.fixture
def tools(short_path: Path) -> Iterator[Tools]:
    """The tools, with an image that buildah has committed."""
    require("podman", "buildah", "skopeo")
    tools = Tools(short_path)
    tools.commit(NAME, "base")
    yield tools
    subprocess.run(["umount", str(tools.graph / "vfs")], capture_output=True, check=False)


async def test_podman_works_with_an_image_that_shares_files_with_another(
    tools: Tools, tmp_path: Path
) -> None:
    path = tools.image_store
    archive = tmp_path / "archive"
    tools.podman("save", "--quiet", "--format", "oci-archive", "--output", str(archive), NAME)
    async with ImageStore(path) as store:
        first = await store.get(NAME)
        items = {key: await store.big_data(NAME, key) for key in first.big_data_names}
        second = await store.create(
            LIKE,
            names=["localhost/like:1"],
            top_layer=first.top_layer,
            metadata=first.metadata,
            created=first.created,
            big_data=items,
        )
        assert set(inodes(path, second)) <= set(inodes(path, first))

        async def check_second() -> None:
            for key, data in items.items():
                assert await store.big_data(second.id, key) == data
            findings = (await check(path, verify=True)).findings
            assert [f for f in findings if f.id == LIKE] == []

        tools.podman("tag", NAME, "localhost/tagged:1")
        await check_second()
        # Loading the image again writes its items again.
        tools.podman("load", "--quiet", "--input", str(archive))
        await check_second()
        run("skopeo", "copy", "--quiet", f"oci-archive:{archive}", f"{tools.reference}{NAME}")
        await check_second()
        assert tools.inspect("localhost/like:1")["Id"] == LIKE
        tools.podman("rmi", "--force", first.id)
        assert not await store.exists(first.id)
        await check_second()
        for key in items:
            assert links(path, LIKE, key) == (2 if key.startswith("manifest") else 1)
        assert tools.names() == {LIKE: ["localhost/like:1"]}
        tools.podman("rmi", LIKE)
        assert await store.images() == []


def inodes(path: Path, image: Image) -> list[int]:
    """Return the inodes of the files of an image's items."""
    files = (path / image.id / big_data_file(key) for key in image.big_data_names)
    return [file.stat().st_ino for file in files]
