"""Data beside big data that containers/storage keeps with an image, and garbage collection."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from aimagestore import ImageStore

from ..support.stores import tree
from .generation import BEHAVIOUR
from .peer import Peer, image_store

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(
        not BEHAVIOUR.keeps_trees, reason="this containers/storage keeps nothing but big data"
    ),
]

ONE, TWO = "1" * 64, "2" * 64
ORPHANS = ["a" * 64, "b" * 64]
OTHERS = ["backup", "C" * 64, "d" * 63, "e" * 65, "sha256:" + "f" * 64, ".hidden", "short"]


def add_user_data(peer: Peer, root: Path, image_id: str) -> None:
    """Let containers/storage make the directory for an image's data, and put a file in it."""
    directory = Path(peer.ask("image_directory", root, ref=image_id))
    assert directory.parent == image_store(root) / image_id
    (directory / "referenced-artifacts").mkdir()
    (directory / "referenced-artifacts" / "index").write_bytes(b"1")


async def test_garbage_collection_removes_what_containers_storage_removes(
    peer: Peer, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    peer.ask("create", ours, id=ONE, names=["a"], big_data={"manifest": b"{}"})
    add_user_data(peer, ours, ONE)
    path = image_store(ours)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"1")
    for name in (*ORPHANS, *OTHERS):
        (path / name / "userdata" / "deep").mkdir(parents=True)
        (path / name / "manifest").write_bytes(b"{}")
        (path / name / "userdata" / "deep" / "file").write_bytes(b"1")
        (path / name / "userdata" / "link").symlink_to(outside)
    (path / ("7" * 64)).write_bytes(b"a file")
    (path / ("8" * 64)).symlink_to(outside)
    peer.ask("close", ours)
    shutil.copytree(ours, theirs, symlinks=True)
    before = tree(path)
    peer.ask("collect_garbage", theirs)
    async with ImageStore(path) as store:
        await store.collect_garbage()
    peer.ask("close", theirs)
    after = tree(path)
    assert after == tree(image_store(theirs)) | {"images.lock": after["images.lock"]}
    removed = {name for name in before if name.split("/")[0] in ORPHANS}
    assert before.keys() - after.keys() == removed
    assert os.listdir(outside) == ["precious"]


async def test_the_directory_of_an_image_is_kept_until_the_image_is_deleted(
    peer: Peer, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    path = image_store(root)
    for image_id in (ONE, TWO):
        peer.ask("create", root, id=image_id, big_data={"manifest": b"{}"})
        add_user_data(peer, root, image_id)
    before = {image_id: tree(path / image_id / "userdata") for image_id in (ONE, TWO)}
    async with ImageStore(path) as store:
        await store.set_big_data(ONE, "manifest", b'{"n":1}')
        await store.set_big_data(ONE, "other", b"1")
        await store.set_names(ONE, ["a"])
        await store.collect_garbage()
        for image_id, expected in before.items():
            assert tree(path / image_id / "userdata") == expected
        await store.delete(ONE)
        assert not (path / ONE).exists()
        await store.create(ONE, big_data={"manifest": b"{}"}, force=True)
        assert tree(path / TWO / "userdata") == before[TWO]
    assert Path(peer.ask("image_directory", root, ref=ONE)).exists()
    assert tree(path / ONE) == {"manifest": b"{}", "userdata": tree(path / ONE)["userdata"]}
    peer.ask("delete", root, ref=ONE)
    assert not (path / ONE).exists()
    peer.ask("close", root)
